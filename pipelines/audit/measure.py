"""One nodule of the audit: every edit and dose, what the models say of it, and where their maps lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.measures import OWN_MEASURE, edit_measures
from lidc_xai.errors import DataError
from lidc_xai.evaluation import localisation
from lidc_xai.evaluation.metrics._localisation import centred_disc_localisation
from lidc_xai.evaluation.metrics._parameter_randomisation import randomised
from lidc_xai.explain import explain
from lidc_xai.imaging import NoduleCrop, planes_of
from lidc_xai.models import NoduleModel
from lidc_xai.models.inference import turned_back, view_outputs
from lidc_xai.nodules.ensemble import models_for
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.simulate import EDITS, edit_nodule, sham_edit
from lidc_xai.simulate.edits.site import Site, site_of

TWO_SIDED = (-1.0, -0.5, 0.5, 1.0)
ONE_SIDED = (0.25, 0.5, 0.75, 1.0)
SHAM, PLAIN = "sham", "none"
BLIND = ("attention",)
"""Methods whose maps have no sign: they are not turned with the output."""
RANDOM = "cdam@random_weights"
MOST_IMAGES = 64
"""Images that are explained in one pass."""
FIGURES = ("auprc", "positive_mass", "pointing_2mm")


def doses_of(name: str) -> tuple[float, ...]:
    """The doses of an edit beside 0."""
    if name == "remove":
        return (1.0,)
    return TWO_SIDED if EDITS[name].lowest < 0 else ONE_SIDED


class Reader:
    """What is audited: a model, or several whose outputs and maps are averaged, beside the same network with random
    weights. Each nodule is read by those that never saw its patient, so that a cross-validated run gives one model a
    nodule, and runs of several seeds an ensemble.

    ``turns``: 1 or 8; None: as each model averages its outputs.
    """

    def __init__(
        self, name: str, models: Sequence[NoduleModel], methods: Sequence[str], turns: int | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.name, self.methods, self.output_names = name, list(methods), models[0].output_names
        self.untrained: Any = randomised(models[0], 0).to(device).eval()  # drawn on the CPU: the same on every device
        self.models = [model.to(device).eval() for model in models]
        for model in self.models:
            model.preprocess = replace(model.preprocess, turns=turns or model.preprocess.turns)
        self.scaling = models[0].target_scaling

    def of(self, patient_id: str) -> list[NoduleModel]:
        """The models that never saw a patient; all where every one has."""
        return [self.models[place] for place in models_for(self.models, patient_id)] or self.models

    def outputs(self, models: Sequence[NoduleModel], crops: Sequence[NoduleCrop]) -> NDArray[np.float64]:
        """(crops, outputs): logits and values in units, the mean over models and the planes that they read."""
        each = []
        for model in models:
            read = model.preprocess
            planes = torch.stack([torch.from_numpy(planes_of(crop, read.views, read.planes_read)) for crop in crops])
            raw = view_outputs(model, read.inputs(planes), 256).mean(1).double()
            units = model.in_units(raw)
            regression = torch.tensor([kind == "regression" for kind in model.output_kinds])
            each.append(torch.where(regression, units, raw))
        return torch.stack(each).mean(0).numpy()

    def maps(self, models: Sequence[NoduleModel], crops: Sequence[NoduleCrop], columns: Tensor) -> dict[str, Tensor]:
        """Method -> (crops, T, gh, gw): the outputs ``columns`` (crops, T) on the middle axial plane, the mean over
        models and turns; CDAM of random weights beside them."""
        each = [_turned_maps(model, model, crops, columns, self.methods) for model in models]
        maps = {method: torch.stack([one[method] for one in each]).mean(0) for method in self.methods}
        return maps | {RANDOM: _turned_maps(self.untrained, models[0], crops, columns, ["cdam"])["cdam"]}


def _turned_maps(
    network: Any, reads: NoduleModel, crops: Sequence[NoduleCrop], columns: Tensor, methods: Sequence[str]
) -> dict[str, Tensor]:
    """The maps of one network, the mean over the turns in which ``reads`` reads its images."""
    turns = reads.preprocess.turns
    images = torch.cat([nodule_images(reads, crop, ("axial",), turn) for crop in crops for turn in range(turns)])
    targets = columns.repeat_interleave(turns, 0)
    parts = [
        explain(network, some, of, method=list(methods))
        for some, of in zip(images.split(MOST_IMAGES), targets.split(MOST_IMAGES), strict=True)
    ]
    maps = {}
    for method in methods:
        each = torch.cat([part[method].relevance.float().cpu() for part in parts]).unflatten(0, (len(crops), turns))
        maps[method] = torch.stack([turned_back(each[:, turn], turn) for turn in range(turns)]).mean(0)
    return maps


@dataclass
class Measured:
    """Rows of one nodule: outputs by edit and dose, figures of maps, features of the frozen trunk, what was refused."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Version:
    """A nodule as it is, after the sham, or after an edit; ``changed``: its edited voxels, ``own``: its measures."""

    edit: str
    dose: float
    crop: NoduleCrop
    changed: NDArray[np.bool_] | None
    own: dict[str, float]


