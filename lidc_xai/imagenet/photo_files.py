"""The three files of an explained photograph: panel.png, maps.npz and values.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lidc_xai.files import atomic_path, write_json
from lidc_xai.imagenet.panel import draw_panel
from lidc_xai.imagenet.photographs import Photo

LONGEST_TITLE = 90


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
