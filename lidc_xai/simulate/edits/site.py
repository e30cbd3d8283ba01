"""Where an edit takes place: the nodule in a crop, its surroundings, and the grain of the lung around it.

Everything an edit needs to look like its surroundings is measured here on the crop itself: the level of the lung, its
noise, how wide the nodule's edge is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lidc_xai.errors import DataError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.planes import Box, scanned_box
from lidc_xai.simulate.grid import Floats

TISSUE_HU = -500.0
"""Brighter voxels outside the nodule are vessels and the wall."""
FEWEST_VOXELS = 15
"""A smaller nodule has no inside: every voxel is rim."""
FEWEST_LUNG = 100
_LEVEL_MM = 3.0


@dataclass(frozen=True, eq=False)
class Site:
    """A crop's nodule and what lies around it, on the part of the box that is no padding (``block``).

    ``ct``, ``level`` (the lung as it would be without the nodule, HU), ``distance`` (mm to the consensus boundary,
    negative inside) and ``nodule`` (share, 0 to 1, of a voxel's contrast that is the nodule's: its halo is part of it,
    vessels and the wall are not) are (z, y, x) of the block; ``lung``: voxels that are parenchyma. ``centre`` (3,) and
    ``radii`` (3,), along the columns of ``axes`` (3, 3), describe the ellipsoid of the mask's second moments, in mm
    from voxel 0 of the block. ``noise_hu``: robust SD of the parenchyma about its level. ``edge_mm``: sigma of the
    blur of the nodule's edge.
    """

    block: Box
    spacing_mm: float
    ct: Floats
    body: NDArray[np.bool_]
    distance: Floats
    lung: NDArray[np.bool_]
    level: Floats
    nodule: Floats
    noise_hu: float
    body_hu: float
    rim_hu: float
    edge_mm: float
    centre: Floats
    axes: Floats
    radii: Floats

    def coordinates(self) -> Floats:
        """(3, z, y, x) mm from the nodule's centre."""
        grid = np.indices(self.ct.shape, dtype=np.float64) * self.spacing_mm
        return grid - self.centre[:, None, None, None]

    def smooth(self, array: Floats, sigma_mm: float) -> Floats:
        """Gaussian blur of an array of the block."""
        return ndimage.gaussian_filter(array, sigma_mm / self.spacing_mm, mode="nearest")


def site_of(crop: NoduleCrop) -> Site:
    """The nodule of ``crop``; ``DataError`` where there is none that could be edited."""
    name = crop.nodule_id or "crop"
    if crop.consensus is None or not crop.consensus.any():
        raise DataError(
            f"{name}: has no reader's outline, and an edit needs one; for own CT draw a mask and run prepare --mask"
        )
    count = int(crop.consensus.sum())
    if count < FEWEST_VOXELS:
        raise DataError(f"{name}: its nodule has {count} voxels; an edit needs at least {FEWEST_VOXELS}")
    block = scanned_box(crop.ct)
    body = crop.consensus[block]
    if crop.larger_than_box or touches_box(crop.consensus):
        raise DataError(f"{name}: its nodule is larger than the box; prepare a store with a larger --size-mm")
    # Above and below the PNG edition ends with the nodule, so only padding beside it is a reason to refuse.
    if body.sum() < count or _touches_padding(body, block, crop.ct.shape):
        raise DataError(f"{name}: its nodule touches the padding, so a part of it was never scanned; leave it out")
    return _measured(crop, block, body, name)


def _measured(crop: NoduleCrop, block: Box, body: NDArray[np.bool_], name: str) -> Site:
    spacing = float(crop.spacing_mm[0])
    ct = crop.ct[block].astype(np.float64)
    marked = body if crop.reader_masks is None else body | np.asarray(crop.reader_masks.any(axis=0))[block]
    distance = signed_distance(body, spacing)
    away = ndimage.distance_transform_edt(~marked) * spacing
    lung = (ct < TISSUE_HU) & (away > 2.0)
    if lung.sum() < FEWEST_LUNG:
        raise DataError(
            f"{name}: {int(lung.sum())} voxels of lung in the box; an edit needs {FEWEST_LUNG} to look like"
        )
    level, noise = _lung(ct, lung, spacing)
    deep = body & (distance < min(-1.0, 0.5 * float(distance.min())))
    body_hu = float(np.median(ct[deep] if deep.sum() > 4 else ct[body]))
    rim = (distance > -2.5) & (distance < 0) & (ct > (body_hu + np.median(level[body])) / 2)  # readers draw wide
    rim_hu = float(np.median(ct[rim])) if rim.any() else body_hu
    reach, edge = _edge(ct - level, distance, max(body_hu - float(level[body].mean()), 1.0))
    centre, axes, radii = _ellipsoid(body, spacing)
    nodule = _nodule_share(ct, distance, away, reach, spacing)
    return Site(
        block, spacing, ct, body, distance, lung, level, nodule, noise, body_hu, rim_hu, edge, centre, axes, radii
    )


