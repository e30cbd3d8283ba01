"""``evaluate_predictions``: every published figure from ``predictions.csv`` alone.

Per output: value and 95 % interval (patients drawn with replacement), by size of the nodule, beside baselines on the
same folds, with paired comparisons, the reliability diagram and the readers' own noise as the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_xai.csv_files import read_table
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.statistics import DIAMETER_STRATA, diameter_stratum, exact_share, holm
from lidc_xai.files import plain, read_json, write_json
from lidc_xai.ratings import BIOMARKERS, OUTPUTS
from lidc_xai.training.baselines import own_diameter
from lidc_xai.training.bootstrap import mcnemar, metric_difference, metric_interval, patient_weights
from lidc_xai.training.metrics import (
    CLASSIFICATION,
    ECE_BINS,
    Metric,
    accuracy,
    auc,
    auc_within,
    brier,
    mean_absolute,
    mean_squared,
    mean_value,
    r_squared,
    reader_noise,
    share,
    spearman,
)

_NEEDED = ("nodule_id", "patient_id", "label", "n_readers", "diameter_readers")
_TOGETHER = (("_readers", "_readers_sd"), ("_low", "_high"), ("_low", "_readers"))
_OWN = "baseline.own_diameter.malignancy_probability"
_COMPARED: dict[str, Metric] = {"auc": auc, "accuracy": accuracy, "brier": brier}


def evaluate_predictions(
    predictions: pd.DataFrame | Path | str, out: Path | str | None = None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """All figures of a cross-validated run as nested plain values; written to ``out/metrics.json`` where ``out`` is
    given.

    Raises ``UsageError`` for a missing file, ``DataError`` for a table that is no ``predictions.csv``.
    """
    table = _read(predictions)
    options = {"resamples": resamples, "seed": seed}
    metrics: dict[str, Any] = {
        "nodules": len(table),
        "patients": int(table["patient_id"].nunique()),
        "simulated": bool(table["simulated"].astype(bool).any()) if "simulated" in table else False,
        "split": str(table["split_kind"].iloc[0]) if "split_kind" in table else "unknown",
        "resamples": resamples,
        "meaning": "agreement with radiologists' ratings, not with pathology",
    }
    metrics["leaks"] = metrics["split"] == "paper"
    names = _baselines(table)
    if "malignancy_probability" in table:
        metrics["malignancy"] = _malignancy(table, "malignancy_probability", options)
        metrics["malignancy"]["per_fold"] = _per_fold(table)
        metrics["malignancy"]["reliability"] = reliability(table, options)
        metrics["comparisons"] = comparisons(table, names, options)
    if {"diameter", "fold"} <= set(table):  # what its own size gives: beside the model, no rival to be tested against
        table = table.assign(**{_OWN: own_diameter(table)})
    metrics["biomarkers"] = _biomarkers(table, "", options)
    metrics["intervals"] = coverage(table, options)
    metrics["baselines"] = {
        name: {
            part: figures
            for part, figures in (
                ("malignancy", _malignancy(table, f"baseline.{name}.malignancy_probability", options)),
                ("biomarkers", _biomarkers(table, f"baseline.{name}.", options)),
            )
            if figures
        }
        for name in _baselines(table)
    }
    metrics["reader_noise"] = _noise(table)
    metrics = plain(metrics)
    if out is not None:
        write_json(Path(out) / "metrics.json", metrics)
    return metrics


def _read(predictions: pd.DataFrame | Path | str) -> pd.DataFrame:
    if isinstance(predictions, pd.DataFrame):
        table, where = predictions, "predictions"
    else:
        where = str(predictions)
        if not Path(predictions).is_file():
            raise UsageError(f"{where}: no such file; give the predictions.csv of a cross-validated run")
        table = read_predictions_table(predictions)
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise DataError(f"{where}: has no column {missing[0]!r}; it is not the predictions.csv of a cross-validation")
    for name in ("malignancy", *BIOMARKERS):
        for has, needs in _TOGETHER:
            if f"{name}{has}" in table and f"{name}{needs}" not in table:
                raise DataError(f"{where}: has a column '{name}{has}', but no '{name}{needs}' beside it")
    if not len(table):
        raise DataError(f"{where}: has no row")
    return table.assign(label=pd.to_numeric(table["label"]).astype("Float64").to_numpy(np.float64, na_value=np.nan))


def _baselines(table: pd.DataFrame) -> list[str]:
    parts = [column.split(".") for column in table.columns if column.startswith("baseline.")]
    return list(dict.fromkeys(part[1] for part in parts if len(part) == 3))


def _malignancy(table: pd.DataFrame, column: str, options: dict[str, int]) -> dict[str, Any]:
    """Figures on all labelled nodules and by size of the readers' diameter."""
    if column not in table:
        return {}
    sizes = table["diameter_readers"].map(diameter_stratum)
    parts = {"all": table, **{name: table[sizes == name] for _, name in DIAMETER_STRATA}}
    by_part = {part: _classification(rows, column, options) for part, rows in parts.items()}
    tested = table.dropna(subset=["label", column])
    if _several_folds(tested):
        y, probability = tested["label"].to_numpy(np.float64), tested[column].to_numpy(np.float64)
        metric = auc_within(tested["fold"].to_numpy())
        by_part["all"]["auc_within_folds"] = _figure(metric, y, probability, tested["patient_id"], options)
    return by_part


