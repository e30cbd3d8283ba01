"""The report of one nodule: HTML, its JSON twin, and PDF from the same template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.errors import DependencyError, UsageError
from lidc_xai.files import write_json, write_text
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.ratings import OUTPUTS
from lidc_xai.reporting.nodule.drawing import (
    PlanePicture,
    crop_pictures,
    evaluated_indices,
    in_window,
    largest_indices,
    map_panels,
)
from lidc_xai.reporting.nodule.fact_types import NoduleFacts
from lidc_xai.reporting.nodule.facts import SHORT_UNITS, nodule_facts
from lidc_xai.reporting.nodule.viewer import viewer_payload
from lidc_xai.reporting.pages import asset, render
from lidc_xai.reporting.parts import CLASS_BLIND, NoduleParts, ReportParts, is_control
from lidc_xai.reporting.pdf import Pictures, write_pdf
from lidc_xai.reporting.pictures import WINDOWS, scale_picture
from lidc_xai.skipped import Skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore


def nodule_report(
    store: CropStore, nodule_id: str, out: Path | str, *, pdf: bool = True, **parts: Any
) -> tuple[list[Path], list[Skipped]]:
    """Write ``out/<nodule_id>.html``, ``.json`` and (with ``pdf``) ``.pdf``, which ``summary=True`` makes one page.

    ``parts``: the fields of ``ReportParts`` (predictions, maps, model_info, …). The first method of ``maps`` that is
    not a control (``is_control``) is shown in full. What is missing (predictions, maps, contours) is said on the page.
    Returns the files and what was left out: a PDF that the system cannot make is a row there, not an error.

    >>> files, left_out = nodule_report(store, store.nodule_ids[0], folder / "report", pdf=False)
    >>> [path.suffix for path in files]
    ['.html', '.json']
    """
    if nodule_id not in store.nodule_ids:
        raise UsageError(f"nodule {nodule_id!r} is not in {store.path}; its {len(store)} ids are in manifest.csv")
    return write_nodule(store, nodule_id, Path(out), ReportParts(**parts).of(store, nodule_id), pdf=pdf)[:2]


def write_nodule(
    store: CropStore, nodule_id: str, folder: Path, parts: NoduleParts, pdf: bool = True, links: Mapping[str, str] = {}
) -> tuple[list[Path], list[Skipped], NoduleFacts]:
    """Write one nodule's files into ``folder``; returns them, what was left out, and the facts.

    ``links``: addresses of the ``study`` page, the ``glossary`` and the ``previous`` and ``next`` nodule.
    """
    crop = parts.crop
    votes = store.votes[store.votes["nodule_id"] == nodule_id]
    row = {str(key): value for key, value in store.row(nodule_id).items()}
    facts = nodule_facts(row, votes, crop, parts)
    values = _page_values(crop, parts, facts)
    limits = {entry["method"]: entry["limits"] for entry in facts["maps"]}
    context = None if parts.light else parts.context
    payload = viewer_payload(crop, parts.maps, limits, context, largest_indices(crop), values["windows"], parts.dense)
    html = render(
        "nodule.html.j2",
        **values,
        links=dict(links),
        interactive=True,
        payload=payload,
        glossary=links.get("glossary", ""),
    )
    paths, skipped = [folder / f"{nodule_id}.html", folder / f"{nodule_id}.json"], []
    write_text(paths[0], html)
    write_json(paths[1], facts)
    if pdf:
        try:
            paths.append(_write_pdf(folder / f"{nodule_id}.pdf", values, parts))
        except DependencyError as error:
            skipped.append(Skipped(nodule_id, "pdf", str(error)))
    return paths, skipped, facts


def _write_pdf(path: Path, values: dict[str, Any], parts: NoduleParts) -> Path:
    """The page on paper, or its head alone on one page."""
    if not parts.summary:
        values["picture_groups"] = values["picture_groups"] | _printed_only(values)
    pictures = _printed(values)
    template = "summary.html.j2" if parts.summary else "nodule.html.j2"
    text = render(template, **values, links={}, interactive=False, payload="", keep=pictures.keep, style="")
    return write_pdf(text, path, parts.paper, pictures, one_page=parts.summary, style=asset("report.css"))


def _page_values(crop: NoduleCrop, parts: NoduleParts, facts: NoduleFacts) -> dict[str, Any]:
    explaining = [name for name in parts.maps if not is_control(name)] or list(parts.maps)
    primary = explaining[0] if explaining else None
    groups: dict[str, list[PlanePicture]] = {"ct": crop_pictures(crop, largest_indices(crop))}
    explained = evaluated_indices(parts.maps.get(primary or ""))
    if explained:  # what a map explains is not always where the nodule is largest
        groups["read"] = crop_pictures(crop, explained, views=[view for view in VIEWS if view in explained])
    methods: list[dict[str, Any]] = []
    for number, entry in enumerate(facts["maps"]):
        name = entry["method"]
        control = is_control(name) and name != primary
        shown = sorted(entry["outputs"], key=OUTPUTS.index)[: 1 if control else None]  # a control is shown for one
        methods.append(
            {
                "facts": entry,
                "number": number,
                "panels": map_panels(parts.maps[name], groups["read"], entry["limits"], shown),
                "control": control,
                "class_blind": name in CLASS_BLIND,
            }
        )
    if parts.context is not None:
        groups["context"] = crop_pictures(parts.context, largest_indices(parts.context), inner=crop)
    return {
        "facts": facts,
        "picture_groups": groups,
        "backgrounds": _backgrounds(groups),
        "methods": methods,
        "primary": next((item for item in methods if item["facts"]["method"] == primary), None),
        "facts_extent": _extent(crop),
        "context_padded": parts.context is not None and parts.context.padded,
        "has_context": parts.context is not None and not parts.light,
        "unit_of": SHORT_UNITS,
        "windows": WINDOWS | _input_window(parts),
        "dense": bool(parts.dense),
        "views_read": (parts.model_info or {}).get("reads", {}).get("views", []),
    }


def _backgrounds(groups: Mapping[str, list[PlanePicture]]) -> list[tuple[str, str]]:
    """Selectors of the style sheet and the picture behind them; a picture that two groups share is held once."""
    selectors: dict[str, list[str]] = {}
    for name, group in groups.items():
        for picture in group:
            selectors.setdefault(picture.ct, []).append(f".{name}-{picture.plane.view}")
    return [(", ".join(names), uri) for uri, names in selectors.items()]


def _input_window(parts: NoduleParts) -> dict[str, tuple[float, float]]:
    """The window of the model's own input, where its record says it."""
    low, high = (parts.model_info or {}).get("reads", {}).get("window", (None, None))
    return {} if low is None else {"model input": (float(low), float(high))}


