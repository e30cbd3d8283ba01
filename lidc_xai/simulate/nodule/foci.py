"""Calcified foci by LIDC's code: 1 popcorn, 2 laminated, 3 solid, 4 non-central, 5 central, 6 absent."""

from __future__ import annotations

import numpy as np

from lidc_xai.ratings import CALCIFICATION_ABSENT
from lidc_xai.simulate.grid import Floats
from lidc_xai.simulate.nodule.expression import Expression

POPCORN, LAMINATED, SOLID, NON_CENTRAL, CENTRAL = 1, 2, 3, 4, 5
EDGE_MM = 0.5


def calcified_share(
    distance: Floats, dx: Floats, dy: Floats, dz: Floats, depth: float, look: Expression, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Share of each voxel that is calcium, and its density in HU.

    ``distance``: signed distance to the nodule's surface in mm; ``dx``, ``dy``, ``dz``: mm from its middle; ``depth``:
    of its deepest point. Calcium that only some readers saw is less dense.
    """
    density = float(rng.uniform(380, 850))
    if look.calcification == CALCIFICATION_ABSENT:
        return np.zeros_like(distance), density
    share = _foci(distance, dx, dy, dz, depth, look.calcification, rng)
    return np.minimum(share, inside_share(distance + 0.2)), 40 + (density - 40) * (0.4 + 0.6 * look.calcified)


def _foci(
    distance: Floats, dx: Floats, dy: Floats, dz: Floats, depth: float, code: int, rng: np.random.Generator
) -> Floats:
    if code == SOLID:
        return inside_share(distance + 0.2 * depth)
    if code == LAMINATED:
        rings = (0.35,) if depth < 3 else (0.25, 0.65)
        return inside_share(
            np.minimum.reduce([np.abs(distance + ring * depth) - max(0.45, 0.07 * depth) for ring in rings])
        )
    if code == CENTRAL:
        return _ball(dx, dy, dz, np.zeros(3), float(np.clip(0.45 * depth, 1.1, 7)))
    if code == NON_CENTRAL:
        return _ball(dx, dy, dz, _direction(rng) * 0.5 * depth, float(np.clip(0.36 * depth, 1.0, 5)))
    blobs = [
        _ball(dx, dy, dz, _direction(rng) * rng.uniform(0.2, 0.85) * depth,
              float(np.clip(rng.uniform(0.15, 0.3) * depth, 0.75, 3.5)))
        for _ in range(int(rng.integers(8, 14)))
    ]  # fmt: skip
    return np.maximum.reduce(blobs)


def _direction(rng: np.random.Generator) -> Floats:
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction)


def _ball(dx: Floats, dy: Floats, dz: Floats, centre: Floats, radius: float) -> Floats:
    away = np.sqrt((dx - centre[0]) ** 2 + (dy - centre[1]) ** 2 + (dz - centre[2]) ** 2)
    return inside_share(away - radius)


def inside_share(distance: Floats) -> Floats:
    """Share of a voxel inside a surface at signed ``distance`` mm (negative inside)."""
    return np.clip(0.5 - distance / EDGE_MM, 0, 1)
