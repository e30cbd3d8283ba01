"""Which readings mean the same nodule: groups as ``pylidc.Scan.cluster_annotations()`` makes them, much faster.

distance(a, b) = smallest Euclidean distance between their contour points in (column, row, slice index) units.
Two readings are linked where distance ≤ tolerance; groups are the connected components. The tolerance starts as the
slice thickness (a number of mm used on index units: pylidc's convention) and shrinks by 0.9 until no group has more
than four readings, or until it would fall below 0.1. Groups are sorted by the mean slice index of their readings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lidc_xai.annotations.nodule import MOST_READERS, Reading

SHRINK = 0.9
SMALLEST_TOLERANCE = 0.1


def cluster_readings(readings: Sequence[Reading], tolerance: float) -> tuple[list[list[Reading]], bool]:
    """Group the readings of one scan; ``tolerance`` is the slice thickness.

    Returns the groups, and whether the scan is ambiguous: some group stayed larger than four readers.
    """
    if not readings:
        return [], False
    distances = _distances(readings, tolerance)
    groups = _components(distances, tolerance)
    ambiguous = False
    while np.bincount(groups).max() > MOST_READERS:
        tolerance *= SHRINK
        if tolerance < SMALLEST_TOLERANCE:
            ambiguous = True
            break
        groups = _components(distances, tolerance)
    members = [[readings[n] for n in np.flatnonzero(groups == group).tolist()] for group in range(groups.max() + 1)]
    # sorted() is stable, as in pylidc: groups at the same height keep the order of their first reading.
    return sorted(members, key=lambda group: np.mean([reading.centroid[2] for reading in group])), ambiguous


def _components(distances: NDArray[np.float64], tolerance: float) -> NDArray[np.int32]:
    return connected_components(distances <= tolerance, directed=False)[1]


def _distances(readings: Sequence[Reading], tolerance: float) -> NDArray[np.float64]:
    """(n, n) smallest distances; infinite where the bounding boxes alone are further apart than ``tolerance``.

    The tolerance only ever shrinks, so the exact value of a larger distance is never asked for.
    """
    n = len(readings)
    distances = np.full((n, n), np.inf)
    np.fill_diagonal(distances, 0.0)
    low = np.array([reading.points.min(axis=0) for reading in readings])
    high = np.array([reading.points.max(axis=0) for reading in readings])
    gap = np.maximum(0, np.maximum(low[:, None] - high[None], low[None] - high[:, None]))
    near = (gap.astype(float) ** 2).sum(axis=2) <= tolerance**2 + 1e-9
    places = {n: set(_codes(readings[n].points)) for n in np.flatnonzero(near.sum(axis=0) > 1).tolist()}
    trees: dict[int, cKDTree] = {}
    for a, b in np.argwhere(np.triu(near, 1)).tolist():
        if not places[a].isdisjoint(places[b]):  # readers of one nodule nearly always share a pixel
            distances[a, b] = distances[b, a] = 0.0
            continue
        tree = trees.get(b) or trees.setdefault(b, cKDTree(readings[b].points))
        # Indices are whole numbers: the squared distance is one too, and rounding makes its root pylidc's exactly.
        nearest = tree.query(readings[a].points, distance_upper_bound=tolerance + 1)[0].min()
        distances[a, b] = distances[b, a] = np.sqrt(np.round(nearest**2))
    return distances


def _codes(points: NDArray[np.int32]) -> list[int]:
    """One number for each (column, row, slice): equal where the place is the same."""
    column, row, place = points.astype(np.int64).T
    numbers: list[int] = ((column << 42) + (row << 21) + place).tolist()
    return numbers
