"""Figures of merit, each for many weightings of the same nodules at once, so that a bootstrap is one matrix of weights.

Every function takes y (n,), a prediction (n,) and ``weights`` (R, n) or None, and returns (R,) or a float. A weight is
how often a nodule was drawn. A figure that is undefined (one class only, constant values) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lidc_xai.ratings import EVEN_CHANCE

Array = np.ndarray
Metric = Callable[[Array, Array, "Array | None"], Array]

ECE_BINS = 10


def _weights(y: Array, weights: Array | None) -> tuple[Array, bool]:
    single = weights is None
    return (np.ones((1, len(y))) if weights is None else np.atleast_2d(weights).astype(np.float64)), single


def _ratio(above: Array, below: Array, single: bool) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(below > 0, above / below, np.nan)
    return value[0] if single else value


def accuracy(y: Array, probability: Array, weights: Array | None = None) -> Array:
    """Share of nodules on the right side of probability one half (exactly one half is not high)."""
    w, single = _weights(y, weights)
    return _ratio(w @ ((probability > EVEN_CHANCE) == (y > 0.5)), w.sum(1), single)


def sensitivity(y: Array, probability: Array, weights: Array | None = None) -> Array:
    """Share of the positives with a probability above one half."""
    w, single = _weights(y, weights)
    return _ratio(w @ ((probability > EVEN_CHANCE) & (y > 0.5)), w @ (y > 0.5), single)


def specificity(y: Array, probability: Array, weights: Array | None = None) -> Array:
    """Share of the negatives with a probability of one half or less."""
    w, single = _weights(y, weights)
    return _ratio(w @ ((probability <= EVEN_CHANCE) & (y <= 0.5)), w @ (y <= 0.5), single)


def auc(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count one half."""
    w, single = _weights(y, weights)
    if not len(y):
        return _ratio(w.sum(1), w.sum(1), single)
    order = np.argsort(score, kind="stable")
    starts = _group_starts(np.asarray(score)[order])
    positive = np.add.reduceat(w[:, order] * (y[order] > 0.5), starts, axis=1)
    negative = np.add.reduceat(w[:, order] * (y[order] <= 0.5), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + 0.5 * negative)).sum(1)
    return _ratio(won, positive.sum(1) * negative.sum(1), single)


def auc_within(folds: Array) -> Metric:
    """Mean over ``folds`` (n,) of the AUC among each fold's own nodules.

    Pooled probabilities compare nodules of different folds, whose calibrations were fitted on few patients each; this
    asks only how a model ranks the nodules that it tested.
    """
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]

    def mean_auc(y: Array, score: Array, weights: Array | None = None) -> Array:
        return np.mean(
            [auc(y[rows], score[rows], None if weights is None else weights[:, rows]) for rows in members], axis=0
        )

    return mean_auc


def brier(y: Array, probability: Array, weights: Array | None = None) -> Array:
    """Mean squared difference between probability and label."""
    return mean_squared(y, probability, weights)


def expected_calibration_error(y: Array, probability: Array, weights: Array | None = None) -> Array:
    """Mean over nodules of |mean probability − share of positives| of the nodule's bin (10 bins of equal width)."""
    w, single = _weights(y, weights)
    bins = np.clip((probability * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    member = np.eye(ECE_BINS)[bins]
    gap = np.abs((w * (probability - y)) @ member).sum(1)
    return _ratio(gap, w.sum(1), single)


def mean_squared(y: Array, value: Array, weights: Array | None = None) -> Array:
    """Mean squared error (on standardised values: the paper's MSE)."""
    w, single = _weights(y, weights)
    return _ratio(w @ (value - y) ** 2, w.sum(1), single)


def mean_value(y: Array, value: Array, weights: Array | None = None) -> Array:
    """Mean of ``value`` (``y`` is not read): a width."""
    w, single = _weights(y, weights)
    return _ratio(w @ value, w.sum(1), single)


def share(y: Array, value: Array, weights: Array | None = None) -> Array:
    """Share of nodules: the mean of ``value``, 0 or 1 (``y`` is not read)."""
    return mean_value(y, value, weights)


def mean_absolute(y: Array, value: Array, weights: Array | None = None) -> Array:
    """Mean absolute error in the unit of ``y``."""
    w, single = _weights(y, weights)
    return _ratio(w @ np.abs(value - y), w.sum(1), single)


def r_squared(y: Array, value: Array, weights: Array | None = None) -> Array:
    """1 − squared error / squared deviation from the mean of ``y`` (below 0: worse than that mean)."""
    w, single = _weights(y, weights)
    total = w.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = w @ y**2 - (w @ y) ** 2 / total
        spread = np.where(spread > 1e-12 * (w @ y**2), spread, 0.0)
    return 1 - _ratio(w @ (value - y) ** 2, spread, single)


def spearman(y: Array, value: Array, weights: Array | None = None) -> Array:
    """Rank correlation, ties at their mean rank."""
    w, single = _weights(y, weights)
    ranks_y, ranks_v = _weighted_ranks(y, w), _weighted_ranks(value, w)
    total = w.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = ranks_y - (w * ranks_y).sum(1, keepdims=True) / total
        b = ranks_v - (w * ranks_v).sum(1, keepdims=True) / total
    return _ratio((w * a * b).sum(1), np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1)), single)


