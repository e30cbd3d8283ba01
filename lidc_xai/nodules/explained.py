"""What a report shows beside the store, made by one model or by the models of a cross-validation.

Of several models, each nodule is explained by one that never saw its patient, in training or in validation; a nodule
that all of them know gets no map. How far the models draw the same map is told from the maps of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np

from lidc_xai.csv_files import read_table
from lidc_xai.files import write_json
from lidc_xai.nodules._predict import known_patients
from lidc_xai.nodules.maps import RANDOM_WEIGHTS, NoduleMaps, explain_store, load_maps, weights_digest
from lidc_xai.progress import track
from lidc_xai.skipped import Skipped

if TYPE_CHECKING:
    import pandas as pd

    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel

CURVE_POINTS = 11
_SEEN = "every model was trained or chosen on this patient; to explain it all the same, name one of them as --model"


@dataclass(frozen=True)
class StoredMaps(Mapping[str, NoduleMaps]):
    """Nodule id -> its maps by one method, read when they are asked for: a cohort's maps need not fit into memory.

    ``folders``: nodule id -> the folder that ``explain_store`` wrote to. ``name``: of the method, where it is to be
    called otherwise.
    """

    method: str
    folders: Mapping[str, Path]
    name: str = ""

    def __getitem__(self, nodule_id: str) -> NoduleMaps:
        maps = load_maps(self.folders[nodule_id] / "maps", nodule_id, self.method)
        return replace(maps, method=self.name) if self.name else maps

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


@dataclass(frozen=True)
class StoredRepeats(Mapping[str, list[NoduleMaps]]):
    """Nodule id -> the maps of several models by the same method."""

    each: Sequence[StoredMaps]

    def __getitem__(self, nodule_id: str) -> list[NoduleMaps]:
        return [maps[nodule_id] for maps in self.each]

    def __iter__(self) -> Iterator[str]:
        return iter(self.each[0] if self.each else ())

    def __len__(self) -> int:
        return len(self.each[0]) if self.each else 0


@dataclass(frozen=True)
class Explained:
    """``maps``, ``repeats``, ``curves`` as ``ReportParts`` takes them; what was left out."""

    maps: dict[str, StoredMaps] = field(default_factory=dict)
    repeats: StoredRepeats = StoredRepeats(())
    curves: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def explain_out_of_fold(
    models: Sequence[NoduleModel],
    store: CropStore,
    folder: Path,
    nodule_ids: Sequence[str],
    methods: Sequence[str],
    device: str = "cpu",
    *,
    controls: bool = True,
    spread: bool = True,
    curves: Sequence[str] = (),
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Explained:
    """Explain nodules by ``methods`` (the first is shown in full) into ``folder``; what lies there is kept.

    Of several models (the folds of a run) each nodule is explained by one that never saw its patient, and its maps lie
    in ``folder/fold-k``. ``options``: of the methods.
    controls: also the first method on random weights. spread: of several models, the first method's maps from all.
    curves: outputs whose score is followed while pixels are replaced, in the order of the first method's map.

    >>> found = explain_out_of_fold([model], store, folder / "explained", store.nodule_ids[:1], ["cdam"])
    >>> sorted(found.maps)
    ['cdam', 'cdam@random_weights']
    """
    from lidc_xai.evaluation.metrics._parameter_randomisation import randomised

    explained_by = {nodule_id: own_model(models, str(store.row(nodule_id)["patient_id"])) for nodule_id in nodule_ids}
    skipped = [Skipped(nodule_id, "explain", _SEEN) for nodule_id, place in explained_by.items() if place is None]
    if not methods:
        return Explained(skipped=skipped)
    places = [folder if len(models) == 1 else folder / f"fold-{_fold(models, k)}" for k in range(len(models))]
    members = {k: [name for name in nodule_ids if explained_by[name] == k] for k in range(len(models))}
    spread = spread and len(models) > 1
    digests = [weights_digest(model) for model in models]
    for k, model in enumerate(models):
        if spread:
            explain_store(model, store, places[k], nodule_ids, methods[:1], device, digests[k])
        if members[k]:
            explain_store(model, store, places[k], members[k], methods, device, digests[k], **(options or {}))
    shown = {name: places[place] for name, place in explained_by.items() if place is not None}
    maps = {method: StoredMaps(method, shown) for method in methods}
    if controls and shown:
        name = f"{methods[0]}@{RANDOM_WEIGHTS}"
        control = cast("NoduleModel", randomised(models[0], seed))
        digest = f"{digests[0]} with weights drawn from seed {seed}"
        explain_store(control, store, folder / RANDOM_WEIGHTS, list(shown), methods[:1], device, digest)
        maps[name] = StoredMaps(methods[0], dict.fromkeys(shown, folder / RANDOM_WEIGHTS), name)
    repeats = StoredRepeats(
        [StoredMaps(methods[0], dict.fromkeys(nodule_ids, place)) for place in places] if spread else []
    )
    drawn = {}
    wanted = [name for name in curves if name in models[0].output_names]
    if wanted:
        for nodule_id, place in track(shown.items(), "deletion curves", len(shown)):
            model = models[cast("int", explained_by[nodule_id])]
            drawn[nodule_id] = deletion_curves(model, store, maps[methods[0]][nodule_id], place, wanted, device)
    return Explained(maps, repeats, {name: of_nodules for name, of_nodules in drawn.items() if of_nodules}, skipped)


def own_model(models: Sequence[NoduleModel], patient_id: str) -> int | None:
    """Which model explains a patient: the only one, or the first of several that never saw it; ``None``: all did."""
    if len(models) == 1:
        return 0
    return next((k for k, one in enumerate(models) if patient_id not in (known_patients(one) or {patient_id})), None)


class ModelReads(TypedDict):
    """What a model is shown, from its own preprocessing: pages say this and nothing else about its input."""

    views: list[str]
    slices: int
    size: int
    window: list[float]
    models: int


def model_reads(models: Sequence[NoduleModel]) -> ModelReads:
    """What the models are shown; they share one preprocessing."""
    chosen = models[0].preprocess
    return {
        "views": list(chosen.views),
        "slices": chosen.slices,
        "size": chosen.size,
        "window": [float(edge) for edge in chosen.window],
        "models": len(models),
    }


def shared_info(models: Sequence[NoduleModel]) -> dict[str, Any]:
    """What the models' records have in common and what they read; for several also how many there are."""
    first, reads = models[0].training_info, {"reads": model_reads(models)}
    if len(models) == 1:
        return {**first, **reads}
    info = {key: value for key, value in first.items() if all(one.training_info.get(key) == value for one in models)}
    held = [one.training_info.get("intervals", {}).get("coverage") for one in models]
    if held[0] and all(
        coverage == held[0] for coverage in held
    ):  # each fold has a record of its own, measured together
        info["intervals"] = {"coverage": held[0]}
    return {"models": f"{len(models)}, each nodule by one that never saw its patient", **info, **reads}


