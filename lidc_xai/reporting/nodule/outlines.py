"""Masks to outlines: closed curves at the border of a mask, in mm of the displayed plane, as SVG path data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import find_contours

_SMOOTHING = 0.8  # pixels
_PAD = 4  # pixels, the reach of the smoothing
_STRAIGHT = 0.04  # pixels
_MARGIN = 0.08  # how far from the level of the outline a pixel's centre is kept


def outline_path(mask: NDArray, spacing_mm: tuple[float, float]) -> str:
    """SVG path of the outline of ``mask`` (h, w) in display order.

    Coordinates are mm from the picture's top left corner, so a pixel (row r, column c) covers
    c·dx to (c + 1)·dx. The stairs of the pixels are smoothed, but the centre of every pixel of the mask stays inside
    the line and that of every other pixel outside. An empty mask has the path ``""``.
    """
    inside = np.asarray(mask, dtype=bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return ""
    inside = np.pad(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], _PAD)
    soft = gaussian_filter(inside.astype(np.float32), _SMOOTHING)
    level = np.where(inside, np.maximum(soft, 0.5 + _MARGIN), np.minimum(soft, 0.5 - _MARGIN))
    corner = np.array([rows[0], columns[0]]) - _PAD + 0.5  # a pixel's centre lies at one half
    pieces = []
    for curve in find_contours(level, 0.5):
        points = (_thinned(_cut_corners(curve)) + corner) * spacing_mm
        pieces.append("M" + ("%.2f %.2fL" * len(points))[:-1] % tuple(points[:, ::-1].ravel()) + "Z")
    return "".join(pieces)


def _cut_corners(curve: NDArray) -> NDArray:
    """One round of Chaikin's rule on a closed curve (n, 2) whose last point repeats its first; it is not repeated."""
    start, end = curve[:-1], curve[1:]
    cut = np.empty((2 * len(start), 2))
    cut[0::2] = 0.75 * start + 0.25 * end
    cut[1::2] = 0.25 * start + 0.75 * end
    return cut


def _thinned(points: NDArray) -> NDArray:
    """A closed curve without points that lie on the line between their neighbours, within ``_STRAIGHT`` pixels."""
    for _ in range(2):
        closed = np.concatenate([points[-1:], points, points[:1]])
        along, off = closed[2:] - closed[:-2], points - closed[:-2]
        away = np.abs(along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0])
        straight = away <= _STRAIGHT * np.hypot(along[:, 0], along[:, 1])
        straight[1::2] = False  # of two neighbours, one stays
        points = points[~straight]
    return points


def dice(first: NDArray, second: NDArray) -> float | None:
    """Dice overlap of two masks; ``None`` where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else None
