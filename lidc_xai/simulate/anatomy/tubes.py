"""Blood vessels of the lung: trees that grow from the hilum and fill the lung, tapering at every fork, put on voxels.

Growth: all ends (one per small piece of lung) hang on the root; a group of ends draws one branch towards its middle and
is then cut in two along its longest direction, until every end has its own twig. Radius by Murray's law, r = r_end ·
(ends that hang on it)^(1/2.8). On voxels a tube is the share of each that lies inside it. Thin tubes are laid down as
points, each with the volume of its piece (a vessel thinner than a voxel shows by its share of it); thick ones by their
distance to the axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.simulate.grid import Floats, Grid

END_RADIUS_MM = 0.32
MURRAY = 1 / 2.8
PIECES = 4
"""Straight pieces that a curved branch is drawn with."""
THICK_PIXELS = 1.6
"""Tubes of a larger radius are drawn by distance, thinner ones as points."""
DISC = 9
"""Points that stand for the cross-section of a tube thicker than half a pixel."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """Straight tapering pieces: ``start``, ``end`` (n, 3) mm, ``r0``, ``r1`` (n,) radii at the two ends in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    r0: NDArray[np.float64]
    r1: NDArray[np.float64]

    def chosen(self, which: NDArray[np.bool_]) -> Tubes:
        """The pieces for which ``which`` (n,) is true."""
        return Tubes(self.start[which], self.end[which], self.r0[which], self.r1[which])

    def wider(self, by_mm: float) -> Tubes:
        """The same pieces, thicker by ``by_mm`` all round."""
        return Tubes(self.start, self.end, self.r0 + by_mm, self.r1 + by_mm)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def low(self) -> NDArray[np.float64]:
        """(n, 3) lower corners of the boxes around the pieces."""
        return np.minimum(self.start, self.end) - np.maximum(self.r0, self.r1)[:, None]

    @property
    def high(self) -> NDArray[np.float64]:
        """(n, 3) upper corners."""
        return np.maximum(self.start, self.end) + np.maximum(self.r0, self.r1)[:, None]


def join(parts: list[Tubes]) -> Tubes:
    """All pieces of several sets of tubes."""
    return Tubes(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "end", "r0", "r1")))


def grow(
    ends: NDArray[np.float64], weight: NDArray[np.float64], root: NDArray[np.float64], rng: np.random.Generator
) -> Tubes:
    """A tree from ``root`` (3,) to every one of ``ends`` (n, 3), in mm; each stands for ``weight`` (n,) ends."""
    group = np.zeros(len(ends), int)
    at, heading = root[None].astype(float), np.zeros((1, 3))
    radius = np.array([END_RADIUS_MM * weight.sum() ** MURRAY])
    parts: list[Tubes] = []
    while len(group):
        count = np.bincount(group, minlength=len(at))
        carried = np.bincount(group, weights=weight, minlength=len(at))
        middle = _mean(ends, weight, group, carried)
        single = count == 1
        reach = np.where(single, 1.0, rng.uniform(0.3, 0.55, len(at)))[:, None]
        fork = at + reach * (middle - at)
        length = np.linalg.norm(fork - at, axis=1, keepdims=True)
        fork += np.where(single[:, None], 0.0, 0.05 * length * rng.normal(size=fork.shape))
        slim = END_RADIUS_MM * carried**MURRAY
        parts.append(_curved(at, heading, fork, np.minimum(radius, slim * 1.1), slim * 0.92, rng))
        going_on = count[group] > 1
        ends, weight, group = ends[going_on], weight[going_on], group[going_on]
        group, at, heading, radius = _split(ends, group, middle, at, fork, slim, rng)
    return join(parts)


def _mean(points: NDArray, weight: NDArray, group: NDArray, carried: NDArray) -> NDArray[np.float64]:
    sums = [np.bincount(group, weights=weight * points[:, axis], minlength=len(carried)) for axis in range(3)]
    return np.stack(sums, axis=1) / carried[:, None]


def _split(
    ends: NDArray, group: NDArray, middle: NDArray, at: NDArray, fork: NDArray, slim: NDArray, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Cut every group in two across its longest direction; returns the new groups, their place, heading and radius."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # cuts must not line up with the axes
    away = (ends - middle[group]) @ turn
    spread = np.stack([np.bincount(group, weights=away[:, k] ** 2, minlength=len(at)) for k in range(3)], axis=1)
    longest = spread.argmax(axis=1)[group]
    side = away[np.arange(len(ends)), longest] > 0
    kept, new = np.unique(2 * group + side, return_inverse=True)
    parent = kept // 2
    return new, fork[parent], fork[parent] - at[parent], slim[parent]


def _curved(
    start: NDArray, heading: NDArray, end: NDArray, r0: NDArray, r1: NDArray, rng: np.random.Generator
) -> Tubes:
    """Branches that leave in their parent's direction and bend towards their end (quadratic curves)."""
    along = end - start
    length = np.linalg.norm(along, axis=1, keepdims=True)
    norm = np.linalg.norm(heading, axis=1, keepdims=True)
    direction = np.where(norm > 0, heading / np.maximum(norm, 1e-9), along / np.maximum(length, 1e-9))
    bend = start + 0.5 * along + 0.22 * length * (direction - along / np.maximum(length, 1e-9))
    bend += 0.04 * length * rng.normal(size=along.shape)
    t = np.linspace(0, 1, PIECES + 1)[:, None, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    radii = r0 + (r1 - r0) * t[:, :, 0]
    return Tubes(points[:-1].reshape(-1, 3), points[1:].reshape(-1, 3), radii[:-1].reshape(-1), radii[1:].reshape(-1))


def tube_share(grid: Grid, tubes: Tubes) -> NDArray[np.float32]:
    """(z, y, x) share of each voxel of ``grid`` inside the tubes, 0 to 1."""
    margin = np.array([grid.spacing_mm, grid.spacing_mm, grid.thickness_mm / 2])
    low, high = grid.corners_mm
    low, high = low - margin, high + margin
    near = ((tubes.high >= low) & (tubes.low <= high)).all(axis=1)
    tubes = tubes.chosen(np.asarray(near))
    thick = np.maximum(tubes.r0, tubes.r1) > THICK_PIXELS * grid.spacing_mm
    share = _points_share(grid, tubes.chosen(~thick))
    large = tubes.chosen(thick)
    for piece in zip(large.start, large.end, large.r0, large.r1, strict=True):
        _add_thick(share, grid, *piece)
    return np.minimum(share, 1.0, out=share)


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
