"""Verbs from a store to a model and its figures: train, cross-validate, sweep, pretrain, evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lidc_xai.commands.common import (
    ModelConfig,
    StoreConfig,
    need_models,
    need_out,
    need_path,
    pick_device,
    usable_nodules,
    verb,
    what_to_look_at,
    words,
)
from lidc_xai.config import Config, load_config
from lidc_xai.errors import DataError
from lidc_xai.run import Run
from lidc_xai.training.options import FitOptions, PretrainOptions

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore


class TrainConfig(StoreConfig):
    """Train one model on a store.

    A share of the patients is set aside to choose the epoch and to calibrate. Writes RUN/model and the logs; a killed
    run continues with the same command. Everything about the training is under fit: --set fit.epochs=20.
    """

    epochs: int | None = Field(None, ge=1, description="Epochs, as --set fit.epochs=N.")
    limit: int | None = Field(None, ge=1, description="Only the store's first so many nodules: a try.")
    fit: FitOptions = FitOptions()


@verb("lidc-xai train --store runs/store --out runs/first --set fit.epochs=30")
def train(config: TrainConfig, run: Run) -> None:
    """Train and say where the model is."""
    store, out = _store(config), need_out(config)
    from lidc_xai.training import fit

    result = fit(store, out, options=_options(config))
    known = {name: value for name, value in result.validation.items() if value == value}
    run.results = {"best_epoch": result.best_epoch, "validation": known}
    print(f"{out / 'model'} (epoch {result.best_epoch}, chosen on the validation patients)")


class CrossValidateConfig(TrainConfig):
    """Train one model per fold and predict every nodule out of fold.

    Writes predictions.csv, metrics.json with intervals clustered by patient, the baselines on the same folds, and a
    final model of all patients.
    """

    splits: Path | None = Field(None, description="A file that split wrote; else made from --folds and --kind.")
    folds: int = Field(5, ge=2, description="Number of folds.")
    kind: Literal["patient", "paper"] = Field("patient", description="patient or paper (leaks).")
    holdout: bool = Field(
        False, description="One split of .7225 / .1275 / .15 instead of folds (the paper's section 5)."
    )
    cohort: str | None = Field(None, description="Split and test only nodules of this named cohort.")
    also_train: bool = Field(False, description="With a cohort: learn from the store's other nodules too.")
    only_folds: list[int] = Field([], description="Train and test only these folds (0-based); all by default.")
    final: bool = Field(True, description="Also train RUN/model on all patients; off with --set final=false.")
    permute_labels: bool = Field(False, description="Negative control: deal the ratings out anew among the nodules.")
    search: dict[str, object] = Field({}, description="Fields of SweepOptions: search the options inside every fold.")


@verb("lidc-xai cross-validate --store runs/store --out runs/cv --folds 5", "cross-validate")
def cross_validate_verb(config: CrossValidateConfig, run: Run) -> None:
    """Cross-validate and show the figures."""
    store, out = _store(config), need_out(config)
    splits_path = need_path(config.splits, "--splits") if config.splits else None
    from lidc_xai.data import load_splits
    from lidc_xai.training import SweepOptions, cross_validate

    search = load_config(SweepOptions, None, (), config.search) if config.search else None
    splits = load_splits(splits_path) if splits_path else None
    result = cross_validate(
        store,
        out,
        options=_options(config),
        splits=splits,
        n_folds=config.folds,
        kind=config.kind,
        holdout=config.holdout,
        search=search,
        folds=config.only_folds or None,
        cohort=config.cohort,
        also_train=config.also_train,
        final=config.final,
        permute_labels=config.permute_labels,
    )
    run.results = {"nodules": len(result.predictions)}
    _show(result.metrics)
    print(out / "metrics.json")


class SweepConfig(TrainConfig):
    """Search for training options.

    Optuna over the paper's ranges, judged on a validation part; a killed search goes on with the same command, and
    several processes or machines may share one --set search.storage=URL. Writes sweep.csv and best.yaml.
    """

    search: dict[str, object] = Field({}, description="Fields of SweepOptions.")


@verb("lidc-xai sweep --store runs/store --out runs/sweep", "sweep")
def sweep_verb(config: SweepConfig, run: Run) -> None:
    """Search and say what was best."""
    store, out = _store(config), need_out(config)
    from lidc_xai.training import SweepOptions, sweep
    from lidc_xai.training.loop.parts import split_off_validation

    search = load_config(SweepOptions, None, (), config.search)
    options = _options(config)
    train_ids, validation_ids = split_off_validation(store.manifest, store.nodule_ids, options)
    best = sweep(store, out, train_ids=train_ids, validation_ids=validation_ids, options=options, search=search)
    run.results = {"best_trial": best.number, "value": best.value, "trials": len(best.trials)}
    print(f"{out / 'best.yaml'} (trial {best.number}: {search.objective} {best.value:.4f})")


class PretrainConfig(StoreConfig):
    """Learn a backbone from the crops' own planes, without ratings.

    DINO on the planes of a store: a start for a site that cannot fetch published weights. Use it with
    --set fit.model.weights=OUT/backbone.safetensors. Only training patients belong into the store, or name a fold's
    model by --set patients_of=RUN/fold-0.
    """

    patients_of: Path | None = Field(
        None, description="A model (RUN/fold-0): only its training patients, so that its test patients stay unseen."
    )
    limit: int | None = Field(None, ge=1, description="Only the store's first so many nodules: a try.")
    pretrain: PretrainOptions = PretrainOptions()


@verb("lidc-xai pretrain --store runs/store --out runs/start", "pretrain")
def pretrain_verb(config: PretrainConfig, run: Run) -> None:
    """Pre-train and say where the weights are."""
    store, out, given = _store(config), need_out(config), _given(config)
    from lidc_xai.training import pretrain

    ids = None if config.patients_of is None else _taught(store, need_path(config.patients_of, "--set patients_of"))
    print(pretrain(store, out, options=config.pretrain.model_copy(update=given), nodule_ids=ids))


def _taught(store: CropStore, model_path: Path) -> list[str]:
    """The store's nodules of the patients that a saved model was trained on (its validation patients are left out)."""
    from lidc_xai.models import load_model

    patients = set(load_model(model_path).training_info.get("train_patients", ()))
    ids = store.manifest.loc[store.manifest["patient_id"].isin(patients), "nodule_id"].tolist()
    if not ids:
        raise DataError(f"{model_path}: {store.path} has no patient that this model was trained on")
    return ids


