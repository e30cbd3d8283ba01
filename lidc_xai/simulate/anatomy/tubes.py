"""Tubes on voxels: the share of every voxel that lies inside them.

Thin tubes are laid down as points, each with the volume of its piece (a vessel thinner than a voxel shows by its share
of it); thick ones by their distance to the axis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lidc_xai.simulate.anatomy.tree import Tubes
from lidc_xai.simulate.grid import Floats, Grid

THICK_PIXELS = 1.6
"""Tubes of a larger radius are drawn by distance, thinner ones as points."""
DISC = 9
"""Points that stand for the cross-section of a tube thicker than half a pixel."""


def tube_share(grid: Grid, tubes: Tubes) -> NDArray[np.float32]:
    """(z, y, x) share of each voxel of ``grid`` inside the tubes, 0 to 1."""
    low, high = _corners(grid)
    near = ((tubes.high >= low) & (tubes.low <= high)).all(axis=1)
    tubes = tubes.chosen(np.asarray(near))
    thick = np.maximum(tubes.r0, tubes.r1) > THICK_PIXELS * grid.spacing_mm
    share = _points_share(grid, tubes.chosen(~thick))
    for start, end, r0, r1 in _rows(tubes.chosen(thick)):
        _add_thick(share, grid, start, end, r0, r1)
    return np.minimum(share, 1.0, out=share)


def _corners(grid: Grid) -> tuple[Floats, Floats]:
    margin = np.array([grid.spacing_mm, grid.spacing_mm, grid.thickness_mm / 2])
    low = np.array([grid.x_mm[0], grid.y_mm[0], grid.z_mm[0]]) - margin
    high = np.array([grid.x_mm[-1], grid.y_mm[-1], grid.z_mm[-1]]) + margin
    return low, high


def _rows(tubes: Tubes) -> zip:
    return zip(tubes.start, tubes.end, tubes.r0, tubes.r1, strict=True)


def _points_share(grid: Grid, tubes: Tubes) -> NDArray[np.float32]:
    """Points every half pixel along the axes, their volume spread over the four nearest pixels of their slice."""
    total = np.zeros(int(np.prod(grid.shape)), np.float32)
    if not len(tubes):
        return total.reshape(grid.shape)
    length = np.linalg.norm(tubes.end - tubes.start, axis=1)
    n = np.maximum(np.ceil(length / (0.5 * grid.spacing_mm)).astype(int), 1)
    which = np.repeat(np.arange(len(tubes)), n)
    t = (np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) + 0.5) / n[which]
    points = tubes.start[which] + t[:, None] * (tubes.end - tubes.start)[which]
    radius = tubes.r0[which] + t * (tubes.r1 - tubes.r0)[which]
    share = np.pi * radius**2 * (length / n)[which] / (grid.spacing_mm**2 * grid.thickness_mm)
    wide = radius > 0.5 * grid.spacing_mm
    spread = _discs(points[wide], (tubes.end - tubes.start)[which][wide], radius[wide])
    points = np.concatenate([points[~wide], spread])
    share = np.concatenate([share[~wide], np.repeat(share[wide] / DISC, DISC)])
    i = (points[:, 0] - grid.x0_mm) / grid.spacing_mm
    j = (points[:, 1] - grid.y0_mm) / grid.spacing_mm
    half = grid.thickness_mm / 2
    first = np.searchsorted(grid.z_mm, points[:, 2] - half)
    last = np.searchsorted(grid.z_mm, points[:, 2] + half)
    ok = (i > 0) & (i < grid.columns - 1) & (j > 0) & (j < grid.rows - 1)
    for step in range(int((last - first).max(initial=0))):
        now = ok & (first + step < last)
        _spread(total, grid, i[now], j[now], (first + step)[now], share[now])
    return total.reshape(grid.shape)


def _discs(points: Floats, along: Floats, radius: Floats) -> Floats:
    """(n * DISC, 3) points spread evenly over discs across ``along``."""
    across = np.cross(along, [0.31, 0.17, 1.0])
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    other = np.cross(along, across)
    other /= np.maximum(np.linalg.norm(other, axis=1, keepdims=True), 1e-9)
    m = np.arange(DISC)
    r, angle = np.sqrt((m + 0.5) / DISC), m * 2.39996  # the golden angle
    u, v = r * np.cos(angle), r * np.sin(angle)
    offsets = u[:, None] * across[:, None] + v[:, None] * other[:, None]
    return (points[:, None] + radius[:, None, None] * offsets).reshape(-1, 3)


def _spread(total: Floats, grid: Grid, i: Floats, j: Floats, k: NDArray[np.intp], share: Floats) -> None:
    i0, j0 = i.astype(int), j.astype(int)
    fi, fj = i - i0, j - j0
    base = (k * grid.rows + j0) * grid.columns + i0
    for dj, wj in ((0, 1 - fj), (1, fj)):
        for di, wi in ((0, 1 - fi), (1, fi)):
            np.add.at(total, base + dj * grid.columns + di, (share * wi * wj).astype(np.float32))


def _add_thick(share: Floats, grid: Grid, start: Floats, end: Floats, r0: float, r1: float) -> None:
    """The larger of what is there and one tapering capsule with an edge one pixel wide."""
    reach = max(r0, r1) + grid.spacing_mm
    box = grid.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    if box is None:
        return
    part = grid.part(*box)
    x, y = part.x_mm[None, None, :] - start[0], part.y_mm[None, :, None] - start[1]
    mean = np.zeros(part.shape, np.float32)
    for offset in grid.sub_offsets_mm:
        z = (part.z_mm + offset)[:, None, None] - start[2]
        mean += np.clip(0.5 - capsule(x, y, z, end - start, r0, r1) / grid.spacing_mm, 0, 1)
    np.maximum(share[box], mean / len(grid.sub_offsets_mm), out=share[box])


def capsule(x: Floats, y: Floats, z: Floats, along: Floats, r0: float, r1: float) -> Floats:
    """Signed distance in mm to a tapering capsule from the origin to ``along`` (3,), radii ``r0`` to ``r1``."""
    t = np.clip((x * along[0] + y * along[1] + z * along[2]) / max(float(along @ along), 1e-9), 0, 1)
    away = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2)
    return away - (r0 + t * (r1 - r0))
