"""Spicules: thin tapering spikes that stand on the nodule's surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.simulate.anatomy.tree import Tubes
from lidc_xai.simulate.grid import IMAGE_PIXELS
from lidc_xai.simulate.nodule.outline import Outline

MOST = 48
_RATING = (1.0, 1.4, 2.0, 3.0, 4.0, 5.0)
_NUMBER = (0.0, 2.0, 6.0, 13.0, 20.0, 28.0)
_LENGTH_MM = (3.0, 3.5, 4.5, 6.5, 8.5, 11.0)


def spicule_tubes(outline: Outline, spiculation: float, rng: np.random.Generator) -> Tubes:
    """The spicules of a nodule rated ``spiculation`` (1: none); their number and length grow with rating and size.

    All possible ones are drawn first and the wanted number taken, so that a change of rating adds or removes some and
    leaves the others where they are.
    """
    direction = rng.normal(size=(MOST, 3)) * (1, 1, 0.5)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    size = float(np.clip(outline.radius_mm / 4.5, 0.7, 1.6))
    length = np.interp(spiculation, _RATING, _LENGTH_MM) * size**0.5 * rng.uniform(0.5, 1.25, MOST)
    thick = rng.uniform(0.65, 1.15, MOST) * size**0.3
    bend = rng.normal(size=(MOST, 3)) * 0.15
    n = min(round(float(np.interp(spiculation, _RATING, _NUMBER)) * size), MOST)
    root = np.array([_surface(outline, d) for d in direction[:n]]).reshape(-1, 3)
    direction, length, thick, bend = direction[:n], length[:n, None], thick[:n], bend[:n]
    middle = root + 0.5 * length * direction
    tip = root + length * (direction + bend)
    return Tubes(
        np.concatenate([root - 0.8 * direction, middle]), np.concatenate([middle, tip]),
        np.concatenate([thick, 0.6 * thick]), np.concatenate([0.6 * thick, np.full(n, 0.3)]),
    )  # fmt: skip


def _surface(outline: Outline, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a ray from the middle leaves the nodule for the last time."""
    reach = np.linalg.norm(outline.high - outline.low) + 2
    steps = np.arange(0.0, reach, 0.4)
    points = outline.centre_mm + steps[:, None] * direction
    origin = -(IMAGE_PIXELS - 1) / 2 * outline.spacing_mm
    k = np.interp(points[:, 2], outline.z_mm, np.arange(len(outline.z_mm)))
    j = (points[:, 1] - origin) / outline.spacing_mm - outline.j0
    i = (points[:, 0] - origin) / outline.spacing_mm - outline.i0
    inside = map_coordinates(outline.planes, [k, j, i], order=1, mode="nearest") < 0
    inside &= (points[:, 2] > outline.z_mm[0]) & (points[:, 2] < outline.z_mm[-1])
    return points[np.flatnonzero(inside)[-1]] if inside.any() else outline.centre_mm
