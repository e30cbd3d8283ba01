"""Edits that move the rim: diameter, lobulation, sphericity. Each is a displacement: where every voxel comes from."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import Legendre
from numpy.typing import NDArray
from scipy import ndimage

from lidc_xai.simulate.edits.site import Site, ramp
from lidc_xai.simulate.grid import Floats

SUPPORT = 1.6
"""Radii inside which voxels move."""
LARGER, SMALLER = 0.4, 0.3
LOBES = 0.25
STRETCH = 1.0
_STRETCH_ENDS = 2.4
_STILL_MM = 1e-3
_NOISE_MM = 0.7


def diameter(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """Larger by up to 1.4 (dose 1), or smaller down to 0.7 (dose -1)."""
    return radial(site, 1 + (LARGER if dose > 0 else SMALLER) * dose)


def lobulation(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """Bulges and notches of up to 25 % of the radius, a few around the nodule."""
    poles = rng.normal(size=(6, 3))
    poles /= np.linalg.norm(poles, axis=1, keepdims=True)
    weight = rng.uniform(0.6, 1.0, 6) * np.where(rng.uniform(size=6) < 0.5, -1, 1)
    at = _in_radii(site)
    toward = at / np.maximum(np.linalg.norm(at, axis=0), 1e-6)
    shape = Legendre.basis(4)
    each = [w * shape(np.tensordot(pole, toward, 1)) for pole, w in zip(poles, weight, strict=True)]
    lobes = np.sum(each, axis=0)
    near = np.linalg.norm(at, axis=0) < SUPPORT
    lobes = lobes - lobes[near].mean()
    return radial(site, 1 + LOBES * dose * np.tanh(1.5 * lobes / lobes[near].std()))


def radial(site: Site, to: Floats | float, rim: float = 1.0) -> Floats:
    """(3, z, y, x) displacement in mm that takes what lies at ``rim`` radii from the centre to ``to`` radii.

    With t a voxel's distance from the centre in radii, it shows what lay at t · rim / to inside the new rim; from there
    the surroundings are pushed together, or drawn apart, until t = 1.6, where all is as it was.
    """
    t = np.linalg.norm(_in_radii(site), axis=0)
    outside = rim + (t - to) * (SUPPORT - rim) / (SUPPORT - to)
    source = np.where(t <= to, t * rim / to, np.where(t < SUPPORT, outside, t))
    factor = np.where(t > 1e-6, source / np.maximum(t, 1e-6), rim / to)
    shift = (factor - 1) * site.coordinates()
    return np.stack([site.smooth(part, 0.5) for part in shift])


def sphericity(site: Site, dose: float, rng: np.random.Generator) -> Floats:
    """Up to twice as long along the longest axis of its axial outline, the volume kept."""
    long = _long_axis(site)
    along = 1 + STRETCH * dose
    at = site.coordinates()
    part = np.tensordot(long, at, 1)[None] * long[:, None, None, None]
    across = at - part
    undone = part / along + across * along**0.5
    t = np.linalg.norm(_in_radii(site, undone), axis=0)
    share = 1 - ramp((t - 1.1) / (_STRETCH_ENDS - 1.1))
    return part * along**-share + across * along ** (share / 2) - at


def _long_axis(site: Site) -> Floats:
    points = np.argwhere(site.body)[:, 1:] * site.spacing_mm
    _, axes = np.linalg.eigh(np.cov(points.T))
    return np.array([0.0, *axes[:, 1]])


def _in_radii(site: Site, at: Floats | None = None) -> Floats:
    """(3, z, y, x): coordinates along the ellipsoid's axes, in its radii."""
    at = site.coordinates() if at is None else at
    return np.tensordot(site.axes.T, at, 1) / site.radii[:, None, None, None]


def warped(site: Site, shift_mm: Floats, ct: Floats) -> Floats:
    """The block's HU with every voxel taken from where ``shift_mm`` says; what does not move is not touched.

    The noise stays where it is, so that it is neither smoothed by interpolation nor stretched: of what a blur of 0.7 mm
    takes away, the part that lies in flat places. At edges it belongs to the edge and moves with it.
    """
    calm = site.smooth(ct, _NOISE_MM)
    slope = np.sqrt(np.sum(np.square(np.gradient(calm, site.spacing_mm)), axis=0))
    noise = (ct - calm) * np.exp(-((slope / (2 * site.noise_hu)) ** 2))
    return np.where(_moved(shift_mm), _taken(site, shift_mm, ct - noise, 5) + noise, ct)


def warped_mask(site: Site, shift_mm: Floats, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of the block, moved with the CT."""
    return np.where(_moved(shift_mm), _taken(site, shift_mm, mask.astype(np.float64), 1) > 0.5, mask)


def _moved(shift_mm: Floats) -> NDArray[np.bool_]:
    return np.abs(shift_mm).max(axis=0) > _STILL_MM


def _taken(site: Site, shift_mm: Floats, array: Floats, order: int) -> Floats:
    at = np.indices(array.shape, dtype=np.float64) + shift_mm / site.spacing_mm
    return ndimage.map_coordinates(array, at, order=order, mode="nearest")
