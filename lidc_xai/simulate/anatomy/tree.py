"""Blood vessels of the lung: trees that grow from the hilum and fill the lung, tapering at every fork.

Growth: all ends (one per small piece of lung) hang on the root; a group of ends draws one branch towards its middle and
is then cut in two along its longest direction, until every end has its own twig. Radius by Murray's law,
r = r_end · (ends that hang on it)^(1/2.8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

END_RADIUS_MM = 0.32
MURRAY = 1 / 2.8
PIECES = 4
"""Straight pieces that a curved branch is drawn with."""


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