def _printed_only(values: Mapping[str, Any]) -> dict[str, list[PlanePicture]]:
    """What the viewer shows on request and paper cannot: other windows, and exactly the planes that the model read."""
    groups, limits = values["picture_groups"], values["windows"].get("model input")
    pictures = {"mediastinum": in_window(groups["ct"], "mediastinum")}
    shown = [picture for picture in groups.get("read", ()) if picture.plane.view in values["views_read"]]
    if shown and limits is not None:
        pictures["input"] = in_window(shown, "model input", limits)
    if "context" in groups:
        pictures["context-mediastinum"] = in_window(groups["context"], "mediastinum")
    return pictures


def _printed(values: Mapping[str, Any]) -> Pictures:
    """The pictures of the page by the names under which ``print.html.j2`` shows them."""
    pictures = Pictures(signed=scale_picture(-1), positive=scale_picture(0))
    for name, group in values["picture_groups"].items():
        pictures |= {f"{name}-{picture.plane.view}": picture.ct for picture in group}
    for maps in values["methods"]:
        panels = [panel for row in maps["panels"].values() for panel in row]
        pictures |= {f"map{maps['number']}-{panel.output}-{panel.view}": panel.picture for panel in panels}
    return pictures


def _extent(crop: NoduleCrop) -> str:
    sides = np.round(np.multiply(crop.ct.shape, crop.spacing_mm)[::-1], 1)
    voxel = np.round(crop.spacing_mm[::-1], 2)
    return f"{' × '.join(f'{mm:g}' for mm in sides)} mm, voxels of {' × '.join(f'{mm:g}' for mm in voxel)} mm"
