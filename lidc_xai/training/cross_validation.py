"""Cross-validation: every nodule predicted by a model that never saw its patient, in one file.

Nested: in each fold, the epoch and the calibration come from a validation part of the training patients. The paper's
split by nodule stays available and says that it leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from lidc_xai.annotations import select_cohort
from lidc_xai.csv_files import write_csv
from lidc_xai.data.dataset import PlaneDataset
from lidc_xai.data.splits import FoldIds, Splits, make_holdout, make_splits
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import write_text
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.models.saved import load_model, save_model
from lidc_xai.progress import say
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import shareable_config
from lidc_xai.training.assessment import evaluate_predictions
from lidc_xai.training.baselines import baseline_features, baseline_predictions
from lidc_xai.training.fitting import FitResult, fit, planes_for
from lidc_xai.training.intervals import cross_fitted, fit_record
from lidc_xai.training.loop.record import weights_by_hash
from lidc_xai.training.loop.trainer import on_device
from lidc_xai.training.options import FitOptions
from lidc_xai.training.predictions import fold_predictions
from lidc_xai.training.sweeping import SweepOptions, sweep

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class CrossValidation:
    """The run's folder, out-of-fold predictions (one row per nodule), metrics as in ``metrics.json``, and the model
    trained on all patients (None where it was not asked for)."""

    folder: Path
    predictions: pd.DataFrame
    metrics: dict[str, Any]
    final: FitResult | None


def cross_validate(
    store: CropStore,
    out: Path | str,
    *,
    options: FitOptions | None = None,
    splits: Splits | None = None,
    n_folds: int = 5,
    split_seed: int = 44,
    kind: str = "patient",
    holdout: bool = False,
    folds: Sequence[int] | None = None,
    cohort: str | None = None,
    also_train: bool = False,
    baselines: bool = True,
    final: bool = True,
    search: SweepOptions | None = None,
    permute_labels: bool = False,
    resamples: int = 2000,
) -> CrossValidation:
    """Train one model per fold and write ``predictions.csv``, ``metrics.json`` and ``config.yaml`` to ``out``.

    ``splits``: made before, or made here from ``n_folds``, ``split_seed`` and ``kind`` ("patient", or "paper": by
    nodule, the test part choosing the epoch, as published). ``holdout``: one split instead of folds, .15 to test (the
    paper's section 5, by nodule or by patient as ``kind`` says; then there is no final model). ``folds``: only these
    (then there is no final model).
    ``cohort``: only nodules of this named cohort are split and tested; with ``also_train`` the store's other nodules
    teach too, in every fold whose validation and test parts do not have their patient.
    ``final``: also train ``out/model`` on all patients. ``permute_labels``: a negative control whose ratings are dealt
    out anew among the nodules. ``search``: before each fold, search the options on its own training and validation
    parts (then there is no final model, which would need a search of its own). The same call continues a run that was
    killed.
    """
    options, folder = options or FitOptions(), Path(out)
    manifest = _permuted(store.manifest, options.seed) if permute_labels else store.manifest
    tested = _of_cohort(manifest, cohort, store)
    if also_train and cohort is None:
        raise UsageError("also_train needs a cohort: without one every nodule of the store is tested")
    if splits is None:
        as_rated = _of_cohort(store.manifest, cohort, store)  # a control has the folds of the run that it is one of
        splits = _splits(as_rated, holdout, n_folds, split_seed, kind, options.validation_share)
    chosen = list(range(len(splits))) if folds is None else list(folds)
    if search is not None and splits.leaks:
        raise UsageError("a search needs a validation part apart from the test part; use splits of kind 'patient'")
    if not chosen:
        raise UsageError("folds: none was asked for; leave it out for all of them")
    run: dict[str, Any] = {
        "n_folds": len(splits), "split_seed": splits.seed, "split_kind": splits.kind, "leaks": splits.leaks,
        "validation_share": splits.validation_share, "permute_labels": permute_labels, "cohort": cohort,
        "also_train": also_train,
    }  # fmt: skip
    given = shareable_config({**run, "fit": weights_by_hash(options.model_dump(mode="json"))})
    write_text(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False))
    data = planes_for(store, (manifest if also_train else tested)["nodule_id"].tolist(), options, manifest)
    features = baseline_features(store, tested["nodule_id"].tolist()) if baselines else None
    tables = []
    for fold in chosen:
        say(f"fold {fold} ({chosen.index(fold) + 1} of {len(chosen)})")
        ids = splits.nodules(tested, fold)
        tables.append(_fold(store, folder, options, search, splits, fold, ids, data, features, run))
    predictions, metrics, covered = _out_of_fold(tables, folder, options, resamples)
    last: FitResult | None = None
    if final and folds is None and not holdout and not permute_labels and search is None:
        say("final model on all patients")
        last = fit(store, folder, train_ids=data.nodule_ids, options=options, data=data, info={**run, "fold": None})
        if covered is not None:
            everything = fit_record(predictions, options.calibration)
            last = replace(last, model=_equip(folder / "model", everything | covered))
    return CrossValidation(folder, predictions, metrics, last)


def _out_of_fold(
    tables: Sequence[pd.DataFrame], folder: Path, options: FitOptions, resamples: int
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any] | None]:
    """All folds' predictions, calibrated on one another and written; their metrics; the measured coverage, which the
    folds' models keep beside their intervals (None where there are too few nodules for any)."""
    predictions = pd.concat(tables, ignore_index=True).sort_values("nodule_id", ignore_index=True)
    predictions, records = cross_fitted(predictions, options.calibration)
    write_predictions(predictions, folder / PREDICTIONS)
    metrics = evaluate_predictions(folder / PREDICTIONS, folder, resamples=resamples, seed=options.seed)
    covered = {"coverage": {name: figure["all"]["coverage"]["value"] for name, figure in metrics["intervals"].items()}}
    for fold, record in records.items():
        _equip(folder / f"fold-{fold}" / "model", record | covered)
    return predictions, metrics, covered if records else None


def _splits(tested: pd.DataFrame, holdout: bool, n_folds: int, seed: int, kind: str, validation_share: float) -> Splits:
    if holdout:
        return make_holdout(tested, seed, kind, validation_share=validation_share)  # type: ignore[arg-type]
    share = validation_share if kind == "patient" else 0.0
    return make_splits(tested, n_folds, seed, kind, share)  # type: ignore[arg-type]


def _fold(
    store: CropStore,
    folder: Path,
    options: FitOptions,
    search: SweepOptions | None,
    splits: Splits,
    fold: int,
    ids: FoldIds,
    data: PlaneDataset,
    features: pd.DataFrame | None,
    run: dict[str, Any],
) -> pd.DataFrame:
    train_ids = ids.train + _others(data, ids)
    if search is not None:
        swept = sweep(
            store, folder / f"fold-{fold}" / "sweep", train_ids=train_ids, validation_ids=ids.validation,
            options=options, search=search, data=data,
        )  # fmt: skip
        options = swept.options
    result = fit(
        store, folder / f"fold-{fold}", train_ids=train_ids, validation_ids=ids.validation, options=options, data=data,
        patients_apart=not splits.leaks, info={**run, "fold": fold},
    )  # fmt: skip
    with on_device(result.model, options):
        table = fold_predictions(result.model, data, ids.test)
    for name, sd in _deviations(data, ids.train).items():  # of the tested cohort: other nodules' ratings vary more
        table[f"{name}_train_sd"] = sd
    table.insert(2, "fold", fold)
    table["split_kind"] = splits.kind
    if features is not None:
        columns = ["label", *(name for name in options.model.outputs if name in BIOMARKERS)]
        targets = data.manifest.set_index("nodule_id")[columns].astype("float64")
        learn = list(dict.fromkeys([*ids.train, *ids.validation] if splits.validation_share else ids.train))
        table = table.join(baseline_predictions(features, targets, learn, ids.test), on="nodule_id")
    return table


def _equip(path: Path, record: dict[str, Any]) -> NoduleModel:
    """Give a saved model its intervals and the calibration of pooled out-of-fold logits."""
    model = load_model(path)
    model.training_info["intervals"] = record
    if "malignancy" in record:
        model.calibration["malignancy"] = (record["malignancy"][0], record["malignancy"][1])
    save_model(model, path)
    return model


def _of_cohort(manifest: pd.DataFrame, cohort: str | None, store: CropStore) -> pd.DataFrame:
    if cohort is None:
        return manifest
    chosen = manifest[manifest["nodule_id"].isin(set(select_cohort(cohort)["nodule_id"]))].reset_index(drop=True)
    if not len(chosen):
        raise DataError(f"{store.path}: holds no nodule of the cohort {cohort!r}")
    return chosen


def _deviations(data: PlaneDataset, nodule_ids: Sequence[str]) -> dict[str, float]:
    """Standard deviation of every biomarker's ratings among these nodules."""
    targets = data.targets[data.rows(nodule_ids)].double().numpy()
    return {
        name: float(np.nanstd(targets[:, column], ddof=1))
        for column, name in enumerate(data.outputs)
        if name in BIOMARKERS
    }


def _others(data: PlaneDataset, ids: FoldIds) -> list[str]:
    """Nodules outside the tested cohort whose patient is neither in the validation nor in the test part."""
    split = {*ids.train, *ids.validation, *ids.test}
    patient = dict(zip(data.nodule_ids, data.patient_ids, strict=True))
    aside = {patient[name] for name in (*ids.validation, *ids.test)}
    return [name for name in data.nodule_ids if name not in split and patient[name] not in aside]


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write as CSV, atomically, with as many digits as it takes to read the same numbers back."""
    repeated = table["nodule_id"][table["nodule_id"].duplicated()]
    if len(repeated):
        raise DataError(f"{path}: nodule {repeated.iloc[0]!r} was tested in two folds; make new splits")
    write_csv(path, table)


def _permuted(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Ratings and label of every nodule taken from another one; pixels, patients and ids stay."""
    names = [f"{name}{end}" for name in ("malignancy", *BIOMARKERS) for end in ("", "_sd")]
    columns = [name for name in ("label", "malignancy_median", "n_readers", *names) if name in manifest]
    order = np.random.default_rng(seed).permutation(len(manifest))
    return manifest.assign(**{name: manifest[name].iloc[order].to_numpy() for name in columns})