def measure_nodule(
    crop: NoduleCrop, patient_id: str, readers: Sequence[Reader], trunk: NoduleModel | None, seed: int
) -> Measured:
    """All of it; ``DataError`` where the nodule cannot be edited at all."""
    found = Measured()
    versions = edited_versions(crop, seed, found.refused)
    crops = [version.crop for version in versions]
    for reader in readers:
        models = reader.of(patient_id)
        values = reader.outputs(models, crops)
        for version, row in zip(versions, values, strict=True):
            about = {"model": reader.name, "members": len(models), "edit": version.edit, "dose": version.dose}
            measure = version.own.get(OWN_MEASURE[version.edit][0], np.nan) if version.edit in OWN_MEASURE else np.nan
            size = version.own.get("diameter_mm", np.nan)
            named = dict(zip(reader.output_names, row.tolist(), strict=True))
            found.outputs.append(about | {"own": measure, "size": size} | named)
        found.maps += _map_rows(reader, models, versions, values)
    if trunk is not None:
        features = trunk_features(trunk, crops)
        keys = [f"{version.edit} {version.dose:g}" for version in versions]
        found.features = dict(zip(keys, features, strict=True))
    return found


def edited_versions(crop: NoduleCrop, seed: int, refused: list[tuple[str, str]]) -> list[Version]:
    """The nodule untouched, after the sham, and after every edit and dose that it takes; ``refused`` gains the rest."""
    site = site_of(crop)
    versions = [
        Version(PLAIN, 0.0, crop, None, edit_measures(crop, site)), Version(SHAM, 1.0, sham_edit(crop), None, {}),
    ]  # fmt: skip
    for name in EDITS:
        for dose in doses_of(name):
            try:
                edited, changed = edit_nodule(crop, name, dose, seed)
            except DataError as error:
                refused.append((f"{name} {dose:g}", str(error)))
                continue
            own = _own_measure(edited, name, None if EDITS[name].moves else site)
            versions.append(Version(name, dose, edited, changed, own))
    return versions


def _own_measure(crop: NoduleCrop, name: str, site: Site | None) -> dict[str, float]:
    try:
        return edit_measures(crop, site)
    except DataError:  # the edited nodule is no longer one that could be edited again
        return {OWN_MEASURE[name][0]: float("nan")}


@torch.inference_mode()
def trunk_features(trunk: NoduleModel, crops: Sequence[NoduleCrop]) -> NDArray[np.float32]:
    """(crops, width) what the published trunk makes of each middle axial plane."""
    images = torch.cat([nodule_images(trunk, crop, ("axial",)) for crop in crops])
    home = next(trunk.parameters()).device
    return torch.cat([trunk.features(part.to(home)).float().cpu() for part in images.split(64)]).numpy()


def _map_rows(
    reader: Reader, models: Sequence[NoduleModel], versions: Sequence[Version], values: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Figures of S at dose 1 and of its change since dose 0, turned so that positive is where the output went."""
    chosen = [
        (version, row)
        for version, row in zip(versions, values, strict=True)
        if version.changed is not None and version.dose == 1 and version.edit in reader.output_names
        and version.changed[len(version.changed) // 2].any()
    ]  # fmt: skip
    if not chosen:
        return []
    columns = [reader.output_names.index(version.edit) for version, _ in chosen]
    before = reader.maps(models, [versions[0].crop], torch.tensor([columns]))
    after = reader.maps(models, [version.crop for version, _ in chosen], torch.tensor(columns)[:, None])
    rows = []
    for place, ((version, row), column) in enumerate(zip(chosen, columns, strict=True)):
        assert version.changed is not None
        mask = torch.from_numpy(version.changed[len(version.changed) // 2])[None]
        sign = -1.0 if row[column] < values[0, column] else 1.0
        about = {"model": reader.name, "edit": version.edit, "area": float(mask.float().mean())}
        for method, maps in after.items():
            turn = 1.0 if method in BLIND else sign
            for of, relevance in (("S", maps[place, 0]), ("ΔS", maps[place, 0] - before[method][0, place])):
                one = localisation(turn * relevance[None], mask, 1.0)
                rows.append(about | {"method": method, "of": of} | _figures(one))
        rows.append(about | {"method": "centred disc", "of": "S"} | _figures(centred_disc_localisation(mask, 1.0)))
    return rows


def _figures(one: Any) -> dict[str, float]:
    return {figure: float(getattr(one, figure)[0]) for figure in FIGURES}