def _several_folds(table: pd.DataFrame) -> bool:
    return "fold" in table and table["fold"].nunique() > 1


def _classification(rows: pd.DataFrame, column: str, options: dict[str, int]) -> dict[str, Any]:
    y, probability = rows["label"].to_numpy(np.float64), rows[column].to_numpy(np.float64)
    there = np.isfinite(y) & np.isfinite(probability)
    figures = {
        name: _figure(metric, y, probability, rows["patient_id"], options) for name, metric in CLASSIFICATION.items()
    }
    return {"nodules": int(there.sum()), "positives": int(y[there].sum()), **figures}


def _per_fold(table: pd.DataFrame) -> list[dict[str, Any]]:
    if "fold" not in table:
        return []
    rows = []
    for fold, part in table.dropna(subset=["label"]).groupby("fold"):
        y, probability = part["label"].to_numpy(), part["malignancy_probability"].to_numpy()
        figures = {name: float(metric(y, probability, None)) for name, metric in CLASSIFICATION.items()}
        rows.append({"fold": fold, "nodules": len(part), **figures})
    return rows


def _biomarkers(table: pd.DataFrame, prefix: str, options: dict[str, int]) -> dict[str, Any]:
    """MSE(z), MAE in own units, R² and Spearman of every biomarker, and the mean MSE(z) over those predicted."""
    by_biomarker: dict[str, Any] = {}
    scaled: list[tuple[np.ndarray, np.ndarray]] = []
    patients = table["patient_id"]
    for name in BIOMARKERS:
        if f"{prefix}{name}" not in table or f"{name}_readers" not in table or f"{name}_train_sd" not in table:
            continue
        y = table[f"{name}_readers"].to_numpy(np.float64)
        value = table[f"{prefix}{name}"].to_numpy(np.float64)
        sd = table[f"{name}_train_sd"].to_numpy(np.float64)
        scaled.append((y / sd, value / sd))
        by_biomarker[name] = {
            "mse_z": _figure(mean_squared, y / sd, value / sd, patients, options),
            "mae": _figure(mean_absolute, y, value, patients, options),
            "r2": _figure(r_squared, y, value, patients, options),
            "spearman": _figure(spearman, y, value, patients, options),
        }
    if scaled:
        mean = _mean_of_known([(value - y) ** 2 for y, value in scaled])
        overall = _figure(mean_squared, np.zeros_like(mean), np.sqrt(mean), patients, options)
        by_biomarker["mean"] = {"mse_z": overall, "outputs": len(scaled)}
    return by_biomarker


