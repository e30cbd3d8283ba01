"""What a report shows beside the store, made by one model or by several: folds, seeds, cross-validated runs.

Of several models, each nodule is explained by all that never saw its patient, in training or in validation; a nodule
that all of them know gets no map. Where two or more are left, their mean is shown and how far they draw it alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast, overload

import numpy as np

from lidc_xai.csv_files import read_table
from lidc_xai.files import write_json
from lidc_xai.models.digest import check_different, weights_digest
from lidc_xai.nodules.ensemble import Ensemble, models_for
from lidc_xai.nodules.map_record import NoduleMaps, load_maps
from lidc_xai.nodules.maps import RANDOM_WEIGHTS, check_same, explain_members, explain_store
from lidc_xai.nodules.mean_maps import Member, Noise, gather, mean_maps, recorded_noise
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
class Explained:
    """``maps``, ``curves`` as ``ReportParts`` takes them; what was left out; ``noise``: of the first method, model (by
    its place among those given) -> output -> what the cohort says of its maps, for nodules without a cohort.
    """

    maps: dict[str, StoredMaps] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    noise: dict[str, dict[int, dict[str, Noise]]] = field(default_factory=dict)


def explain_out_of_fold(
    models: Sequence[NoduleModel],
    store: CropStore,
    folder: Path,
    nodule_ids: Sequence[str],
    methods: Sequence[str],
    device: str = "cpu",
    *,
    controls: bool = True,
    curves: Sequence[str] = (),
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    every_slice: bool = False,
) -> Explained:
    """Explain nodules by ``methods`` (the first is shown in full) into ``folder``; what lies there is kept.

    Of several models each nodule is explained by all that never saw its patient: by one fold of a cross-validated run,
    by a fold of each of several runs, by all folds where the patient is new. Their maps lie in folders of their own
    (``fold-k``, or ``model-`` and the start of the weights' digest), the mean of two or more in ``folder/maps``.
    ``options``: of the methods. controls: also the first method on random weights. curves: outputs whose score (mean
    over the models) is followed while pixels are replaced, in the order of the first method's map. every_slice: maps of
    every slice that was scanned, in ``folder/every-slice``; without controls and curves.

    >>> explained = explain_out_of_fold([model], store, folder / "explained", store.nodule_ids[:1], ["cdam"])
    >>> sorted(explained.maps)
    ['cdam', 'cdam@random_weights']
    """
    from lidc_xai.evaluation.metrics._parameter_randomisation import randomised

    if every_slice:
        folder, controls, curves = folder / "every-slice", False, ()
    patients = {nodule_id: str(store.row(nodule_id)["patient_id"]) for nodule_id in nodule_ids}
    places = {name: explaining_models(models, patient) for name, patient in patients.items()}
    skipped = [Skipped(nodule_id, "explain", _SEEN) for nodule_id, used in places.items() if not used]
    places = {name: used for name, used in places.items() if used}
    if not methods:
        return Explained(skipped=skipped)
    digests = [weights_digest(model) for model in models]
    check_different(digests)
    folders = [folder / name for name in _folder_names(models, digests)]
    ensemble = Ensemble(models, device, every_slice=every_slice)
    explain_members(ensemble, store, folders, digests, places, methods, dict(options or {}))
    together = [name for name, used in places.items() if len(used) > 1]
    noise: dict[str, dict[int, dict[str, Noise]]] = {}
    if together:
        made_with = {"models": sorted(digests), "store": store.path.name, **(options or {}), **ensemble.averaged}
        check_same(folder / "maps" / "explained.json", made_with)
        for method in methods:
            nodules = [StoredMembers(method, {digests[k]: folders[k] for k in places[name]}, name) for name in together]
            noise[method] = _save_means(models, digests, folder, method, nodules, [patients[name] for name in together])
    shown = {name: folders[used[0]] if len(used) == 1 else folder for name, used in places.items()}
    maps = {method: StoredMaps(method, shown) for method in methods}
    if controls and shown:
        name = f"{methods[0]}@{RANDOM_WEIGHTS}"
        control = cast("NoduleModel", randomised(models[0], seed))
        digest = f"{digests[0]} with weights drawn from seed {seed}"
        explain_store(control, store, folder / RANDOM_WEIGHTS, list(shown), methods[:1], device, digest)
        maps[name] = StoredMaps(methods[0], dict.fromkeys(shown, folder / RANDOM_WEIGHTS), name)
    drawn = {}
    wanted = [name for name in curves if name in models[0].output_names]
    if wanted:
        for nodule_id, place in track(shown.items(), "deletion curves", len(shown)):
            used = [models[k] for k in places[nodule_id]]
            drawn[nodule_id] = deletion_curves(used, store, maps[methods[0]][nodule_id], place, wanted, device)
    return Explained(maps, {name: by_output for name, by_output in drawn.items() if by_output}, skipped, noise)


@dataclass(frozen=True)
class StoredMembers(Sequence[Member]):
    """One nodule's maps by several models, read when they are asked for. ``folders``: what names a model -> its own."""

    method: str
    folders: Mapping[str, Path]
    nodule_id: str

    @overload
    def __getitem__(self, place: int) -> Member: ...
    @overload
    def __getitem__(self, place: slice) -> list[Member]: ...
    def __getitem__(self, place: int | slice) -> Member | list[Member]:
        names = list(self.folders)[place]
        return [self._member(name) for name in names] if isinstance(names, list) else self._member(names)

    def _member(self, name: str) -> Member:
        return Member(name, load_maps(self.folders[name] / "maps", self.nodule_id, self.method))

    def __len__(self) -> int:
        return len(self.folders)


def _save_means(
    models: Sequence[NoduleModel],
    digests: Sequence[str],
    folder: Path,
    method: str,
    nodules: Sequence[StoredMembers],
    patients: Sequence[str],
) -> dict[int, dict[str, Noise]]:
    """Write the mean maps of one method; what they say of each model's maps."""
    recorded = {
        digest: noise
        for digest, model in zip(digests, models, strict=True)
        if (noise := recorded_noise(model.training_info).get(method))
    }
    cohort = gather(nodules, patients)
    for maps in mean_maps(nodules, patients, recorded, cohort):
        maps.save(folder / "maps")
    return {digests.index(name): by_output for name, by_output in cohort.noise().items()}


def repeatability_rows(maps: Mapping[str, Mapping[str, NoduleMaps]]) -> list[dict[str, Any]]:
    """One row per method, nodule and output: how many models, how far they agree, which share is stable."""
    rows = []
    for method, by_id in maps.items():
        for nodule_id, item in by_id.items():
            for output in item.output_names:
                alone = {"models": 1, "note": "one model: its repeatability is unknown"}
                figures = alone if item.repeatability is None else item.repeatability.of(output)
                rows.append({"nodule_id": nodule_id, "method": method, "output": output, **figures})
    return rows


def _folder_names(models: Sequence[NoduleModel], digests: Sequence[str]) -> list[str]:
    """Where each model's maps lie: the folder itself for a single model, else its fold where no other has that number,
    else what names its weights."""
    if len(models) == 1:
        return [""]
    folds = [model.training_info.get("fold") for model in models]
    if all(isinstance(fold, int) for fold in folds) and len(set(folds)) == len(folds):
        return [f"fold-{fold}" for fold in folds]
    return [f"model-{digest[:12]}" for digest in digests]


def explaining_models(models: Sequence[NoduleModel], patient_id: str) -> list[int]:
    """Which models explain a patient: the only one, or those of several that never saw it; none where all did."""
    return [0] if len(models) == 1 else models_for(models, patient_id)


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
    return {"models": f"{len(models)}, each nodule by those that never saw its patient", **info, **reads}


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
    models: Sequence[NoduleModel],
    store: CropStore,
    maps: NoduleMaps,
    folder: Path,
    outputs: Sequence[str],
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Output -> ``percent``, ``mif``, ``lif`` and ``removed``, means over the explained planes and the models that the
    map is a mean of; kept in ``folder``.

    Pixels become lung as around the nodule (``evaluation.replacement``), so that what is removed is the nodule. Empty
    where no readers' consensus says where the nodule is.
    """
    path = folder / "maps" / maps.nodule_id / f"{maps.method}.curves.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in outputs if name not in kept]
    if missing:
        consensus = store.load(maps.nodule_id).consensus
        if consensus is None or not consensus.any():
            return {}
        each = [_deletion(model.to(device), store, maps, missing, device) for model in models]
        for name in missing:
            figures = {key: np.mean([curves[name][key] for curves in each], axis=0).tolist() for key in _CURVE}
            kept[name] = figures
        write_json(path, kept)
    return {name: kept[name] for name in outputs}


_CURVE = ("percent", "mif", "lif", "removed")


def _deletion(
    model: NoduleModel, store: CropStore, maps: NoduleMaps, outputs: Sequence[str], device: str
) -> dict[str, dict[str, Any]]:
    """One model's curves in the order of a map."""
    import torch

    from lidc_xai.evaluation import fidelity
    from lidc_xai.nodules.cases import nodule_case

    case = nodule_case(model, store, maps.nodule_id, maps.views, {})
    options: dict[str, Any] = {"replacement": "lung", "masks": case.masks, "parenchyma": case.parenchyma}
    curves = {}
    for name in outputs:
        scores = torch.from_numpy(maps.relevance[:, maps.output_names.index(name)]).to(device)
        curve = fidelity(model, case.images.to(device), scores, name, points=CURVE_POINTS, **options)
        means = (curve.percent, curve.mif.mean(axis=0), curve.lif.mean(axis=0), curve.at_stake.mean())
        curves[name] = dict(zip(_CURVE, (value.tolist() for value in means), strict=True))
    return curves
