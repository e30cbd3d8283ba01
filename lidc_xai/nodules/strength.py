"""How strong a map is, on a scale that does not depend on the nodule it belongs to.

One anchor per method and output: the 95th percentile, over the cohort's maps by models that never saw the nodule's
patient, of a map's largest absolute score. A colour is full at the anchor, so that a weak map looks weak on every page.
The quartiles of the same values say whether a map is strong, usual or weak. Anchors lie in ``model.json``, because a
single nodule of one's own has no cohort.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.files import write_json
from lidc_xai.nodules.mean_maps import Noise
from lidc_xai.nodules.record import ANCHORS, FEWEST, NOISE, by_method_and_output, known_patients

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel
    from lidc_xai.nodules.maps import NoduleMaps


@dataclass(frozen=True)
class Anchor:
    """Largest absolute scores of a cohort's maps of one method and output, in the output's unit.

    ``full``: their 95th percentile; ``weak`` and ``strong``: their lower and upper quartile; ``nodules``: how many;
    ``models``: how many models each map is a mean of (a mean of several is weaker than the map of one).
    """

    full: float
    weak: float
    strong: float
    nodules: int
    models: int = 1

    def rank(self, largest: float) -> str:
        """Where a map whose largest absolute score is ``largest`` stands: weak, usual or strong.

        >>> Anchor(full=1.0, weak=0.2, strong=0.6, nodules=100).rank(0.1)
        'weak'
        """
        return "strong" if largest > self.strong else "weak" if largest < self.weak else "usual"


Anchors = Mapping[str, Mapping[str, Anchor]]
"""Method -> output -> anchor."""


def map_anchors(maps: Iterable[NoduleMaps]) -> dict[str, Anchor]:
    """Output -> anchor, from the maps of a cohort by one method; empty below ``FEWEST`` nodules."""
    largest: dict[str, list[float]] = {}
    models = 1
    for one in maps:
        models = 1 if one.repeatability is None else len(one.repeatability.models)
        for column, output in enumerate(one.output_names):
            largest.setdefault(output, []).append(float(np.abs(one.relevance[:, column]).max()))
    anchors = {}
    for output, values in largest.items():
        if len(values) >= FEWEST:
            weak, strong, full = np.percentile(values, [25, 75, 95]).tolist()
            anchors[output] = Anchor(full, weak, strong, len(values), models)
    return anchors


def cohort_anchors(
    models: Sequence[NoduleModel], store: CropStore, maps: Mapping[str, Mapping[str, NoduleMaps]]
) -> Anchors:
    """Anchors of every method of ``maps`` over the nodules whose patient the explaining model never saw.

    ``maps``: method -> nodule id -> maps, as ``explain_out_of_fold`` gives them: of several models, each nodule has
    its maps from one that never saw it.
    """
    known = known_patients(models[0].training_info) if len(models) == 1 else set()
    patients = dict(zip(store.manifest["nodule_id"], store.manifest["patient_id"].astype(str), strict=True))
    fresh = {
        method: (item for name, item in of_nodules.items() if patients[name] not in known)
        for method, of_nodules in maps.items()
    }
    anchors = {method: map_anchors(items) for method, items in fresh.items()}
    return {method: outputs for method, outputs in anchors.items() if outputs}


def recorded_anchors(training_info: Mapping[str, Any]) -> dict[str, dict[str, Anchor]]:
    """The anchors that a model's record holds; empty where it holds none. ``ModelError`` for a damaged record."""
    return by_method_and_output(training_info, ANCHORS, Anchor)


def save_anchors(run: Path, anchors: Anchors) -> None:
    """Write anchors into every ``model.json`` under a model's or run's folder; those of other methods stay.

    The weights and their hash are not touched.
    """
    for path in _records(run):
        _save(path, ANCHORS, anchors)


def save_field(run: Path, name: str, value: Any) -> None:
    """Write a field of ``training_info`` into every ``model.json`` under a model's or run's folder."""
    for path in _records(run):
        record = json.loads(path.read_text(encoding="utf-8"))
        record.setdefault("training_info", {})[name] = value
        write_json(path, record)


def _records(run: Path) -> list[Path]:
    """Every ``model.json`` of a model, a run or an ensemble."""
    places = ("model.json", "model/model.json", "fold-*/model/model.json", "member-*/model.json")
    return [path for place in places for path in sorted(run.glob(place))]


def save_noise(folders: Sequence[Path], noise: Mapping[str, Mapping[int, Mapping[str, Noise]]]) -> None:
    """Write what a cohort says of each model's maps (method -> place of the model -> output) into its ``model.json``.

    ``folders``: of the models, in their order.
    """
    for place, folder in enumerate(folders):
        of_model = {method: by_model[place] for method, by_model in noise.items() if place in by_model}
        path = next((path for path in (folder / "model.json", folder / "model" / "model.json") if path.is_file()), None)
        if of_model and path is not None:
            _save(path, NOISE, of_model)


def _save(path: Path, name: str, values: Mapping[str, Mapping[str, Anchor | Noise]]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    held = record.setdefault("training_info", {}).setdefault(name, {})
    for method, outputs in values.items():
        held[method] = {output: asdict(value) for output, value in outputs.items()}
    write_json(path, record)