def coverage(table: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    """How often the readers' mean lies inside its 90 % interval, and how wide that is in the output's own unit: on all
    nodules, by predicted and by readers' diameter; ``mean`` over the biomarkers; for malignancy how often the set holds
    the label, how many ends it has, and the share of empty ones.
    """
    parts = {"all": np.ones(len(table), bool)}
    for column, words in (("diameter", "predicted"), ("diameter_readers", "readers")):
        if column in table:
            sizes = table[column].map(diameter_stratum)
            parts |= {f"{words} {size}": (sizes == size).to_numpy() for _, size in DIAMETER_STRATA}
    shares: dict[str, Any] = {}
    every = []
    for name in BIOMARKERS:
        if f"{name}_low" in table:
            y, low, high = (table[f"{name}{end}"].to_numpy(np.float64) for end in ("_readers", "_low", "_high"))
            inside = np.where(np.isfinite(y), (y >= low) & (y <= high), np.nan)
            shares[name] = _shares(table, parts, {"coverage": inside, "width": high - low}, options)
            every.append(inside)
    if every:
        shares["mean"] = _shares(table, parts, {"coverage": _mean_of_known(every)}, options)
    if "malignancy_set" in table:
        given, label = table["malignancy_set"].astype(str), table["label"].to_numpy(np.float64)
        empty = given.str.contains("empty").to_numpy()
        has = {end: given.str.contains(end).to_numpy() for end in ("low", "high")}
        held = np.where(np.isfinite(label), np.where(label > 0.5, has["high"], has["low"]), np.nan)
        size = has["low"].astype(float) + has["high"]
        values = {"coverage": held, "width": size, "empty": empty.astype(float)}
        shares["malignancy"] = _shares(table, parts, values, options)
    return shares


def _shares(
    table: pd.DataFrame, parts: dict[str, np.ndarray], values: dict[str, np.ndarray], options: dict[str, int]
) -> dict[str, Any]:
    def figure(name: str, value: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
        metric = mean_value if name == "width" else share
        return _figure(metric, value[chosen], value[chosen], table["patient_id"][chosen], options)

    return {
        part: {name: figure(name, value, chosen) for name, value in values.items()}
        for part, chosen in parts.items()
        if chosen.any()
    }


def reliability(table: pd.DataFrame, options: dict[str, int]) -> list[dict[str, Any]]:
    """Ten bins of the calibrated probability: how many nodules, mean probability, share of positives with interval."""
    labelled = table.dropna(subset=["label", "malignancy_probability"])
    probability, y = labelled["malignancy_probability"].to_numpy(), labelled["label"].to_numpy()
    bins = np.clip((probability * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    weights = patient_weights(labelled["patient_id"].tolist(), **options)
    rows = []
    for number in range(ECE_BINS):
        inside = bins == number
        row: dict[str, Any] = {"from": number / ECE_BINS, "to": (number + 1) / ECE_BINS, "nodules": int(inside.sum())}
        if inside.any():
            drawn = weights[:, inside]
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = drawn @ y[inside] / drawn.sum(1)
            low, high = np.nanquantile(shares, [0.025, 0.975])
            if y[inside].mean() in (0.0, 1.0):
                low, high = exact_share(y[inside].mean(), labelled["patient_id"][inside].nunique())
            row |= {"mean_probability": probability[inside].mean(), "share_positive": y[inside].mean()}
            row |= {"low": low, "high": high}
        rows.append(row)
    return rows


def comparisons(table: pd.DataFrame, baselines: list[str], options: dict[str, int]) -> list[dict[str, Any]]:
    """The model against every baseline on the same nodules: AUC, accuracy, Brier score, overall and at 8–12 mm."""
    rows = []
    sizes = table["diameter_readers"].map(diameter_stratum)
    for part, chosen in (("all", table), ("8–12 mm", table[sizes == "8–12 mm"])):
        y, model = chosen["label"].to_numpy(np.float64), chosen["malignancy_probability"].to_numpy(np.float64)
        for name in baselines:
            other = chosen[f"baseline.{name}.malignancy_probability"].to_numpy(np.float64)
            compared: dict[str, Metric] = dict(_COMPARED)
            if part == "all" and _several_folds(chosen) and np.isfinite([y, model, other]).all():
                compared["auc_within_folds"] = auc_within(chosen["fold"].to_numpy())
            for metric, function in compared.items():
                difference = metric_difference(function, y, model, other, chosen["patient_id"].tolist(), **options)
                row = {"part": part, "metric": metric, "a": "model", "b": name, **vars(difference)}
                rows.append(row | ({"p_mcnemar": mcnemar(y, model, other)} if metric == "accuracy" else {}))
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(corrected)
    return rows


def _noise(table: pd.DataFrame) -> dict[str, Any]:
    noise = {}
    for name in ("malignancy", *BIOMARKERS):
        if f"{name}_readers" in table:
            means, deviations = (table[f"{name}_readers{end}"].to_numpy(np.float64) for end in ("", "_sd"))
            noise[name] = vars(reader_noise(means, deviations, table["n_readers"].to_numpy(np.float64)))
    return noise


def _mean_of_known(values: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) mean over arrays (n,) of the values that are numbers; NaN where there is none."""
    known = np.isfinite(values).sum(axis=0)
    return np.where(known > 0, np.nansum(values, axis=0) / np.maximum(known, 1), np.nan)


def _figure(
    metric: Metric, y: np.ndarray, predicted: np.ndarray, patients: pd.Series, options: dict[str, int]
) -> dict[str, Any]:
    """A figure with its interval as plain values."""
    interval = metric_interval(metric, y, predicted, patients.tolist(), **options)
    values = {"value": interval.mean, "low": interval.low, "high": interval.high}
    values |= {"n": interval.n, "patients": interval.clusters}
    return values | {name: told for name in ("undefined", "note") if (told := getattr(interval, name))}


def read_predictions(run: Path | str, columns: Sequence[str] = ("nodule_id", "patient_id", "fold")) -> pd.DataFrame:
    """``predictions.csv`` of ``run`` by nodule id; ``DataError`` where it lacks one of ``columns``."""
    path = _file(run, "predictions.csv")
    table = read_predictions_table(path)
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it is no predictions.csv of cross-validate")
    return table.sort_values("nodule_id", ignore_index=True)


def read_predictions_table(path: Path | str) -> pd.DataFrame:
    """A predictions.csv as it lies there; ``DataError`` where a figure is no number or a nodule is there twice."""
    return read_table(path, ("nodule_id",), _is_figure)


def _is_figure(column: str) -> bool:
    named = column.startswith((*OUTPUTS, "p_calcified")) and not column.endswith(("_words", "_set"))
    return named or column.startswith("baseline.") or column in ("label", "fold", "n_readers")


def read_metrics(run: Path | str) -> dict[str, Any]:
    """``metrics.json`` of ``run``; ``DataError`` where it is damaged or something else."""
    path = _file(run, "metrics.json")
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: is a {type(metrics).__name__}; make it again with lidc-xai evaluate")
    missing = [name for name in ("malignancy", "biomarkers", "baselines", "leaks") if name not in metrics]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; it is no metrics.json of cross-validate")
    return metrics


def _file(run: Path | str, name: str) -> Path:
    path = Path(run) / name
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a folder that cross-validate has finished")
    return path
