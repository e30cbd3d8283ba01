"""Small pictures as data URIs: CT in a named window, and signed maps in the palette.

A map is divided by a limit, the score of full colour; a patch that is stronger than that has full colour too.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

from lidc_xai.palette import LEVELS, UNSTABLE_GREY, levels_of, palette, signed_colour

WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinum": (-135.0, 215.0),
}
"""Named windows: lowest and highest HU."""

READER_COLOURS = ("#56B4E9", "#F0E442", "#CC79A7", "#2FBF8F", "#E8A33D", "#B9B9FF")
"""One per reader (after Okabe and Ito); each also has a dash pattern of its own."""
READER_DASHES = ("none", "2.2 0.9", "0.7 0.9", "2.6 0.8 0.6 0.8", "1.2 1.6", "4 1")
CONSENSUS_COLOUR = "#FFFFFF"

MOST_CELLS = 64
_UNDER_SCALE = ((83, 88, 93), (212, 215, 217))  # greys of tissue and bone in the lung window


_PALETTE_RGB = bytes(channel for level in palette() for channel in level[:3])
_PALETTE_ALPHA = bytes(level[3] for level in palette())


def data_uri(picture: Image.Image, **options: object) -> str:
    """PNG as a ``data:`` address, so that a page needs no second file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=5, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def windowed(image_hu: NDArray, window: str | tuple[float, float]) -> NDArray[np.uint8]:
    """Grey levels 0 to 255 of an HU image in a window (a name of ``WINDOWS`` or its two limits)."""
    low, high = WINDOWS[window] if isinstance(window, str) else window
    return np.round(255 * np.clip((np.asarray(image_hu, np.float32) - low) / (high - low), 0, 1)).astype(np.uint8)


def ct_picture(
    image_hu: NDArray, spacing_mm: tuple[float, float], window: str | tuple[float, float], pixels: int = 256
) -> str:
    """CT plane (h, w) in HU as a picture with square pixels, its longer side about ``pixels``."""
    return data_uri(Image.fromarray(windowed(_resized(image_hu, spacing_mm, pixels, order=3), window)))


def photograph(image: NDArray, pixels: int = 224) -> dict[str, Any]:
    """A colour image (H, W, 3), uint8 or floats in [0, 1], as ``uri``, ``width`` and ``height``; at most ``pixels``."""
    levels = image if image.dtype == np.uint8 else np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels))
    picture.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"uri": uri, "width": picture.width, "height": picture.height}


def pooled(scores: NDArray, most: int = MOST_CELLS) -> NDArray[np.float32]:
    """Maps (..., h, w) of more than ``most`` cells a side as means over blocks; others as they are.

    A pixel map has more cells than a panel has room for. Block means keep its sign and never exceed its largest score.
    """
    means: NDArray[np.float32] = np.asarray(scores, dtype=np.float32)
    for axis in (-2, -1):
        cells = means.shape[axis]
        if cells > most:
            edges = np.linspace(0, cells, most + 1).round().astype(int)
            sums: NDArray[np.float32] = np.add.reduceat(means, edges[:-1], axis=axis)
            widths = np.diff(edges).astype(np.float32)
            means = (sums / (widths[:, None] if axis == -2 else widths)).astype(np.float32)
    return means


def map_picture(
    scores: NDArray,
    limit: float,
    size_mm: tuple[float, float],
    pixels: int = 112,
    stable: NDArray[np.bool_] | None = None,
) -> str:
    """Signed scores (gh, gw) in display order over a plane of ``size_mm``: bilinear (for display only), see-through.

    ``limit`` is the absolute score of full colour. ``stable``: patches that are coloured; the others are grey.
    """
    scores = pooled(scores)
    token_mm = (size_mm[0] / scores.shape[0], size_mm[1] / scores.shape[1])
    smooth = _resized(scores, token_mm, pixels, order=1)
    strength = smooth / limit if limit > 0 else np.zeros_like(smooth)
    levels = levels_of(strength)
    if stable is not None:
        rgba = np.array(palette(), dtype=np.uint8)[levels]
        rgba[_resized(pooled(stable), token_mm, pixels, order=0) < 0.5, :3] = UNSTABLE_GREY
        return data_uri(Image.fromarray(rgba))
    picture = Image.fromarray(levels, mode="P")
    picture.putpalette(_PALETTE_RGB)
    return data_uri(picture, transparency=_PALETTE_ALPHA)


@lru_cache(maxsize=2)
def scale_picture(first: int = -1) -> str:
    """The palette from ``first`` (−1 or 0, left) to +1 over dark and light grey, as it looks over a CT."""
    rgba = np.array(palette(), dtype=np.float64)[LEVELS if first == 0 else 0 :]
    alpha = rgba[:, 3:] / 255
    rows = [np.round(alpha * rgba[:, :3] + (1 - alpha) * grey) for grey in _UNDER_SCALE]
    return data_uri(Image.fromarray(np.repeat(np.stack(rows), 8, axis=0).astype(np.uint8)))


def _resized(image: NDArray, spacing_mm: tuple[float, float], pixels: int, order: int) -> NDArray[np.float32]:
    """Interpolate to square pixels with pixel edges (not centres) kept in place."""
    extent = np.array(image.shape) * spacing_mm
    height, width = np.maximum(np.round(extent * pixels / extent.max()), 1).astype(int).tolist()
    rows, columns = _stretch(image.shape[0], height, order), _stretch(image.shape[1], width, order)
    return (rows @ np.asarray(image, np.float64) @ columns.T).astype(np.float32)


@lru_cache(maxsize=64)
def _stretch(cells: int, pixels: int, order: int) -> NDArray[np.float64]:
    """(pixels, cells): splines in one direction as a matrix; a page stretches many planes of one shape."""
    return zoom(np.eye(cells), (pixels / cells, 1), order=order, mode="nearest", grid_mode=True)


def signed_gradient_css(first: int = -1) -> str:
    """The palette as stops of a CSS ``linear-gradient`` from ``first`` (−1 or 0, left) to +1 (right)."""
    stops = []
    for step in range(8 * first, 9):
        red, green, blue, alpha = signed_colour(step / 8 or 1e-9)
        stops.append(f"rgba({red},{green},{blue},{alpha:.3f}) {100 * (step / 8 - first) / (1 - first):.2f}%")
    return ", ".join(stops)