class EvaluateConfig(Config):
    """Recompute every figure of a cross-validated run from its predictions.csv alone."""

    predictions: Path | None = Field(None, description="A predictions.csv that cross-validate wrote.")


@verb("lidc-xai evaluate --predictions runs/cv/predictions.csv")
def evaluate(config: EvaluateConfig, run: Run) -> None:
    """Evaluate and show."""
    predictions = need_path(config.predictions, "--predictions")
    from lidc_xai.training import evaluate_predictions

    _show(evaluate_predictions(predictions, need_out(config) if config.out else None, seed=config.seed))


class PredictConfig(ModelConfig):
    """Predict every nodule of a store, with or without readers.

    One row per nodule: calibrated probability of a malignancy rating above 3, every biomarker in its own unit with its
    spread and in words, and whether the patient was unseen in training. To --out/predictions.csv or standard output.
    Several models are averaged.
    """


@verb("lidc-xai predict --store runs/store --model runs/cv --out runs/p", "predict")
def predict_verb(config: PredictConfig, run: Run) -> None:
    """Predict and write."""
    import sys

    store_path = need_path(config.store, "--store")
    from lidc_xai.csv_files import csv_text, write_csv
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodules._predict import predict

    store, models = CropStore(store_path), need_models(config.model, config.weights)
    ids = usable_nodules(store, words(config.nodule), run, config.limit)
    table = predict(models, store, nodule_ids=ids, device=pick_device(config.device))
    run.results = {"nodules": len(table), "out_of_fold": int(table["out_of_fold"].sum())}
    if config.out is None:
        sys.stdout.write(csv_text(table))
        print(what_to_look_at(table), file=sys.stderr)
        return
    write_csv(need_out(config) / "predictions.csv", table)
    print(f"{config.out / 'predictions.csv'}: {what_to_look_at(table)}")


def _store(config: TrainConfig | PretrainConfig) -> CropStore:
    """The store, or its first --limit nodules."""
    path = need_path(config.store, "--store")
    from lidc_xai.imaging import CropStore

    store = CropStore(path)
    return store if config.limit is None else store.only(store.nodule_ids[: config.limit])


def _options(config: TrainConfig) -> FitOptions:
    epochs = {} if config.epochs is None else {"epochs": config.epochs}
    return config.fit.model_copy(update=_given(config) | epochs)


def _given(config: Config) -> dict[str, Any]:
    """--seed and --device, where they were given."""
    return {name: getattr(config, name) for name in ("seed", "device") if name in config.model_fields_set}


def _show(metrics: dict[str, Any]) -> None:
    print(f"{metrics['nodules']} nodules of {metrics['patients']} patients, split by {metrics['split']}")
    print(metrics["meaning"])
    for name, figure in metrics.get("malignancy", {}).get("all", {}).items():
        if isinstance(figure, dict) and None not in (figure["value"], figure["low"], figure["high"]):
            print(f"  {name:16} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
