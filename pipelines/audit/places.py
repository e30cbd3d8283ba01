"""Places in a scan that hold no nodule: empty lung, a vessel, the pleura, whatever lies apart from every contour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KINDS = ("lung", "vessel", "pleura")
APART = "apart"
"""The first place drawn that is apart from every reader's contour, whatever lies there: no kind is looked for."""
TISSUE_HU = -500.0
STEP_MM = 3.0
LARGEST_VESSEL_MM2 = 80.0


def place_kind(hu: NDArray[np.floating], spacing_mm: float) -> str | None:
    """What lies in the middle of a box (z, y, x) of HU, or None where it is neither of ``KINDS``.

    lung: no tissue (above -500 HU) within 5 mm of the middle in its slice and less than 4 % in the box's slice; vessel:
    tissue in the middle that is an island of less than 80 mm² in its slice and goes on through all slices, in a box
    that is lung by 3/4; pleura: the middle lies within 2 mm of the edge of tissue that fills 25 to 65 % of the slice
    and reaches its border.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float64), (0, 0.5 / spacing_mm, 0.5 / spacing_mm))
    tissue = smooth > TISSUE_HU
    plane = tissue[len(tissue) // 2]
    y, x = (side // 2 for side in plane.shape)
    away = ndimage.distance_transform_edt(~plane) * spacing_mm if plane.any() else np.full(plane.shape, np.inf)
    share = float(plane.mean())
    if away[y, x] > 5 and share < 0.04:
        return "lung"
    parts, _ = ndimage.label(plane)
    if parts[y, x] and share < 0.25:
        island = parts == parts[y, x]
        border = island[[0, -1]].any() or island[:, [0, -1]].any()
        solid, _ = ndimage.label(tissue)
        body = solid == solid[len(tissue) // 2, y, x]
        if island.sum() * spacing_mm**2 < LARGEST_VESSEL_MM2 and not border and body.any((1, 2)).all():
            return "vessel"
        return None
    inside = ndimage.distance_transform_edt(plane) * spacing_mm
    near = (inside if plane[y, x] else away)[y, x] <= 2
    if near and 0.25 <= share <= 0.65:
        largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
        if largest[[0, -1]].any() or largest[:, [0, -1]].any():
            return "pleura"
    return None


def places(
    hu: NDArray[np.floating], marked: NDArray[np.bool_], spacing_mm: float, box_mm: float, seed: int,
    others_mm: Sequence[tuple[float, float, float]] = (),
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Kind (or ``APART``) -> (row, column) of a place whose box lies within the pictures and holds no marked pixel of
    any slice.

    ``hu`` and ``marked``: (slices, rows, columns), masks of any reader; ``others_mm``: (row, column, radius) in mm of
    other nodules of these slices. Places are tried every 3 mm in a seeded order.
    """
    half = int(np.ceil(box_mm / 2 / spacing_mm))
    rows, columns = hu.shape[1:]
    shadow = marked.any(0)
    step = max(1, round(STEP_MM / spacing_mm))
    grid = [(r, c) for r in range(half, rows - half, step) for c in range(half, columns - half, step)]
    found: dict[str, tuple[int, int]] = {}
    for place in np.random.default_rng(seed).permutation(len(grid)):
        r, c = grid[place]
        if shadow[r - half : r + half, c - half : c + half].any() or any(
            max(abs(r * spacing_mm - y), abs(c * spacing_mm - x)) < box_mm / 2 + radius for y, x, radius in others_mm
        ):
            continue
        found.setdefault(APART, (r, c))
        r, c = _on_tissue(hu, r, c, half, shadow)
        kind = place_kind(hu[:, r - half : r + half, c - half : c + half], spacing_mm)
        if kind is not None:
            found.setdefault(kind, (r, c))
        if len(found) > len(KINDS):
            break
    return found


def _on_tissue(hu: NDArray[np.floating], r: int, c: int, half: int, shadow: NDArray[np.bool_]) -> tuple[int, int]:
    """The middle of the nearest island of tissue within 4 pixels, where there is one: a vessel is met in its middle."""
    window = hu[len(hu) // 2, r - 4 : r + 5, c - 4 : c + 5] > TISSUE_HU
    if not window[2:7, 2:7].any() or window.mean() > 0.5:
        return r, c
    y, x = (round(value) for value in ndimage.center_of_mass(window))
    r, c = r + y - 4, c + x - 4
    rows, columns = shadow.shape
    inside = half <= r < rows - half and half <= c < columns - half
    free = inside and not shadow[r - half : r + half, c - half : c + half].any()
    return (r, c) if free else (r - y + 4, c - x + 4)
