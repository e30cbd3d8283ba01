"""Edits that change densities and leave the outline: remove, subtlety, texture, calcification, margin, spiculation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import brentq

from lidc_xai.simulate.anatomy.tubes import Tubes, tube_share
from lidc_xai.simulate.edits.site import Site, grain, ramp
from lidc_xai.simulate.grid import Floats, Grid
from lidc_xai.simulate.nodule.lesion import inside_share, lattice_noise

LEFT_CONTRAST = 0.3
"""Share of the contrast that subtlety leaves at dose 1."""
TEXTURE_HU = 600.0
LEAST_ABOVE_LUNG = 60.0
"""Ground-glass stays this much denser than the lung, however little the nodule had to lose."""
CALCIUM_SHARE = 0.15
CALCIUM_HU = (300.0, 1200.0)
RIM_MM, TAPER_MM = 2.0, 3.0
BLUR_MM, SHARPEN_MM = 3.0, 1.0
STRANDS = 12
STRAND_MM, THICK_MM = (3.0, 8.0), (1.0, 1.5)


def remove(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """The nodule becomes lung."""
    return _faded(site, 1 - dose * site.nodule, rng)


def subtlety(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """The contrast of nodule and halo to the lung fades; 30 % is left at dose 1."""
    return _faded(site, 1 - (1 - LEFT_CONTRAST) * dose * site.nodule, rng)


def texture(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """The body goes down by up to 600 HU, unevenly as ground-glass is; never below what is still denser than lung."""
    full = max(site.body_hu - float(site.level[site.body].mean()), 1.0)
    lost = min(TEXTURE_HU, max(full - LEAST_ABOVE_LUNG, 0.0)) / full
    z, y, x = site.coordinates()
    uneven = lattice_noise(x, y, z, 2.2, rng)
    opacity = np.clip((site.ct - site.level) / full, 0, 1) * site.nodule
    return _faded(site, 1 - dose * lost * site.nodule, rng) + 30 * dose * lost * opacity * uneven


def _faded(site: Site, keep: Floats, rng: np.random.Generator) -> Floats:
    """Contrast to the lung times ``keep``. The noise that fades with it comes back as the lung's own grain."""
    return site.level + keep * (site.ct - site.level) + np.sqrt(np.maximum(1 - keep**2, 0)) * grain(site, rng)


