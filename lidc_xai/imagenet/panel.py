"""One sheet per photograph: classes below each other, methods side by side, raw maps shown signed over the photograph.

Blue speaks against the class, orange for it; without relevance the photograph stays grey. Every map has its own scale,
which stands under it: colours compare places within a map, not maps with each other. Pixel maps are scaled by the
99.5th percentile of their absolute values, since single pixels would leave everything else grey; ReciproCAM's scores,
whose zero means nothing, from their lowest to their highest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lidc_xai.files import atomic_path, write_json
from lidc_xai.imagenet.photographs import Photo
from lidc_xai.palette import UNSTABLE_GREY, levels_of, palette

_CELL_INCHES = 2.3
_QUANTILE = 0.995
LONGEST_TITLE = 90


def strength(relevance: np.ndarray, method: str, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """(H, W) in −1 … 1 for display, resized bilinearly, and its scale in words, of a raw map (h, w)."""
    full = torch.from_numpy(np.ascontiguousarray(relevance, dtype=np.float32))[None, None]
    shown = torch.nn.functional.interpolate(full, size=size, mode="bilinear")[0, 0].numpy()
    if method == "reciprocam":
        low, high = float(relevance.min()), float(relevance.max())
        return np.clip((shown - low) / ((high - low) or 1), 0, 1), f"{low:.3g} … {high:.3g}"
    pixels = relevance.shape == size
    limit = float(np.quantile(np.abs(relevance), _QUANTILE) if pixels else np.abs(relevance).max())
    words = f"±{limit:.2g}" + (f" ({_QUANTILE:.1%} of pixels)" if pixels else "")
    return np.clip(shown / (limit or 1), -1, 1), words


def overlay(pixels: np.ndarray, strength: np.ndarray, stable: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) in [0, 1]: signed strength (H, W) over the grey photograph (H, W, 3) uint8; ``stable`` (h, w) bool:
    patches that are coloured, the others are grey.
    """
    grey = pixels.astype(np.float32).mean(-1, keepdims=True) / 255
    rgba = np.array(palette(), dtype=np.float32)[levels_of(strength)] / 255
    if stable is not None:
        known = torch.from_numpy(np.ascontiguousarray(stable, dtype=np.float32))[None, None]
        sized = torch.nn.functional.interpolate(known, size=strength.shape, mode="nearest-exact")[0, 0].numpy()
        rgba[sized < 0.5, :3] = UNSTABLE_GREY / 255
    return np.clip(grey * (1 - rgba[..., 3:]) + rgba[..., 3:] * rgba[..., :3], 0, 1)


def draw_panel(
    path: Path,
    pixels: np.ndarray,
    maps: Mapping[str, np.ndarray],
    rows: Sequence[str],
    title: str,
    warning: str | None = None,
    picture: str = "photograph",
    stable: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a PNG. ``maps``: method (a variant's name on a line below it) → (T, h, w) raw scores; ``rows``: T labels;
    ``warning``: a line in red on top; ``picture``: heading of the first column; ``stable``: method → (T, h, w)
    bool, what is coloured (else everything).
    """
    settled = stable or {}
    columns = [picture, *maps]
    figure = Figure(
        figsize=(_CELL_INCHES * len(columns) + 0.3, (_CELL_INCHES * 1.08) * len(rows) + (1.0 if warning else 0.7)),
        dpi=110, layout="constrained",
    )  # fmt: skip
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for r, label in enumerate(rows):
        for c, name in enumerate(columns):
            axis = axes[r, c]
            axis.set_xticks([])
            axis.set_yticks([])
            if r == 0:
                axis.set_title(name, fontsize=8)
            if c == 0:
                axis.imshow(pixels)
                axis.set_ylabel(label, fontsize=8)
                continue
            shown, scale = strength(maps[name][r], name.partition("\n")[0], pixels.shape[:2])
            axis.imshow(overlay(pixels, shown, settled[name][r] if name in settled else None))
            axis.set_xlabel(scale, fontsize=7)
    figure.suptitle(title, fontsize=9)
    if warning:
        figure.supxlabel(warning.upper(), fontsize=10, color="crimson", fontweight="bold")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "lidc_xai", "Comment": warning or title})


def write_photo_files(
    folder: Path,
    photo: Photo,
    values: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    rows: Sequence[str],
    title: str,
    warning: str | None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Draw ``maps`` (method -> (T, h, w), raw and signed), a row of the panel for each of ``values["targets"]``, and
    keep them with the pixels seen, what ``values`` says as JSON text, and ``more`` arrays.
    """
    classes = np.array([target["class"] for target in values["targets"]])
    short = title if len(title) < LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}…"
    draw_panel(folder / "panel.png", photo.pixels, dict(maps), list(rows), short, warning)
    arrays: dict[str, Any] = {"image": photo.pixels, "classes": classes, "meta": np.array(json.dumps(values))}
    arrays |= {**maps, **(more or {})}
    with atomic_path(folder / "maps.npz") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    write_json(folder / "values.json", values)