def touches_box(mask: NDArray[np.bool_]) -> bool:
    """Whether a mask reaches one of the six sides of its box."""
    return any(bool(np.take(mask, side, axis).any()) for axis in range(3) for side in (0, -1))


def _touches_padding(body: NDArray[np.bool_], block: Box, shape: tuple[int, ...]) -> bool:
    """Whether the nodule reaches padding in front, behind, left or right of it."""
    for axis in (1, 2):
        if block[axis].start > 0 and np.take(body, 0, axis).any():
            return True
        if block[axis].stop < shape[axis] and np.take(body, -1, axis).any():
            return True
    return False


def signed_distance(mask: NDArray[np.bool_], spacing_mm: float) -> Floats:
    """(z, y, x) mm to the mask's boundary, negative inside; smoothed by less than a voxel, so that the steps go."""
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    signed = np.where(mask, 0.5 - inside, outside - 0.5)
    return ndimage.gaussian_filter(signed, 0.6, mode="nearest") * spacing_mm


def _lung(ct: Floats, lung: NDArray[np.bool_], spacing: float) -> tuple[Floats, float]:
    """The parenchyma's level everywhere, and the robust SD about it."""
    sigma = _LEVEL_MM / spacing
    values = np.where(lung, np.minimum(ct, float(np.median(ct[lung])) + 150), 0.0)  # small vessels are no level
    weight, floor = ndimage.gaussian_filter(lung.astype(np.float64), sigma, mode="nearest"), 1e-3
    total = ndimage.gaussian_filter(values, sigma, mode="nearest") + floor * float(values[lung].mean())
    level = total / (weight + floor)
    residual = (ct - level)[lung]
    return level, 1.4826 * float(np.median(np.abs(residual - np.median(residual))))


def _edge(contrast: Floats, distance: Floats, full: float) -> tuple[float, float]:
    """How far outside the boundary the nodule's contrast is still seen (1 to 3 mm), and the sigma of its edge in mm."""
    at = np.arange(-4.0, 4.01, 0.5)
    share = np.full(len(at), np.nan)
    for k, middle in enumerate(at):
        ring = np.abs(distance - middle) <= 0.35
        if ring.sum() > 3:
            share[k] = np.median(contrast[ring]) / full
    outside = at[(at >= 0) & (share < 0.1)]
    known = np.isfinite(share)
    low, high = (np.flatnonzero(known & test) for test in (share > 0.84, share < 0.16))
    inner = at[low[-1]] if len(low) else -1.5
    outer = min((at[k] for k in high if at[k] > inner), default=1.5)
    return float(np.clip(outside[0] if len(outside) else 2.0, 1.0, 3.0)), float(np.clip((outer - inner) / 2, 0.4, 1.0))


def _nodule_share(ct: Floats, distance: Floats, away: Floats, reach: float, spacing: float) -> Floats:
    share = ramp((reach + 1.5 - distance) / 1.5)
    smooth = ndimage.gaussian_filter(ct, 0.7 / spacing, mode="nearest")
    others = (smooth > TISSUE_HU) & (away > 1.0) & (distance > 1.0)
    kept = ndimage.gaussian_filter(others.astype(np.float64), 0.5 / spacing, mode="nearest")
    return share * np.where(distance < 0, 1.0, np.clip(1 - 2 * kept, 0, 1))


def _ellipsoid(mask: NDArray[np.bool_], spacing: float) -> tuple[Floats, Floats, Floats]:
    points = np.argwhere(mask) * spacing
    centre = points.mean(axis=0)
    spread = np.cov(points.T) + np.eye(3) * spacing**2 / 12
    values, axes = np.linalg.eigh(spread)
    return centre, axes, np.maximum(np.sqrt(5 * values), 1.5)


def ramp(t: Floats) -> Floats:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def grain(site: Site, rng: np.random.Generator) -> Floats:
    """(z, y, x) noise with the spectrum and the robust SD of the parenchyma about its level, by random phases."""
    limit = 3 * site.noise_hu
    residual = np.where(site.lung, np.clip(site.ct - site.level, -limit, limit), 0.0)
    white = np.fft.rfftn(rng.standard_normal(site.ct.shape))
    spectrum = np.abs(np.fft.rfftn(residual)) * white / np.maximum(np.abs(white), 1e-12)
    noise = np.fft.irfftn(spectrum, s=site.ct.shape, axes=(0, 1, 2))
    noise -= noise.mean()
    return noise * (site.noise_hu / max(float(noise.std()), 1e-9))
