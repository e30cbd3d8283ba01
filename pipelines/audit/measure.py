"""One nodule of the audit: every edit and dose, what the models say of it, and where their maps lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.evaluation import localisation
from lidc_xai.evaluation.metrics._localisation import centred_disc_localisation
from lidc_xai.evaluation.metrics._parameter_randomisation import randomised
from lidc_xai.explain import explain
from lidc_xai.imaging import NoduleCrop, planes_of
from lidc_xai.models import NoduleModel
from lidc_xai.models.inference import view_outputs
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.simulate import EDITS, edit_nodule, sham_edit
from lidc_xai.simulate.edits.measures import OWN_MEASURE, edit_measures
from lidc_xai.simulate.edits.site import site_of

TWO_SIDED = (-1.0, -0.5, 0.5, 1.0)
ONE_SIDED = (0.25, 0.5, 0.75, 1.0)
SHAM, PLAIN = "sham", "none"
BLIND = ("attention",)
"""Methods whose maps have no sign: they are not turned with the output."""
FIGURES = ("auprc", "positive_mass", "pointing_2mm")


def doses_of(name: str) -> tuple[float, ...]:
    """The doses of an edit beside 0."""
    if name == "remove":
        return (1.0,)
    return TWO_SIDED if EDITS[name].lowest < 0 else ONE_SIDED


@dataclass
class Reader:
    """A model of the audit: its name in the tables, the model, and the same network with random weights."""

    name: str
    model: NoduleModel
    methods: Sequence[str]
    turns: int = 1
    untrained: Any = None

    def __post_init__(self) -> None:
        self.model = self.model.eval()
        self.model.preprocess = replace(self.model.preprocess, turns=self.turns)
        self.untrained = randomised(self.model, 0)

    def outputs(self, crop: NoduleCrop) -> NDArray[np.float64]:
        """(outputs,) raw, the mean over the planes that the model reads."""
        read = self.model.preprocess
        planes = torch.from_numpy(planes_of(crop, read.views, read.planes_read))
        return view_outputs(self.model, read.inputs(planes)[None])[0].mean(0).double().numpy()

    def maps(self, crop: NoduleCrop, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Method -> (outputs, gh, gw) on the middle axial plane; CDAM of random weights beside them."""
        images = nodule_images(self.model, crop, ("axial",))
        found = explain(self.model, images, list(outputs), list(self.methods))
        maps = {name: one.relevance[0].float().cpu() for name, one in found.items()}
        again = explain(self.untrained, images, list(outputs), "cdam")
        return maps | {"cdam@random_weights": again.relevance[0].float().cpu()}


@dataclass
class Measured:
    """Rows of one nodule: outputs by edit and dose, figures of maps, features of the frozen trunk, what was refused."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def measure_nodule(crop: NoduleCrop, readers: Sequence[Reader], trunk: NoduleModel | None, seed: int) -> Measured:
    """All of it; ``DataError`` where the nodule cannot be edited at all."""
    site, found = site_of(crop), Measured()
    plain = {reader.name: reader.outputs(crop) for reader in readers}
    before = {reader.name: reader.maps(crop, reader.model.output_names) for reader in readers}
    note = _noter(found, readers, trunk)
    note(PLAIN, 0.0, crop, plain, edit_measures(crop, site))
    sham = sham_edit(crop)
    note(SHAM, 1.0, sham, {reader.name: reader.outputs(sham) for reader in readers}, {})
    for name in EDITS:
        for dose in doses_of(name):
            try:
                edited, changed = edit_nodule(crop, name, dose, seed)
            except DataError as error:
                found.refused.append((f"{name} {dose:g}", str(error)))
                continue
            values = {reader.name: reader.outputs(edited) for reader in readers}
            note(name, dose, edited, values, _own_measure(edited, name, None if EDITS[name].moves else site))
            if dose == 1 and name != "remove":
                for reader in readers:
                    if name in reader.model.output_names:
                        moved = values[reader.name] - plain[reader.name]
                        found.maps += _map_rows(reader, edited, changed, name, before[reader.name], moved)
    return found


def _own_measure(crop: NoduleCrop, name: str, site: Any) -> dict[str, float]:
    try:
        return edit_measures(crop, site)
    except DataError:  # the edited nodule is no longer one that could be edited again
        return {OWN_MEASURE[name][0]: float("nan")}


def _noter(found: Measured, readers: Sequence[Reader], trunk: NoduleModel | None) -> Any:
    def note(
        edit: str, dose: float, crop: NoduleCrop, values: dict[str, NDArray[np.float64]], own: dict[str, float]
    ) -> None:
        measure = own.get(OWN_MEASURE[edit][0], np.nan) if edit in OWN_MEASURE else np.nan
        size = own.get("diameter_mm", np.nan)
        for reader in readers:
            row = dict(zip(reader.model.output_names, values[reader.name].tolist(), strict=True))
            found.outputs.append({"model": reader.name, "edit": edit, "dose": dose, "own": measure, "size": size} | row)
        if trunk is not None:
            with torch.inference_mode():
                found.features[f"{edit} {dose:g}"] = trunk.features(nodule_images(trunk, crop, ("axial",)))[0].numpy()

    return note


def _map_rows(
    reader: Reader, edited: NoduleCrop, changed: NDArray[np.bool_], name: str, before: dict[str, Tensor], moved: Any
) -> list[dict[str, Any]]:
    """Figures of S at dose 1 and of its change since dose 0, turned so that positive is where the output went."""
    mask = torch.from_numpy(changed[edited.ct.shape[0] // 2])[None]
    if not mask.any():
        return []
    column = reader.model.output_names.index(name)
    sign = -1.0 if moved[column] < 0 else 1.0
    rows = []

    def add(method: str, kind: str, relevance: Tensor | None) -> None:
        one = centred_disc_localisation(mask, 1.0) if relevance is None else localisation(relevance[None], mask, 1.0)
        figures = {figure: float(getattr(one, figure)[0]) for figure in FIGURES}
        rows.append(
            {"model": reader.name, "edit": name, "method": method, "of": kind, "area": float(mask.float().mean())}
            | figures
        )

    for method, maps in reader.maps(edited, [name]).items():
        turn = 1.0 if method.split("@")[0] in BLIND else sign
        add(method, "S", turn * maps[0])
        add(method, "ΔS", turn * (maps[0] - before[method][column]))
    add("centred disc", "S", None)
    return rows
