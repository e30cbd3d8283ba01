"""The report of one nodule: HTML, its JSON twin, and PDF from the same template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lidc_xai.errors import DependencyError, UsageError
from lidc_xai.files import write_json, write_text
from lidc_xai.reporting.drawing import crop_pictures, evaluated_indices, map_panels
from lidc_xai.reporting.facts import nodule_facts
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.pdf import write_pdf
from lidc_xai.skipped import Skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store import CropStore
    from lidc_xai.nodule_maps import NoduleMaps

MapsByMethod = Mapping[str, "Mapping[str, NoduleMaps] | Sequence[NoduleMaps]"]
CONTROLS = ("attention", "random")
"""Methods that are shown as controls, after those that explain."""


@dataclass
class ReportParts:
    """What a nodule's page is made from, beside the store.

    predictions: ``predict``'s table; maps: method -> nodule's maps (by id or a list); context: gives a wider crop
    (≥ 64 mm) of a nodule or ``None``.
    """

    predictions: pd.DataFrame | None = None
    maps: MapsByMethod = field(default_factory=dict)
    model_info: Mapping[str, Any] | None = None
    run_info: Mapping[str, Any] | None = None
    context: Callable[[str], NoduleCrop | None] | None = None

    def prediction(self, nodule_id: str) -> Mapping[str, Any] | None:
        """The row of ``predictions`` for a nodule; ``None`` where there is none."""
        if self.predictions is None or "nodule_id" not in self.predictions:
            return None
        rows = self.predictions[self.predictions["nodule_id"] == nodule_id]
        return None if rows.empty else {str(key): value for key, value in rows.iloc[0].items()}

    def maps_of(self, nodule_id: str) -> list[NoduleMaps]:
        """Maps of a nodule in the order of the methods, controls last."""
        found = []
        for method in sorted(self.maps, key=lambda name: name in CONTROLS):
            given = self.maps[method]
            if isinstance(given, Mapping):
                item = given.get(nodule_id)
            else:
                item = next((entry for entry in given if entry.nodule_id == nodule_id), None)
            if item is not None:
                found.append(item)
        return found


def nodule_report(
    store: CropStore,
    nodule_id: str,
    out: Path | str,
    predictions: pd.DataFrame | None = None,
    maps: MapsByMethod | None = None,
    model_info: Mapping[str, Any] | None = None,
    run_info: Mapping[str, Any] | None = None,
    context: Callable[[str], NoduleCrop | None] | None = None,
    pdf: bool = True,
) -> tuple[list[Path], list[Skipped]]:
    """Write ``out/<nodule_id>.html``, ``.json`` and (with ``pdf``) ``.pdf``.

    What is missing (predictions, maps, contours) is said on the page. Returns the files and what was left out: a PDF
    that the system cannot make is a row there, not an error.
    """
    if nodule_id not in store.nodule_ids:
        raise UsageError(f"nodule {nodule_id!r} is not in {store.path}; its {len(store)} ids are in manifest.csv")
    parts = ReportParts(predictions, maps or {}, model_info, run_info, context)
    return write_nodule(store, nodule_id, Path(out), parts, pdf=pdf)[:2]


def write_nodule(
    store: CropStore, nodule_id: str, folder: Path, parts: ReportParts, pdf: bool = True, study_link: str = ""
) -> tuple[list[Path], list[Skipped], dict[str, Any]]:
    """Write one nodule's files into ``folder``; returns them, what was left out, and the facts."""
    crop = store.load(nodule_id)
    maps = parts.maps_of(nodule_id)
    votes = store.votes[store.votes["nodule_id"] == nodule_id]
    row = {str(key): value for key, value in store.row(nodule_id).items()}
    facts = nodule_facts(row, votes, crop, parts.prediction(nodule_id), maps, parts.model_info, parts.run_info)
    pictures = crop_pictures(crop, evaluated_indices(maps))
    methods = [
        {"facts": entry, "panels": map_panels(item, pictures, entry["limits"])}
        for item, entry in zip(maps, facts["maps"], strict=True)
    ]
    values = {"facts": facts, "pictures": pictures, "methods": methods, "facts_extent": _extent(crop)}
    paths, skipped = [folder / f"{nodule_id}.html", folder / f"{nodule_id}.json"], []
    write_text(paths[0], render("nodule.html.j2", **values, study_link=study_link, interactive=True))
    write_json(paths[1], facts)
    if pdf:
        try:
            paths.append(write_pdf(render("nodule.html.j2", **values, study_link="", interactive=False),
                                   folder / f"{nodule_id}.pdf"))  # fmt: skip
        except DependencyError as error:
            skipped.append(Skipped(nodule_id, "pdf", str(error)))
    return paths, skipped, facts


def _extent(crop: NoduleCrop) -> str:
    sides = [count * mm for count, mm in zip(crop.ct.shape[::-1], crop.spacing_mm[::-1], strict=True)]
    voxel = " × ".join(f"{mm:g}" for mm in (round(mm, 2) for mm in crop.spacing_mm[::-1]))
    return f"{' × '.join(f'{side:g}' for side in (round(side, 1) for side in sides))} mm, voxels of {voxel} mm"
