"""A saved model on crops: calibrated probabilities and biomarkers in their own units, one row per nodule.

Views are averaged in logit space, fold models after their own calibration. The spread is taken over views and fold
models; it says how much the model disagrees with itself, not how far it is from the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop, check_crop
from lidc_xai.imaging.planes import VIEWS, padding_read, planes_of
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models.inference import view_outputs
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.models.saved import is_adapter, load_model, member_folders
from lidc_xai.nodules.record import known_patients
from lidc_xai.progress import track
from lidc_xai.ratings import EVEN_CHANCE, SCALES
from lidc_xai.training.intervals import add_intervals, malignancy_set

Models = NoduleModel | Path | str | Sequence["NoduleModel | Path | str"]
MUCH_PADDING = 0.25
"""Share of what the model reads outside the scan from which a prediction is in doubt."""
Crops = CropStore | Path | str | NoduleCrop | Iterable[NoduleCrop]


def predict(
    model: Models,
    crops_or_store: Crops,
    *,
    nodule_ids: Sequence[str] | None = None,
    weights: Path | str | None = None,
    device: str = "cpu",
    batch_size: int = 64,
) -> pd.DataFrame:
    """Read every crop with the model and return one row per nodule.

    ``model``: a ``NoduleModel``, a saved one, a cross-validated run (all of its fold models), an ensemble (all of its
    members), or a sequence of these; ``weights``: the published weights of those saved as adapters.
    ``crops_or_store``: a store (``nodule_ids`` chooses from it) or crops, which need no reader and no patient.

    Columns: nodule_id, patient_id; malignancy_probability (calibrated: that the readers' median rating is above 3),
    malignancy_logit (raw, what maps explain), malignancy_probability_least and _greatest (over views and
    fold models), malignancy_words; for every biomarker its value in its own unit (within the ends of its scale),
    ``<name>_models_disagree_by`` (standard deviation over views and fold models: how far the models agree, not how far
    they are right), ``<name>_words`` where its scale is ordered, and, where the model brings the record of
    ``cross_validate``, ``<name>_low`` and ``<name>_high`` (90 % interval, ``training.intervals``), malignancy_set and
    p_calcified, the probability of any calcification; n_models; out_of_fold: the
    patient was in no training or validation part of the models used. Where every model knows the patient, all are used
    and out_of_fold is False; where no model records whom it learned from, it is unknown (NA, an empty cell). flag: why
    the prediction is in doubt (the nodule, or the prediction, is larger than the box; a large part of what is read lies
    outside the scan),
    which the words repeat; issues: everything that was found when the crop was cut.

    Raises DataError for a crop that no model could read, ModelError where a model's outputs are no numbers.

    >>> table = predict(model, store)
    >>> len(table), table["malignancy_probability"].between(0, 1).all().item()
    (7, True)
    """
    models = load_models(model, weights)
    patients = [known_patients(each.training_info) for each in models]
    items = list(_planes(crops_or_store, nodule_ids, [each.preprocess for each in models]))
    if not items:
        raise DataError("no crop to predict; the store or the list is empty")
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, (_, planes) in enumerate(items):
        by_shape.setdefault(tuple(planes.shape), []).append(place)
    fresh = [[k for k, known in enumerate(patients) if known and facts.patient_id not in known] for facts, _ in items]
    used = [some or list(range(len(models))) for some in fresh]
    raw: list[dict[int, Tensor]] = [{} for _ in items]
    for places in by_shape.values():
        for k, each in enumerate(models):  # each reads only the nodules that it is used for
            asked = [place for place in places if k in used[place]]
            if asked:
                outputs = _outputs(each, torch.stack([items[place][1] for place in asked]), device, batch_size)
                _check_finite(outputs, [items[place][0].nodule_id for place in asked])
                for place, values in zip(asked, outputs, strict=True):
                    raw[place][k] = values
    rows = []
    for place, ((nodule_id, patient_id, flag, issues, side), _) in enumerate(items):
        chosen = used[place]
        of_models = [models[k] for k in chosen], [raw[place][k] for k in chosen]
        values = prediction_row(*of_models, flag)
        if not flag and values.get("diameter", 0.0) > side:
            flag = f"predicted larger than the box ({values['diameter']:.0f} mm in {side:g} mm)"
            values = prediction_row(*of_models, flag)
        unseen = bool(fresh[place]) if any(patients) else None
        ends = {"n_models": len(chosen), "out_of_fold": unseen, "flag": flag, "issues": issues}
        rows.append({"nodule_id": nodule_id, "patient_id": patient_id, **values, **ends})
    return pd.DataFrame(rows).astype({"out_of_fold": "boolean"})


def doubted(words: str, flag: str) -> str:
    """A prediction in words; one in doubt says so, and why."""
    return f"in doubt ({flag}): {words}" if flag else words


def doubt_of(crop: NoduleCrop, reads: Sequence[Preprocess]) -> str:
    """Why a prediction from such a crop is in doubt, or nothing. A large part of padding: from a quarter of the planes
    that are read; what lies above and below them no model is shown.
    """
    reasons = ["the nodule is larger than the box"] if crop.larger_than_box else []
    padded = max(padding_read(crop, each.views, each.planes_read) for each in reads)
    if padded >= MUCH_PADDING:
        reasons.append(f"{padded:.0%} of the planes that are read lies outside the scan")
    return ", ".join(reasons)


def load_models(model: Models, weights: Path | str | None = None) -> list[NoduleModel]:
    """One or several models with the same outputs; a cross-validated run and an ensemble give all of theirs.

    ``weights``: published weights for those saved as adapters (``load_model``).
    """
    if isinstance(model, NoduleModel):
        return [model]
    if isinstance(model, str | Path):
        folders = member_folders(model)
        adapters = [is_adapter(folder) for folder in folders]
        wanted = [weights if each or not any(adapters) else None for each in adapters]  # else load_model refuses them
        return [load_model(folder, one) for folder, one in zip(folders, wanted, strict=True)]
    models = loaded_models(model, weights)
    if len({one.output_names for one in models}) > 1:
        raise UsageError("models with different outputs cannot be averaged; give models of one run")
    return models


def loaded_models(model: Models, weights: Path | str | None = None) -> list[NoduleModel]:
    """The same without asking for the same outputs."""
    if isinstance(model, NoduleModel | str | Path):
        return load_models(model, weights)
    models = [one for each in model for one in load_models(each, weights)]
    if not models:
        raise UsageError("no model given")
    return models


def patient_of(nodule_id: str) -> str:
    """The patient in a nodule's id ("LIDC-IDRI-0003-s1-n1"); an id of another form stands for its own patient."""
    match = re.fullmatch(r"(.+)-s\d+-n\d+", nodule_id)
    return match[1] if match else nodule_id


def _check_finite(outputs: Tensor, nodule_ids: Sequence[str]) -> None:
    """``ModelError`` that names the first nodule for which a model gives no number."""
    good = torch.isfinite(outputs).flatten(1).all(1).tolist()
    if not all(good):
        bad = nodule_ids[good.index(False)]
        raise ModelError(f"nodule {bad}: the model's outputs are NaN or infinite; its weights are of no use")


def prediction_row(models: Sequence[NoduleModel], raw: Sequence[Tensor], flag: str = "") -> dict[str, Any]:
    """Columns of one nodule from each model's raw outputs, (V, outputs) per model; ``flag``: why they are in doubt."""
    first = models[0]
    row: dict[str, Any] = {}
    each_view = torch.stack([each.in_units(values) for each, values in zip(models, raw, strict=True)])
    for column, (name, kind) in enumerate(zip(first.output_names, first.output_kinds, strict=True)):
        spread = each_view[..., column].flatten().double()
        if kind == "binary":
            logits = torch.stack([values[:, column].mean() for values in raw]).double()
            slopes = torch.tensor([each.calibration[name] for each in models], dtype=torch.float64)
            probability = float(torch.sigmoid((slopes[:, 0] * logits + slopes[:, 1]).mean()))
            row[f"{name}_probability"] = probability
            row[f"{name}_logit"] = float(logits.mean())
            row[f"{name}_probability_models_disagree_by"] = float(spread.std(correction=0))
            row[f"{name}_probability_least"] = min(float(spread.min()), probability)
            row[f"{name}_probability_greatest"] = max(float(spread.max()), probability)
            row[f"{name}_words"] = doubted(
                SCALES[name].high_words if probability > EVEN_CHANCE else SCALES[name].low_words, flag
            )
        else:
            scale = SCALES[name]
            row[name] = min(max(float(spread.mean()), scale.low), scale.high)
            row[f"{name}_models_disagree_by"] = float(spread.std(correction=0))
            if name != "calcification":  # its codes are names: there is nothing between two of them
                row[f"{name}_words"] = doubted(scale.in_words(row[name]), flag)
    return row | _measured(models, row)


def _measured(models: Sequence[NoduleModel], row: Mapping[str, Any]) -> dict[str, Any]:
    """90 % intervals, set of malignancy and P(any calcification), from the first model that brings their record."""
    records = [held for each in models if (held := each.training_info.get("intervals"))]
    if not records:
        return {}
    kept = {name: value for name, value in records[0].items() if name != "malignancy"}
    single = {name: [float(value)] for name, value in row.items() if isinstance(value, int | float)}
    measured = add_intervals(pd.DataFrame(single), kept).iloc[0].to_dict()
    if "malignancy_threshold" in kept and "malignancy_probability" in row:
        measured["malignancy_set"] = malignancy_set(row["malignancy_probability"], kept["malignancy_threshold"])
    return {str(name): value for name, value in measured.items() if name not in row}


def _outputs(model: NoduleModel, planes: Tensor, device: str, batch_size: int) -> Tensor:
    home = next(model.parameters()).device
    try:
        read = planes[:, [VIEWS.index(view) for view in model.preprocess.views]]
        return view_outputs(model.to(device), model.preprocess.inputs(read), batch_size)
    finally:
        model.to(home)


class _Facts(NamedTuple):
    """What a row says of a crop beside the prediction."""

    nodule_id: str
    patient_id: str
    flag: str
    issues: str
    side_mm: float


def _planes(
    source: Crops, nodule_ids: Sequence[str] | None, reads: Sequence[Preprocess]
) -> Iterator[tuple[_Facts, Tensor]]:
    """What is known of every crop, and its planes about the middle of all views, (3, slices, h, w)."""
    slices = max(each.planes_read for each in reads)
    stored = isinstance(source, CropStore | Path | str)
    for crop, patient in crops_of(source, nodule_ids, "reading crops"):
        if not stored:
            check_crop(crop)
        for each in reads:
            each.check(crop)
        side = min(count * size for count, size in zip(crop.ct.shape, crop.spacing_mm, strict=True))
        facts = _Facts(crop.nodule_id, patient, doubt_of(crop, reads), "; ".join(crop.issues), side)
        yield facts, torch.from_numpy(planes_of(crop, VIEWS, slices))


def crops_of(
    source: Crops, nodule_ids: Sequence[str] | None = None, progress: str = ""
) -> Iterator[tuple[NoduleCrop, str]]:
    """Crops in turn, each with its patient; ``progress``: what is shown while a store is read."""
    if isinstance(source, str | Path):
        source = CropStore(source)
    if isinstance(source, CropStore):
        ids = source.nodule_ids if nodule_ids is None else nodule_ids
        for nodule_id in track(ids, progress, len(ids)) if progress else ids:
            yield source.load(nodule_id), str(source.row(nodule_id)["patient_id"]) or patient_of(nodule_id)
        return
    if nodule_ids is not None:
        raise UsageError("nodule_ids chooses from a store; for crops, give the crops themselves")
    for crop in [source] if isinstance(source, NoduleCrop) else source:
        yield crop, patient_of(crop.nodule_id)