def with_baselines(predictions: pd.DataFrame, run: Path) -> pd.DataFrame:
    """``predictions`` with the baselines' columns of ``run/predictions.csv``, where that run has predicted them."""
    path = run / "predictions.csv"
    if not path.is_file():
        return predictions
    table = read_table(path, ("nodule_id",))
    columns = [name for name in map(str, table) if name.startswith("baseline.") and name not in predictions]
    return predictions.merge(table[["nodule_id", *columns]], on="nodule_id", how="left") if columns else predictions


def with_spread(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """The table of a cross-validation with the spread over views, from ``predict`` by its fold models.

    Where the two disagree on a probability, they are of different models: the table is returned as it is.
    """
    new = [name for name in predicted if name not in table and name not in ("n_models", "out_of_fold")]
    both = table.merge(predicted, on="nodule_id", suffixes=("", "_again"))
    name = "malignancy_probability"
    if both.empty or f"{name}_again" not in both or not np.allclose(both[name], both[f"{name}_again"], atol=1e-4):
        return table
    return table.merge(predicted[["nodule_id", *new]], on="nodule_id", how="left")


def deletion_curves(
    model: NoduleModel, store: CropStore, maps: NoduleMaps, folder: Path, outputs: Sequence[str], device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Output -> ``percent``, ``mif``, ``lif`` and ``removed``, means over the explained planes; kept in ``folder``.

    Pixels become lung as around the nodule (``evaluation.replacement``), so that what is removed is the nodule. Empty
    where no readers' consensus says where the nodule is.
    """
    path = folder / "maps" / maps.nodule_id / f"{maps.method}.curves.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in outputs if name not in kept]
    if missing:
        import torch

        from lidc_xai.evaluation import fidelity
        from lidc_xai.nodules.cases import nodule_case

        consensus = store.load(maps.nodule_id).consensus
        if consensus is None or not consensus.any():
            return {}
        case = nodule_case(model, store, maps.nodule_id, maps.views, {})
        options: dict[str, Any] = {"replacement": "lung", "masks": case.masks, "parenchyma": case.parenchyma}
        model = model.to(device)
        for name in missing:
            scores = torch.from_numpy(maps.relevance[:, maps.output_names.index(name)]).to(device)
            curve = fidelity(model, case.images.to(device), scores, name, points=CURVE_POINTS, **options)
            kept[name] = {
                "percent": curve.percent.tolist(),
                "mif": curve.mif.mean(axis=0).tolist(),
                "lif": curve.lif.mean(axis=0).tolist(),
                "removed": float(curve.at_stake.mean()),
            }
        write_json(path, kept)
    return {name: kept[name] for name in outputs}


def _fold(models: Sequence[NoduleModel], place: int) -> int:
    """The number that the model's record gives its fold, or its place where the records give none or one twice."""
    folds = [one.training_info.get("fold") for one in models]
    named = all(isinstance(fold, int) for fold in folds) and len(set(folds)) == len(folds)
    return cast("int", folds[place]) if named else place
