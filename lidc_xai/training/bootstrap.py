"""Intervals and paired comparisons of any figure of merit by drawing whole patients.

A replicate is a row of weights: how often each nodule's patient was drawn. The interval is the 2.5 to 97.5 percentile
over the replicates in which the figure is defined; a comparison uses the same replicates for both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from lidc_xai.evaluation.statistics import EXACT, RESAMPLES, Interval, PairedDifference, exact_share
from lidc_xai.ratings import EVEN_CHANCE
from lidc_xai.training.metrics import Array, Metric, auc, counted_in, disjoint_pairs

SEPARATED = "perfectly separated: exact interval (Clopper and Pearson) of pairs of patients, each patient in one pair"
FEWEST_DEFINED = 0.5
"""Share of replicates in which a figure must be defined for an interval to be given."""


def patient_weights(patients: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """(resamples, n) how often each nodule is drawn when as many patients are drawn as there are, with replacement."""
    codes, names = pd.factorize(np.asarray(patients, dtype=object))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    return draws[:, codes].astype(np.float64)


def metric_interval(
    metric: Metric,
    y: Array,
    predicted: Array,
    patients: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """``metric`` (of :mod:`lidc_xai.training.metrics`) with its interval; ``mean`` is the value on all nodules.

    A share of exactly 0 or 1 has Clopper and Pearson's interval, patients counted, and an AUC of 0 or 1 that of as many
    pairs of patients as can be formed without using one twice: their replicates are all alike. Any other figure whose
    replicates are all alike has no interval.

    y, predicted: (n,), rows with NaN in either are left out and counted as undefined.

    >>> from lidc_xai.training.metrics import auc
    >>> y, probability = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.9, 0.4, 0.6])
    >>> found = metric_interval(auc, y, probability, ["a", "b", "c", "d"], resamples=50)
    >>> found.mean, found.clusters
    (1.0, 4)
    """
    (y, predicted), groups, left_out = _present(patients, y, predicted)
    if not len(y):
        return Interval(np.nan, np.nan, np.nan, 0, 0, left_out, "no samples")
    value, clusters = float(metric(y, predicted, None)), len(set(groups))
    if clusters < 2:
        return Interval(value, np.nan, np.nan, len(y), clusters, left_out, "no interval from a single patient")
    low, high, note = _percentiles(metric(y, predicted, patient_weights(groups, resamples, seed)))
    counted = counted_in(metric, y, predicted)
    if value in (0.0, 1.0) and counted is not None:
        many = len({groups[place] for place in np.flatnonzero(counted)})
        low, high, note = *exact_share(value, many), EXACT
    elif value in (0.0, 1.0) and metric is auc:
        low, high, note = *exact_share(value, disjoint_pairs(y, groups)), SEPARATED
    elif low == high:
        low, high, note = np.nan, np.nan, "no interval: every resample gives the same"
    return Interval(value, low, high, len(y), clusters, left_out, note)


def metric_difference(
    metric: Metric,
    y: Array,
    first: Array,
    second: Array,
    patients: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """metric(first) − metric(second) on the nodules that have both, its interval, and a two-sided bootstrap p-value.

    p = 2 · the smaller share of replicates on either side of zero (ties on both sides), at least 2 / (resamples + 1).

    >>> from lidc_xai.training.metrics import accuracy
    >>> y, right = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.9, 0.4, 0.6])
    >>> metric_difference(accuracy, y, right, 1 - right, ["a", "b", "c", "d"], resamples=50).difference
    1.0
    """
    (y, first, second), groups, left_out = _present(patients, y, first, second)
    clusters = len(set(groups))
    value = float(metric(y, first, None) - metric(y, second, None)) if len(y) else np.nan
    if clusters < 2:
        return PairedDifference(value, np.nan, np.nan, np.nan, len(y), clusters, left_out)
    weights = patient_weights(groups, resamples, seed)
    drawn = metric(y, first, weights) - metric(y, second, weights)
    low, high, _ = _percentiles(drawn)
    defined = drawn[np.isfinite(drawn)]
    p = np.nan
    if np.isfinite(low):
        one_side = min((defined <= 0).sum(), (defined >= 0).sum())
        p = min(1.0, 2 * (one_side + 1) / (len(defined) + 1))
    return PairedDifference(value, low, high, p, len(y), clusters, left_out)


def mcnemar(y: Array, first: Array, second: Array) -> float:
    """Exact two-sided p of "both classify equally often right" from the nodules on which they differ (no
    clustering).
    """
    (y, first, second), _, _ = _present((), y, first, second)
    right = [(given > EVEN_CHANCE) == (y > 0.5) for given in (first, second)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def _present(patients: Sequence[Hashable], *values: Array) -> tuple[list[Array], list[Hashable], int]:
    """The rows that are finite in all ``values``, their patients, and how many were left out."""
    there = np.logical_and.reduce([np.isfinite(one) for one in values])
    return [one[there] for one in values], list(itertools.compress(patients, there)), int((~there).sum())


def _percentiles(drawn: Array) -> tuple[float, float, str]:
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < FEWEST_DEFINED * len(drawn):
        return np.nan, np.nan, f"undefined in {len(drawn) - len(defined)} of {len(drawn)} replicates"
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high), ""
