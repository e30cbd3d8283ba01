"""A saved model on crops: calibrated probabilities and biomarkers in their own units, one row per nodule.

Views are averaged in logit space, fold models after their own calibration. The spread is taken over views and fold
models; it says how much the model disagrees with itself, not how far it is from the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models.inference import view_outputs
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.models.saved import load_model
from lidc_xai.progress import track
from lidc_xai.ratings import SCALES
from lidc_xai.training.loop.planes import crop_planes, middle_planes

Models = NoduleModel | Path | str | Sequence["NoduleModel | Path | str"]
Crops = CropStore | Path | str | NoduleCrop | Iterable[NoduleCrop]


def predict(
    model: Models,
    crops_or_store: Crops,
    *,
    nodule_ids: Sequence[str] | None = None,
    device: str = "cpu",
    batch_size: int = 64,
) -> pd.DataFrame:
    """Read every crop with the model and return one row per nodule.

    ``model``: a ``NoduleModel``, a saved one, a cross-validated run (all of its fold models), or a sequence of these.
    ``crops_or_store``: a store (``nodule_ids`` chooses from it) or crops, which need no reader and no patient.

    Columns: nodule_id, patient_id; malignancy_probability (calibrated: that the readers' median rating is above 3),
    malignancy_logit (raw, what maps explain), malignancy_probability_low and _high (least and greatest over views and
    fold models), malignancy_words; for every biomarker its value in its own unit (within the ends of its scale),
    ``<name>_sd`` (standard deviation over views and fold models) and ``<name>_words``; n_models; out_of_fold: the
    patient was in no training or validation part of the models used. Where every model knows the patient, all are used
    and out_of_fold is False; where no model records whom it learned from, it is unknown (NA, an empty cell).
    """
    models = load_models(model)
    patients = [known_patients(each) for each in models]
    items = list(_planes(crops_or_store, nodule_ids, max(each.preprocess.slices for each in models)))
    if not items:
        raise DataError("no crop to predict; the store or the list is empty")
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, (_, _, planes) in enumerate(items):
        by_shape.setdefault(tuple(planes.shape), []).append(place)
    rows: list[dict[str, Any]] = [{} for _ in items]
    for places in by_shape.values():
        stack = torch.stack([items[place][2] for place in places])
        raw = [_outputs(each, stack, device, batch_size) for each in models]
        for number, place in enumerate(places):
            nodule_id, patient_id, _ = items[place]
            fresh = [k for k, known in enumerate(patients) if known and patient_id not in known]
            used = fresh or list(range(len(models)))
            values = prediction_row([models[k] for k in used], [raw[k][number] for k in used])
            head = {"nodule_id": nodule_id, "patient_id": patient_id}
            unseen = bool(fresh) if any(patients) else None
            rows[place] = {**head, **values, "n_models": len(used), "out_of_fold": unseen}
    return pd.DataFrame(rows).astype({"out_of_fold": "boolean"})


def load_models(model: Models) -> list[NoduleModel]:
    """One or several models with the same outputs; a run folder with ``fold-*/model`` gives all of these."""
    if isinstance(model, NoduleModel):
        return [model]
    if isinstance(model, str | Path):
        folds = sorted(Path(model).glob("fold-*/model"), key=lambda path: int(path.parent.name.split("-")[1]))
        return [load_model(path) for path in folds] if folds else [load_model(model)]
    models = [one for each in model for one in load_models(each)]
    if not models:
        raise UsageError("no model given")
    if len({one.output_names for one in models}) > 1:
        raise UsageError("models with different outputs cannot be averaged; give models of one run")
    return models


def known_patients(model: NoduleModel) -> set[str]:
    """Patients that the model learned from or that chose its epoch and calibration."""
    info = model.training_info
    return {*info.get("train_patients", ()), *info.get("validation_patients", ())}


def patient_of(nodule_id: str) -> str:
    """The patient in a nodule's id ("LIDC-IDRI-0003-s1-n1"); an id of another form stands for its own patient."""
    found = re.fullmatch(r"(.+)-s\d+-n\d+", nodule_id)
    return found[1] if found else nodule_id


def prediction_row(models: Sequence[NoduleModel], raw: Sequence[Tensor]) -> dict[str, Any]:
    """Columns of one nodule from each model's raw outputs, (V, outputs) per model."""
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
            row[f"{name}_probability_low"] = min(float(spread.min()), probability)
            row[f"{name}_probability_high"] = max(float(spread.max()), probability)
            row[f"{name}_words"] = SCALES[name].high_words if probability >= 0.5 else SCALES[name].low_words
        else:
            scale = SCALES[name]
            row[name] = min(max(float(spread.mean()), scale.low), scale.high)
            row[f"{name}_sd"] = float(spread.std(correction=0))
            row[f"{name}_words"] = scale.in_words(row[name])
    return row


def _outputs(model: NoduleModel, planes: Tensor, device: str, batch_size: int) -> Tensor:
    home = next(model.parameters()).device
    try:
        read = planes[:, [VIEWS.index(view) for view in model.preprocess.views]]
        return view_outputs(model.to(device), middle_planes(read, model.preprocess.slices), batch_size)
    finally:
        model.to(home)


def _planes(source: Crops, nodule_ids: Sequence[str] | None, slices: int) -> Iterator[tuple[str, str, Tensor]]:
    """Nodule id, patient id and the planes about the middle of all views, (3, slices, h, w), of every crop."""
    if isinstance(source, str | Path):
        source = CropStore(source)
    if isinstance(source, CropStore):
        ids = list(nodule_ids) if nodule_ids is not None else source.nodule_ids
        for nodule_id in track(ids, "reading crops", len(ids)):
            patient = str(source.row(nodule_id)["patient_id"]) or patient_of(nodule_id)
            yield nodule_id, patient, crop_planes(source.load(nodule_id), slices)
        return
    if nodule_ids is not None:
        raise UsageError("nodule_ids chooses from a store; for crops, give the crops themselves")
    for crop in [source] if isinstance(source, NoduleCrop) else source:
        yield crop.nodule_id, patient_of(crop.nodule_id), crop_planes(crop, slices)
