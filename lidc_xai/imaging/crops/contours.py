"""Readers' contours as masks on the stored pixel grid, as LIDC defines them, and the 50 % consensus.

An outline marks the first pixels *outside* the nodule, so the mask is what lies strictly inside: pixels on the outline
(its points and what lies on the lines between them) are excluded. An outline with inclusion = False cuts a hole:
what lies inside it and its own pixels are taken away. Holes are cut last, whatever the stored order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lidc_xai.annotations.nodule import Contour

CONSENSUS_SHARE = 0.5


@dataclass(frozen=True)
class GridBox:
    """A box of stored voxels: ``low`` and ``high`` are (i, j, k), both inside the box."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) of an array over this box."""
        width, height, depth = (high - low + 1 for low, high in zip(self.low, self.high, strict=True))
        return depth, height, width


def fill_outline(
    ij: NDArray[np.integer], low: tuple[int, int], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels strictly inside a closed outline, and pixels on it: two (rows, columns) bool arrays.

    ``ij``: (n, 2) integer column and row of the outline's points; ``low``: column and row of the arrays' first pixel.
    Even-odd rule, integer arithmetic: exact.
    """
    rows, columns = shape
    y = (np.arange(rows) + low[1])[np.newaxis, :, np.newaxis]
    x = (np.arange(columns) + low[0])[np.newaxis, np.newaxis, :]
    start = np.asarray(ij, dtype=np.int64)
    end = np.roll(start, -1, axis=0)
    # First axis: edges of the outline, then rows and columns. A ray to the right meets an odd number of edges.
    x0, y0, x1, y1 = (values[:, np.newaxis, np.newaxis] for values in (*start.T, *end.T))
    side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
    upward, downward = (y0 <= y) & (y < y1), (y1 <= y) & (y < y0)
    crossings = np.count_nonzero((upward & (side > 0)) | (downward & (side < 0)), axis=0)
    beside_x = (np.minimum(x0, x1) <= x) & (x <= np.maximum(x0, x1))
    beside_y = (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1))
    outline = ((side == 0) & beside_x & beside_y).any(axis=0)
    return (crossings % 2 == 1) & ~outline, outline


def contours_box(contours: Iterable[Contour], slices: Sequence[int], margin: int = 0) -> GridBox:
    """Smallest box around all outlines, ``margin`` voxels wider on all sides; ``slices``: stored slice of each."""
    points = np.concatenate([contour.ij for contour in contours])
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    return GridBox((int(low[0]), int(low[1]), min(slices) - margin), (int(high[0]), int(high[1]), max(slices) + margin))


def contours_mask(contours: Sequence[Contour], slices: Sequence[int], box: GridBox) -> NDArray[np.bool_]:
    """One reader's mask, (z, y, x) bool over ``box``.

    ``slices``: index of the stored slice that each contour was drawn on.
    """
    mask = np.zeros(box.shape, dtype=bool)
    for wanted in (True, False):
        for contour, k in zip(contours, slices, strict=True):
            if bool(contour.inclusion) is not wanted:
                continue
            layer = mask[k - box.low[2]]
            inside, outline = fill_outline(contour.ij, box.low[:2], box.shape[1:])
            if wanted:
                layer |= inside
            else:
                layer &= ~(inside | outline)
    return mask


def consensus_mask(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that at least half of the readers marked; ``masks``: (R, z, y, x)."""
    return masks.mean(axis=0) >= CONSENSUS_SHARE


def mask_bounds(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """First and last marked index along each axis of ``mask``, in the array's order; ``None`` for an empty mask."""
    marked = np.argwhere(mask)
    return (marked.min(axis=0), marked.max(axis=0)) if len(marked) else None


def place(masks: NDArray[np.bool_], shift: NDArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """``masks`` (R, z, y, x) put at ``shift`` (i, j, k) into arrays (R, *shape); what leaves them is cut off."""
    result = np.zeros((len(masks), *shape), bool)
    start = np.asarray(shift)[::-1]
    first, last = np.maximum(start, 0), np.minimum(start + masks.shape[1:], shape)
    if (last > first).all():
        into = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        out_of = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
        result[(slice(None), *into)] = masks[(slice(None), *out_of)]
    return result
