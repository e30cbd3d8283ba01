"""``fit``: one training run from a store to a saved, calibrated model, continued where it was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from lidc_xai.data.dataset import PlaneDataset, standardised
from lidc_xai.data.trunk_cache import TrunkCache
from lidc_xai.files import plain, write_json
from lidc_xai.models.digest import base_digest, tensors_digest
from lidc_xai.models.lora import merge_lora
from lidc_xai.models.nodule_model import NoduleModel, build_model
from lidc_xai.models.saved import load_model, save_model
from lidc_xai.run import shareable_config
from lidc_xai.training.distillation import read_teacher
from lidc_xai.training.intervals import FEWEST, calibrate, fit_record
from lidc_xai.training.loop.module import FitModule, evaluated
from lidc_xai.training.loop.optimiser import choose_trainable
from lidc_xai.training.loop.parts import check_parts, split_off_validation
from lidc_xai.training.loop.record import read_record, run_key
from lidc_xai.training.loop.trainer import is_first_process, on_device, train
from lidc_xai.training.metrics import CLASSIFICATION, mean_squared
from lidc_xai.training.options import FitOptions
from lidc_xai.training.predictions import beside_readers

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

RECORD = "fit.json"


@dataclass(frozen=True)
class FitResult:
    """What a run left: the model of the best epoch, calibrated, in evaluation mode on the CPU; its folder (None where
    nothing was written); one row per epoch; the best epoch; figures on the validation part, which chose that epoch."""

    model: NoduleModel
    folder: Path | None
    history: pd.DataFrame
    best_epoch: int
    validation: dict[str, float]


def fit(
    store: CropStore,
    out: Path | str | None = None,
    *,
    train_ids: Sequence[str] | None = None,
    validation_ids: Sequence[str] | None = None,
    options: FitOptions | None = None,
    data: PlaneDataset | None = None,
    patients_apart: bool = True,
    info: dict[str, Any] | None = None,
) -> FitResult:
    """Train on ``train_ids``, choose the epoch and calibrate on ``validation_ids``, and save ``out/model``.

    Without ids, every nodule of the store is used; without validation ids, a share of the training patients is set
    aside. ``out=None`` writes nothing. The same call on a run that was killed continues it, on a finished one loads it.
    With 40 validation nodules of other patients the model brings 90 % intervals and P(any calcification) from them
    (``training.intervals``), whose coverage is not measured; ``cross_validate`` replaces and measures them.
    ``data``: planes already read (``planes_for``, at least these nodules). ``patients_apart=False`` allows a patient in
    both parts (the paper's split). ``info`` (plain values) is added to the model's ``training_info`` and makes it
    another run.

    Raises ``UsageError``, ``DataError`` (an empty class, one patient only, an output without ratings) or ``ModelError``
    (the loss became NaN), one line each.

    >>> options = FitOptions.of(model={"backbone": "vit_nodule_p8", "outputs": ["diameter"]}, epochs=1, batch_size=2)
    >>> ids = store.nodule_ids
    >>> fit(store, train_ids=ids[:4], validation_ids=ids[4:], options=options).model.output_names
    ('diameter',)
    """
    options = options or FitOptions()
    train_ids = list(train_ids) if train_ids is not None else list(store.nodule_ids)
    if validation_ids is None:
        train_ids, validation_ids = split_off_validation(store.manifest, train_ids, options)
    validation_ids = list(validation_ids)
    folder = Path(out) if out is not None else None
    teacher = _teacher(options, train_ids, info or {})
    key = run_key(store, [train_ids, validation_ids], options) | {"info": info or {}} | _taught_by(options, teacher)
    if folder is not None:
        finished = _finished(folder, key)
        if finished is not None:
            return finished
    if data is None:
        wanted = [*train_ids, *(name for name in validation_ids if name not in set(train_ids))]
        data = planes_for(store, wanted, options)
    rows, validation_rows = data.rows(train_ids), data.rows(validation_ids)
    check_parts(data, rows, validation_rows, options.model.outputs, patients_apart)
    model = prepare_model(options, data, rows)
    cache = trunk_for(model, data, options)
    if folder is not None and is_first_process():  # only now: wrong weights must not bind the folder to a run
        write_json(folder / RECORD, {"key": key, "complete": False})
    module = FitModule(model, data, rows, validation_rows, options, cache, teacher)
    history, best_epoch = train(module, options, folder)
    if options.lora.rank:
        model.adapter = merge_lora(model)
    with on_device(model, options):
        outputs = evaluated(model, data, validation_rows, cache)
    _calibrate(model, outputs, data.targets[validation_rows], options)
    figures = validation_figures(model, outputs, data.targets[validation_rows])
    model.training_info = _training_info(store, data, rows, validation_rows, options, best_epoch, figures, info or {})
    if patients_apart and len(validation_rows) >= FEWEST:
        # that part chose the epoch too, and nothing is left to measure coverage on; cross_validate puts a better one
        model.training_info["intervals"] = fit_record(
            beside_readers(model, data, validation_rows, outputs), options.calibration
        )
    if folder is not None and is_first_process():
        save_model(model, folder / "model")
        summary = {"best_epoch": best_epoch, "validation": figures, "history": history.to_dict("records")}
        write_json(folder / RECORD, plain({"key": key, "complete": True, **summary}))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return FitResult(model.cpu().eval(), folder, history, best_epoch, figures)


def _teacher(options: FitOptions, train_ids: Sequence[str], info: dict[str, Any]) -> Tensor | None:
    path = options.teacher.outputs
    return read_teacher(path, info.get("fold"), train_ids, options.model.outputs) if path else None


def _taught_by(options: FitOptions, teacher: Tensor | None) -> dict[str, Any]:
    """What a teacher says of the training part makes another run, in whatever file it lies."""
    if teacher is None:
        return {}
    return {"teacher": {"sha256": tensors_digest({"": teacher}), "weight": options.teacher.weight}}


def planes_for(
    store: CropStore, nodule_ids: Sequence[str], options: FitOptions, manifest: pd.DataFrame | None = None
) -> PlaneDataset:
    """The planes, and masks where the loss asks for them, that a run with these options reads.

    ``manifest``: ratings other than the store's own.
    """
    return PlaneDataset(
        store, nodule_ids, options.model.outputs, views=options.views, slices=options.slices_read,
        masks=options.loss.mask_weight > 0, manifest=manifest,
    )  # fmt: skip


def trunk_for(model: NoduleModel, data: PlaneDataset, options: FitOptions) -> TrunkCache | None:
    """The cached trunk that the options ask for, built where it is not there yet."""
    if options.trunk.folder is None or options.trainable_blocks is None:
        return None
    with on_device(model, options):
        return TrunkCache(
            options.trunk.folder, model, data, options.trainable_blocks, options.trunk.precision,
            mixed=options.precision == "bf16-mixed",
        )  # fmt: skip


def prepare_model(options: FitOptions, data: PlaneDataset, rows: Tensor) -> NoduleModel:
    """The network before its first step: initial weights, preprocessing and target scales from the training part."""
    model = build_model(**options.model.model_dump(), seed=options.seed)
    reads = replace(
        model.preprocess, views=tuple(options.views), slices=options.slices_averaged, channels=options.channels,
        turns=options.turns_averaged, box_mm=data.box_mm, spacing_mm=data.spacing_mm,
    )  # fmt: skip
    model.preprocess = reads if options.standardise == "fixed" else reads.fitted_to(data.planes[rows])
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        if kind == "regression":
            values = data.targets[rows, column].double()
            values = values[torch.isfinite(values)]
            model.target_scaling[name] = (float(values.mean()), float(values.std()))
    if options.lora.rank:  # an adapter says what it is to be added to
        model.initial_weights = {**model.initial_weights, "tensors_sha256": base_digest(model.backbone)}
    choose_trainable(model, options)
    return model


def _calibrate(model: NoduleModel, outputs: Tensor, targets: Tensor, options: FitOptions) -> None:
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        present = torch.isfinite(targets[:, column])
        if kind == "binary":
            logits, labels = outputs[present, column].double().numpy(), targets[present, column].numpy()
            model.calibration[name] = calibrate(logits, labels, options.calibration) or (1.0, 0.0)


def validation_figures(model: NoduleModel, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """AUC, accuracy and calibration of the malignancy output, MSE(z) of each biomarker, on raw outputs (n, outputs)."""
    figures: dict[str, float] = {}
    units = model.in_units(outputs)
    wanted = standardised(targets, model.output_names, model.target_scaling)
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        present = torch.isfinite(targets[:, column])
        if not present.any():
            continue
        y = wanted[present, column].double().numpy()
        if kind == "binary":
            probability = units[present, column].double().numpy()
            figures |= {f"{name}_{metric}": float(f(y, probability, None)) for metric, f in CLASSIFICATION.items()}
        else:
            figures[f"{name}_mse_z"] = float(mean_squared(y, outputs[present, column].double().numpy()))
    return figures


def _training_info(
    store: CropStore,
    data: PlaneDataset,
    rows: Tensor,
    validation_rows: Tensor,
    options: FitOptions,
    best_epoch: int,
    figures: dict[str, float],
    info: dict[str, Any],
) -> dict[str, Any]:
    patients = data.patient_ids
    simulated = bool(data.manifest["simulated"].astype(bool).any()) if "simulated" in data.manifest else False
    return plain(
        {
            "train_patients": sorted({patients[row] for row in rows.tolist()}),
            "validation_patients": sorted({patients[row] for row in validation_rows.tolist()}),
            "train_nodules": len(rows),
            "validation_nodules": len(validation_rows),
            "seed": options.seed,
            "simulated": simulated,
            "best_epoch": best_epoch,
            "options": shareable_config(options.model_dump(mode="json")),  # a model is given to others
            "store": store.path.name,
            "store_sha256": store.fingerprint.get("sha256"),
            "metrics": {f"validation {name}": value for name, value in figures.items()},
            **info,
        }
    )


def _finished(folder: Path, key: dict[str, Any]) -> FitResult | None:
    """The result of a finished run with the same key; None where there is none yet; an error for another run."""
    record = read_record(folder / RECORD, key)
    if record is None or not record["complete"]:
        return None
    model = load_model(folder / "model")
    return FitResult(model, folder, pd.DataFrame(record["history"]), record["best_epoch"], record["validation"])
