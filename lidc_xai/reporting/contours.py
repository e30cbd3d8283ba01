"""Masks to outlines: closed curves at the border of a mask, in mm of the displayed plane, as SVG path data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import find_contours

_SMOOTHING = 0.8  # pixels
_MARGIN = 0.08  # how far from the level of the outline a pixel's centre is kept


def outline_path(mask: NDArray, spacing_mm: tuple[float, float]) -> str:
    """SVG path of the outline of ``mask`` (h, w) in display order.

    Coordinates are mm from the picture's top left corner, so a pixel (row r, column c) covers
    c·dx to (c + 1)·dx. The stairs of the pixels are smoothed, but the centre of every pixel of the mask stays inside
    the line and that of every other pixel outside. An empty mask has the path ``""``.
    """
    inside = np.pad(np.asarray(mask, dtype=bool), 2)
    if not inside.any():
        return ""
    soft = gaussian_filter(inside.astype(np.float32), _SMOOTHING)
    level = np.where(inside, np.maximum(soft, 0.5 + _MARGIN), np.minimum(soft, 0.5 - _MARGIN))
    pieces = []
    for curve in find_contours(level, 0.5):
        points = (_cut_corners(curve) - 1.5) * spacing_mm  # padding adds two pixels, a pixel's centre lies at one half
        pieces.append("M" + "L".join(f"{x:.2f} {y:.2f}" for y, x in points[:-1]) + "Z")
    return "".join(pieces)


def _cut_corners(curve: NDArray) -> NDArray:
    """One round of Chaikin's rule on a closed curve (n, 2) whose last point repeats its first."""
    start, end = curve[:-1], curve[1:]
    cut = np.empty((2 * len(start), 2))
    cut[0::2] = 0.75 * start + 0.25 * end
    cut[1::2] = 0.25 * start + 0.75 * end
    return np.concatenate([cut, cut[:1]])


def dice(first: NDArray, second: NDArray) -> float | None:
    """Dice overlap of two masks; ``None`` where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else None
