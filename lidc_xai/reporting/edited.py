"""The page of an edited store: a slider for the dose, and beside it the CT, the outputs and the maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.errors import DataError
from lidc_xai.files import write_text
from lidc_xai.imaging.planes import crop_plane
from lidc_xai.nodules.turning import Turn, in_words, map_on_turn
from lidc_xai.ratings import OUTPUTS
from lidc_xai.reporting.nodule.facts import method_title
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.pictures import ct_picture, map_picture
from lidc_xai.reporting.values import number
from lidc_xai.simulate.edits.edit import EDITS, original_of

if TYPE_CHECKING:
    import pandas as pd

    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps

_PIXELS = 168


def slider_page(
    store: CropStore, predictions: pd.DataFrame, maps: Mapping[str, Mapping[str, NoduleMaps]], path: Path
) -> Path:
    """Write one page with every nodule of an edited ``store``: the middle axial slice, by dose.

    ``predictions``: of ``predict`` on the store. ``maps``: method -> edited nodule's id -> maps; shown are those of the
    edit's own output and of malignancy, in one colour scale a nodule and output over all doses.
    """
    by_original: dict[str, list[tuple[float, str]]] = {}
    edit = ""
    for nodule_id in store.nodule_ids:
        original, edit, dose = original_of(nodule_id)
        by_original.setdefault(original, []).append((dose, nodule_id))
    if not by_original:
        raise DataError(f"{store.path}: holds no edited nodule")
    rows = {str(row["nodule_id"]): row for row in predictions.to_dict("records")}
    nodules = [
        _nodule(store, original, edit, sorted(frames), rows, maps) for original, frames in sorted(by_original.items())
    ]
    write_text(path, render("edited.html.j2", edit=edit, nodules=nodules, interactive=True))
    return path


def drawn_turn(crop: NoduleCrop, turn: Turn | None, maps: NoduleMaps | None) -> dict[str, Any]:
    """The lines and pictures of ``smallest_turn`` for the page of a nodule; ``maps``: by the method that is shown."""
    on_map = None if turn is None or maps is None else map_on_turn(turn, maps)
    lines = in_words(turn, on_map, method_title(maps.method) if maps is not None else "shown")
    if turn is None:
        return {"lines": lines, "pictures": []}
    chosen = {
        "as it was scanned": crop_plane(crop, "axial"),
        f"EDITED: {turn.edit}, dose {turn.dose:g}": crop_plane(turn.crop, "axial"),
    }
    pictures = [
        {"ct": ct_picture(plane.image, plane.spacing_mm, "lung", _PIXELS), "words": words}
        for words, plane in chosen.items()
    ]
    return {"lines": lines, "pictures": pictures}


def _nodule(
    store: CropStore, original: str, edit: str, frames: list[tuple[float, str]], rows: Mapping[str, Any],
    maps: Mapping[str, Mapping[str, NoduleMaps]],
) -> dict[str, Any]:  # fmt: skip
    shown = [(dose, nodule_id) for dose, nodule_id in frames if nodule_id in rows]
    panels: dict[str, dict[str, list[np.ndarray]]] = {}
    for method, by_id in maps.items():
        for output in (edit, "malignancy"):
            planes = [_axial(by_id.get(nodule_id), output) for _, nodule_id in shown]
            if all(plane is not None for plane in planes):
                panels.setdefault(method, {})[output] = [plane for plane in planes if plane is not None]
    limits = {
        (method, output): float(max(np.abs(plane).max() for plane in planes))
        for method, by_output in panels.items()
        for output, planes in by_output.items()
    }
    side = float(store.fingerprint["size_mm"])
    return {
        "nodule_id": original,
        "outputs": _outputs(edit, [rows[nodule_id] for _, nodule_id in shown]),
        "frames": [
            {
                "dose": dose,
                "ct": ct_picture(plane.image, plane.spacing_mm, "lung", _PIXELS),
                "maps": [
                    {
                        "method": method,
                        "output": output,
                        "limit": limits[method, output],
                        "uri": map_picture(planes[place], limits[method, output], (side, side), _PIXELS),
                    }
                    for method, by_output in panels.items()
                    for output, planes in by_output.items()
                ],
            }
            for place, (dose, nodule_id) in enumerate(shown)
            for plane in (crop_plane(store.load(nodule_id), "axial"),)
        ],
    }


def _outputs(edit: str, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every output with its value at each dose; the edit's own is marked with the direction that is expected of it."""
    changed = []
    for name in OUTPUTS:
        column = "malignancy_probability" if name == "malignancy" else name
        values = [number(row, column) for row in rows]
        if any(value is not None for value in values):
            sign = EDITS[edit].sign if name == edit else 0
            changed.append(
                {"name": name, "values": values, "expected": {1: "should rise", -1: "should fall"}.get(sign, "")}
            )
    return changed


def _axial(maps: NoduleMaps | None, output: str) -> np.ndarray | None:
    if maps is None or "axial" not in maps.views or output not in maps.output_names:
        return None
    plane: np.ndarray = maps.relevance[maps.views.index("axial"), maps.output_names.index(output)]
    return plane
