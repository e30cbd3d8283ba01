"""90 % intervals from out-of-fold residuals, and the calibration and sets of malignancy from out-of-fold logits.

Split conformal (Papadopoulos et al. 2002; Lei et al. 2018). For nodule i with prediction p_i and readers' mean y_i the
score is |y_i - p_i| / s_i; s is a scale fitted on other folds (the expected |residual| given p, p² and the predicted
diameter, at least a quarter of its mean). Of n scores the k-th smallest, k = ⌈0.9 (n + 1)⌉, is q, and the interval is
p ± q s, cut to the ends of the scale. q is taken by stratum of the *predicted* diameter; one with fewer than 40 scores
is pooled with its smaller neighbour. A record of all this is plain JSON and travels with a model.

Malignancy: Platt's line through the pooled out-of-fold logits of other patients; the conformal set holds "high" where
1 - p ≤ t and "low" where p ≤ t, t from the scores 1 - P(label); an empty set excludes both and is shown as both.
P(any calcification): the same line through the predicted calcification code against the share of readers below 6.

What a fold's own models are given comes from the other folds and never from a patient of that fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from lidc_xai.evaluation.statistics import DIAMETER_STRATA
from lidc_xai.ratings import BIOMARKERS, SCALES

LEVEL = 0.9
FEWEST = 40
"""Scores that a stratum needs for a quantile of its own."""
LEAST_SCALE = 0.25
WITH_INTERVAL = tuple(name for name in BIOMARKERS if name != "calcification")
"""Calcification is a code: it has a probability instead of an interval."""
SETS = {(True, True): "low high", (True, False): "low", (False, True): "high", (False, False): "low high (empty)"}
Array = np.ndarray
Record = dict[str, Any]


def calibrate(
    logits: np.ndarray, labels: np.ndarray, kind: Literal["platt", "temperature", "none"]
) -> tuple[float, float] | None:
    """(slope, intercept) for (n,) logits and 0/1 labels; None where the labels hold one class only.

    Platt (1999): both numbers by maximum likelihood on the targets (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), which keep a
    separable validation part from giving certainty. Temperature: intercept 0. The slope is kept positive, so that a map
    that speaks for a higher logit always speaks for a higher probability.
    """
    if kind == "none":
        return 1.0, 0.0
    positives, negatives = int((labels > 0.5).sum()), int((labels <= 0.5).sum())
    if not positives or not negatives:
        return None
    return platt(
        logits, np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2)), shift=kind == "platt"
    )


def platt(logits: np.ndarray, wanted: np.ndarray, shift: bool = True) -> tuple[float, float]:
    """(slope, intercept) of the sigmoid that is likeliest for (n,) targets between 0 and 1; ``shift=False``: through 0.

    >>> slope, intercept = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.7, 0.9]))
    >>> slope > 0.5, abs(intercept) < 1e-3
    (True, True)
    """
    spread = max(float(np.std(logits)), 1e-6)
    scaled = np.asarray(logits, dtype=np.float64) / spread

    def loss(parameters: np.ndarray) -> float:
        value = np.exp(parameters[0]) * scaled + (parameters[1] if shift else 0.0)
        return float(np.mean(np.logaddexp(0.0, value) - wanted * value))

    start = np.zeros(2 if shift else 1)
    bounds = [(-6.0, 6.0), (-20.0, 20.0)][: len(start)]
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    return math.exp(fitted[0]) / spread, float(fitted[1]) if shift else 0.0


def conformal_quantile(scores: Array, level: float = LEVEL) -> float:
    """The ⌈level (n + 1)⌉-th smallest of n scores; infinite where n is too small for that.

    >>> conformal_quantile(np.arange(1.0, 20.0))
    18.0
    >>> conformal_quantile(np.array([1.0, 2.0]))
    inf
    """
    rank = math.ceil(level * (len(scores) + 1) - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def pooled_strata(counts: Sequence[int], fewest: int = FEWEST) -> list[int]:
    """Which pool each stratum belongs to: the smallest too small one joins its smaller neighbour until none is left.

    >>> pooled_strata([100, 90, 30, 12])
    [0, 1, 2, 2]
    >>> pooled_strata([10, 100, 60, 45])
    [0, 0, 1, 2]
    """
    pools = [[number] for number in range(len(counts))]

    def size(pool: int) -> int:
        return sum(counts[number] for number in pools[pool])

    while len(pools) > 1 and size(smallest := min(range(len(pools)), key=size)) < fewest:
        beside = [pool for pool in (smallest - 1, smallest + 1) if 0 <= pool < len(pools)]
        other = min(beside, key=size)
        first, second = sorted((smallest, other))
        pools[first : second + 1] = [pools[first] + pools[second]]
    return [next(k for k, pool in enumerate(pools) if number in pool) for number in range(len(counts))]


def fit_record(table: pd.DataFrame, kind: str = "platt") -> Record:
    """Intervals, calibration and sets from out-of-fold rows (``predictions.csv``, with ``fold``) as plain values.

    ``kind``: of the calibration of malignancy ("platt", "temperature", "none").
    """
    record: Record = {"level": LEVEL, "nodules": len(table), "outputs": {}}
    for name in WITH_INTERVAL:
        if name in table and f"{name}_readers" in table:
            record["outputs"][name] = _fit_output(table, name)
    if "malignancy_logit" in table:
        known = table.dropna(subset=["label", "malignancy_logit"])
        logits, labels = known["malignancy_logit"].to_numpy(np.float64), known["label"].to_numpy(np.float64)
        pair = calibrate(logits, labels, kind) if len(known) else None  # type: ignore[arg-type]
        if pair is not None:
            probability = _sigmoid(pair[0] * logits + pair[1])
            scores = np.where(labels > 0.5, 1 - probability, probability)
            record["malignancy"] = list(pair)
            record["malignancy_threshold"] = min(conformal_quantile(scores), 1.0)
    if "calcification" in table and "p_calcified_readers" in table:
        known = table.dropna(subset=["calcification", "p_calcified_readers"])
        if len(known) >= FEWEST:
            code, share = (known[column].to_numpy(np.float64) for column in ("calcification", "p_calcified_readers"))
            slope, intercept = platt(-code, share)
            record["p_calcified"] = [-slope, intercept]
    return record


def add_intervals(table: pd.DataFrame, record: Record) -> pd.DataFrame:
    """``table`` with the columns that ``record`` gives its predictions: ``<name>_low``, ``<name>_high``,
    ``malignancy_set``, ``p_calcified``, and ``malignancy_probability`` where it has the logits.
    """
    new: dict[str, Any] = {}
    strata = _strata(table)
    for name, fitted in record["outputs"].items():
        value = _value(table, name)
        half = _scale(fitted, _design(table, name)) * _quantiles(fitted, strata)
        ends = SCALES[name]
        new[f"{name}_low"], new[f"{name}_high"] = (np.clip(value + s * half, ends.low, ends.high) for s in (-1, 1))
    if "malignancy" in record and "malignancy_logit" in table:
        slope, intercept = record["malignancy"]
        new["malignancy_probability"] = _sigmoid(slope * table["malignancy_logit"].to_numpy(np.float64) + intercept)
        new["malignancy_set"] = [
            malignancy_set(p, record["malignancy_threshold"]) for p in new["malignancy_probability"]
        ]
    if "p_calcified" in record and "calcification" in table:
        slope, intercept = record["p_calcified"]
        new["p_calcified"] = _sigmoid(slope * table["calcification"].to_numpy(np.float64) + intercept)
    return table.assign(**new)


def malignancy_set(probability: float, threshold: float) -> str:
    """ "low", "high", "low high", or "low high (empty)" where neither end is within reach.

    >>> malignancy_set(0.97, 0.6), malignancy_set(0.5, 0.6), malignancy_set(0.5, 0.3)
    ('high', 'low high', 'low high (empty)')
    """
    return SETS[probability <= threshold, 1 - probability <= threshold]


def cross_fitted(table: pd.DataFrame, kind: str = "platt") -> tuple[pd.DataFrame, dict[int, Record]]:
    """``table`` with intervals, and the record of every fold: each from the rows of the other folds, without any
    patient of that fold. With a single fold there is nothing to learn from: the table as it was, and no record.
    """
    records: dict[int, Record] = {}
    parts = []
    for fold in sorted(table["fold"].unique().tolist()):
        of_fold = table[table["fold"] == fold]
        others = table[(table["fold"] != fold) & ~table["patient_id"].isin(set(of_fold["patient_id"]))]
        if len(others) < FEWEST:
            return table, {}
        records[int(fold)] = fit_record(others, kind)
        parts.append(add_intervals(of_fold, records[int(fold)]))
    return pd.concat(parts).loc[table.index], records


def _fit_output(table: pd.DataFrame, name: str) -> Record:
    rows = table.dropna(subset=[name, f"{name}_readers"])
    residual = np.abs(rows[f"{name}_readers"].to_numpy(np.float64) - _value(rows, name))
    design, strata = _design(rows, name), _strata(rows)
    folds = rows["fold"].to_numpy() if "fold" in rows else np.zeros(len(rows))
    scores = np.empty(len(rows))
    for fold in np.unique(folds):  # a nodule's scale is not fitted on its own residual
        in_fold = folds == fold
        learn = ~in_fold if (~in_fold).sum() >= FEWEST else np.ones(len(rows), bool)
        scores[in_fold] = residual[in_fold] / _scale(_fit_scale(design[learn], residual[learn]), design[in_fold])
    counts = [int((strata == number).sum()) for number in range(len(DIAMETER_STRATA))]
    pools = np.array(pooled_strata(counts))
    by_stratum = [conformal_quantile(scores[pools[strata] == pools[number]]) for number in range(len(counts))]
    # Where no stratum, nor all together, have enough scores, the whole scale is the interval.
    quantiles = [value if math.isfinite(value) else None for value in by_stratum]
    return {**_fit_scale(design, residual), "quantiles": quantiles, "nodules": counts}


def _value(table: pd.DataFrame, name: str) -> Array:
    """Predictions cut to their scale, as they are shown."""
    return np.clip(table[name].to_numpy(np.float64), SCALES[name].low, SCALES[name].high)


def _design(table: pd.DataFrame, name: str) -> Array:
    """(n, 3 or 4): one, the prediction on its scale and its square, the log of the predicted diameter."""
    value = _value(table, name) / (SCALES[name].high if math.isfinite(SCALES[name].high) else 10.0)
    columns = [np.ones_like(value), value, value**2]
    if "diameter" in table:
        columns.append(np.log(np.clip(table["diameter"].to_numpy(np.float64), 2.0, None)))
    return np.stack(columns, axis=1)


def _fit_scale(design: Array, residual: Array) -> Record:
    """Expected |residual| by ridge regression, which leaves a constant where there is little to learn from."""
    penalty = np.diag([0.0] + [1.0] * (design.shape[1] - 1))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ residual)
    return {"scale": weights.tolist(), "least": max(LEAST_SCALE * float(residual.mean()), 1e-9)}


def _scale(fitted: Mapping[str, Any], design: Array) -> Array:
    return np.maximum(design @ np.array(fitted["scale"]), fitted["least"])


def _strata(table: pd.DataFrame) -> Array:
    """(n,) number of the stratum of the predicted diameter; without one, all are in the first."""
    if "diameter" not in table:
        return np.zeros(len(table), dtype=np.int64)
    ends = [end for end, _ in DIAMETER_STRATA[:-1]]
    return np.searchsorted(ends, table["diameter"].to_numpy(np.float64), side="right")


def _quantiles(fitted: Mapping[str, Any], strata: Array) -> Array:
    return np.array([math.inf if value is None else value for value in fitted["quantiles"]])[strata]


def _sigmoid(value: Array) -> Array:
    return 1 / (1 + np.exp(-value))