def calcification(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """Foci of calcium that grow inside the body until they fill 15 % of it."""
    inner = np.argwhere(site.distance < max(-1.5, 0.5 * float(site.distance.min()))) * site.spacing_mm
    volume = float(site.body.sum()) * site.spacing_mm**3
    number = int(np.clip(round(volume / 150), 1, 8))
    centres = inner[rng.permutation(len(inner))[:number]] - site.centre
    density, growth = rng.uniform(*CALCIUM_HU, number), rng.uniform(0.0, 0.8, number)
    points = np.moveaxis(site.coordinates(), 0, -1)
    away = np.stack(
        [
            np.linalg.norm(points - middle, axis=-1) - lead
            for middle, lead in zip(centres, growth[: len(centres)], strict=True)
        ]
    )
    nearest, field = away.argmin(axis=0), away.min(axis=0)

    def share(size: float) -> Floats:
        return np.minimum(inside_share(field - size), inside_share(site.distance + 0.2))

    wanted = CALCIUM_SHARE * dose * volume
    most = float(field.max()) + 1
    size = brentq(lambda size: share(size).sum() * site.spacing_mm**3 - wanted, -2.0, most) if dose else -2.0
    shown = site.smooth(share(size), 0.6 * site.edge_mm)
    return site.ct + shown * np.maximum(density[nearest] - site.smooth(site.ct, 0.7), 0)


def margin(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """The rim blurred (dose > 0) or sharpened (dose < 0): in full within 2 mm of it, ending 3 mm further out.

    A blur reaches inwards until it makes no difference: ending it sooner would leave the core an edge of its own.
    """
    near = ramp((RIM_MM + TAPER_MM - np.abs(site.distance)) / TAPER_MM)
    own, free = (site.ct - site.level) * _own(site), _free(site)
    if dose < 0:
        return site.ct - dose * near * (free * _sharper(site, own, free) - own)
    near = np.where(site.distance < 0, ramp((RIM_MM + 3 * TAPER_MM + site.distance) / (2 * TAPER_MM)), near)
    blurred, kept = _locally_blurred(site, own, free, BLUR_MM * dose * near, grain(site, rng))
    return site.ct + np.where(near > 0, free * blurred - own + kept, 0)


def _own(site: Site) -> Floats:
    """Which part of the contrast may be spread: the nodule's, without vessels and wall beside it."""
    return site.nodule * ramp((RIM_MM + TAPER_MM - site.distance) / 1.0)


def _free(site: Site) -> Floats:
    """Share of a voxel that other tissue (a vessel, the wall) leaves to the nodule and the lung."""
    share = _own(site)
    full = max(site.body_hu - float(site.level[site.body].mean()), 1.0)
    others = ramp(((1 - share) * (site.ct - site.level) / full - 0.1) / 0.6)  # a tenth may be noise
    return np.maximum(1 - others, share)


def _spread(site: Site, own: Floats, free: Floats, sigma_mm: float) -> Floats:
    """``own`` blurred over what is free alone: nothing is spread into a wall, and nothing is lost to it."""
    if sigma_mm == 0:
        return own / np.maximum(free, 1e-3)
    return site.smooth(own, sigma_mm) / np.maximum(site.smooth(free, sigma_mm), 0.02)


def _locally_blurred(site: Site, own: Floats, free: Floats, sigma_mm: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """``own`` under a blur whose sigma (mm) differs from voxel to voxel, and the grain that the blur took away."""
    steps = np.linspace(0, BLUR_MM, 9)
    stack = np.stack([_spread(site, own, free, float(step)) for step in steps])
    gains = np.array([1.0, *(site.smooth(noise, step).std() / noise.std() for step in steps[1:])])
    at = sigma_mm / BLUR_MM * (len(steps) - 1)
    lower = np.minimum(at.astype(int), len(steps) - 2)
    t = at - lower
    blurred = (1 - t) * np.take_along_axis(stack, lower[None], 0)[0] + t * np.take_along_axis(
        stack, lower[None] + 1, 0
    )[0]
    gain = np.interp(sigma_mm, steps, gains)
    touched = site.nodule  # outside the nodule's own contrast nothing was blurred
    return blurred, np.sqrt(np.maximum(1 - gain**2, 0)) * noise * touched


def _sharper(site: Site, own: Floats, free: Floats) -> Floats:
    """An edge as steep as unsharp masking makes it, without its overshoot: never beyond what lies within 1.5 mm."""
    calm = _spread(site, own, free, 0.5)
    steep = _spread(site, own, free, 0) + 1.5 * (calm - _spread(site, free * calm, free, SHARPEN_MM))
    size = 2 * round(1.5 / site.spacing_mm) + 1
    return np.clip(steep, ndimage.minimum_filter(calm, size), ndimage.maximum_filter(calm, size))


def spiculation(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """Strands as dense as the rim, from it outward; all twelve are drawn, the dose says how many are shown."""
    toward = rng.normal(size=(STRANDS, 3)) * (0.5, 1, 1)  # (z, y, x): the planes that are read are axial
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    length, thick = rng.uniform(*STRAND_MM, STRANDS), rng.uniform(*THICK_MM, STRANDS) / 2
    bend = rng.normal(size=(STRANDS, 3)) * 0.15
    share: Floats = np.zeros(site.ct.shape)
    shown = STRANDS * dose
    for k in range(int(np.ceil(shown))):
        root = _surface(site, toward[k])
        ahead = (toward[k] + bend[k]) / np.linalg.norm(toward[k] + bend[k])
        middle, tip = root + 0.5 * length[k] * toward[k], root + length[k] * ahead
        points = np.stack([root - 1.5 * toward[k], middle, tip])
        strand = _strand(site, points, float(thick[k])) * min(shown - k, 1.0)
        share = np.maximum(share, strand)
    share = site.smooth(share, 0.3)
    return site.ct + share * np.maximum(site.rim_hu - site.smooth(site.ct, 0.7), 0)


def _strand(site: Site, points: Floats, radius: float) -> Floats:
    """(z, y, x) share of each voxel inside a tapering strand through ``points`` (3, zyx in mm from the centre)."""
    depth, rows, columns = site.ct.shape
    grid = Grid(
        site.spacing_mm, site.spacing_mm, np.arange(depth, dtype=np.float64) * site.spacing_mm, 0, 0, 0, rows, columns,
    )  # fmt: skip
    at = (points + site.centre)[:, ::-1] + (grid.x0_mm, grid.y0_mm, 0.0)
    radii = np.array([radius, 0.8 * radius, 0.5 * radius])
    return tube_share(grid, Tubes(at[:-1], at[1:], radii[:-1], radii[1:])).astype(np.float64)


def _surface(site: Site, toward: NDArray[np.float64]) -> Floats:
    """(3,) mm from the centre: where a ray from there leaves the nodule for the last time."""
    steps = np.arange(0.0, 2.5 * float(site.radii.max()) + 2, 0.25)
    points = steps[:, None] * toward
    at = ((points + site.centre) / site.spacing_mm).T
    within = ndimage.map_coordinates(site.distance, at, order=1, mode="nearest") < 0
    within &= ((at >= 0) & (at <= np.array(site.ct.shape)[:, None] - 1)).all(axis=0)
    return points[np.flatnonzero(within)[-1]] if within.any() else np.zeros(3)