def _weighted_ranks(values: Array, w: Array) -> Array:
    """(R, n) mean rank of each nodule among the drawn ones."""
    order = np.argsort(values, kind="stable")
    starts = _group_starts(np.asarray(values)[order])
    group = np.add.reduceat(w[:, order], starts, axis=1)
    middle = np.cumsum(group, axis=1) - group + (group + 1) / 2
    sizes = np.diff(np.append(starts, len(values)))
    ranks = np.empty_like(w)
    ranks[:, order] = np.repeat(middle, sizes, axis=1)
    return ranks


def _group_starts(ordered: Array) -> Array:
    """Where each run of equal values begins in a sorted array."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def counted_in(metric: Metric, y: Array, value: Array) -> Array | None:
    """(n,) whose nodules a share is a share of; ``None`` for a figure that is no share (AUC, errors, widths)."""
    if metric is sensitivity:
        return np.asarray(y > 0.5)
    if metric is specificity:
        return np.asarray(y <= 0.5)
    return np.ones(len(y), bool) if metric in (accuracy, share) else None


def disjoint_pairs(y: Array, patients: Sequence[Hashable]) -> int:
    """How many pairs of a patient with a positive and another with a negative nodule there are, each patient in one.

    An AUC is the share of such pairs that are ranked right; these are independent of each other.

    >>> disjoint_pairs(np.array([1.0, 1, 1, 0, 0]), ["a", "a", "b", "b", "c"])
    1
    """
    positive, negative = ({patients[int(place)] for place in np.flatnonzero(one)} for one in (y > 0.5, y <= 0.5))
    return min(len(positive), len(negative), len(positive | negative) // 2)


CLASSIFICATION: dict[str, Metric] = {
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "auc": auc,
    "brier": brier,
    "ece": expected_calibration_error,
}
"""Figures of a binary output, on calibrated probabilities."""


@dataclass(frozen=True)
class ReaderNoise:
    """Agreement of single readers, ICC(1,1), and the MSE(z) that a model without any error of its own would have."""

    icc: float
    floor_mse_z: float
    nodules: int


def reader_noise(means: np.ndarray, deviations: np.ndarray, readers: np.ndarray) -> ReaderNoise:
    """How well could any model do? The readers' own disagreement as a bound.

    One-way random effects, nodules with k ≥ 2 readers: MSW = mean within-nodule variance (weighted by k − 1), MSB the
    between-nodule mean square, ICC(1,1) = (MSB − MSW) / (MSB + (k₀ − 1) MSW) with k₀ the balanced number of readers. A
    model is scored against the mean of k readers, whose error variance is MSW / k: floor of MSE(z) = mean(MSW / k) /
    var(reader means). From each nodule's mean over readers, sample standard deviation (n − 1) and number of readers,
    all (n,).
    """
    there = np.isfinite(means) & np.isfinite(deviations) & (readers >= 2)
    x, s, k = means[there], deviations[there], readers[there].astype(np.float64)
    n, total = len(x), k.sum()
    if n < 2:
        return ReaderNoise(np.nan, np.nan, n)
    within = ((k - 1) * s**2).sum() / (k - 1).sum()
    grand = (k * x).sum() / total
    between = (k * (x - grand) ** 2).sum() / (n - 1)
    balanced = (total - (k**2).sum() / total) / (n - 1)
    spread = x.var()
    with np.errstate(invalid="ignore", divide="ignore"):
        icc = (between - within) / (between + (balanced - 1) * within)
        floor = (within / k).mean() / spread
    return ReaderNoise(float(icc), float(floor), n)
