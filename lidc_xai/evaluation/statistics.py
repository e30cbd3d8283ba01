"""Means with intervals, paired comparisons and rank correlations of per-sample results.

Samples of one patient (planes of a nodule, nodules of a scan) are not independent: give ``clusters`` and whole patients
are drawn. Undefined values (NaN) are left out and counted, never averaged away in silence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lidc_xai.errors import DataError

Floats = NDArray[np.float64]
RESAMPLES = 2000
_CHUNK = 250
EXACT = "exact interval (Clopper and Pearson, patients counted): every value is the same"

DIAMETER_STRATA = ((8.0, "< 8 mm"), (12.0, "8–12 mm"), (20.0, "12–20 mm"), (np.inf, "≥ 20 mm"))
"""Upper ends (excluded) and names of the size groups that results are split by."""


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval. ``n`` values in ``clusters`` groups; ``undefined`` left out.

    ``note`` says why a mean or an interval is NaN; it is empty otherwise.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    undefined: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a − b over the samples where both are defined, its interval, and a two-sided sign-flip p-value."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    undefined: int


def diameter_stratum(diameter_mm: float) -> str:
    """The size group of a nodule; "unknown" where the diameter is not."""
    return next((name for end, name in DIAMETER_STRATA if diameter_mm < end), "unknown")


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of ``values`` (n,) with a percentile interval from ``resamples`` draws of whole clusters (n labels)."""
    array, codes = _flat(values, clusters)
    defined = np.isfinite(array)
    undefined = int((~defined).sum())
    n = len(array) - undefined
    if not n:
        note = "no samples" if not len(array) else "undefined for every sample"
        return Interval(np.nan, np.nan, np.nan, 0, 0, undefined, note)
    sums, counts = _cluster_sums(array[defined], codes[defined])
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan, n, 1, undefined, "no interval from a single cluster")
    drawn = _resample(sums[:, None], counts[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n, len(sums), undefined)


def share_interval(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95, **drawing: int
) -> Interval:
    """``bootstrap_mean`` of a share (values 0 or 1); where all are alike, the exact interval of ``exact_share``.

    ``drawing``: resamples and seed of ``bootstrap_mean``.

    >>> [round(end, 3) for end in (share_interval([0] * 35).low, share_interval([0] * 35).high)]
    [0.0, 0.1]
    """
    drawn = bootstrap_mean(values, clusters, level=level, **drawing)
    if drawn.mean not in (0.0, 1.0) or drawn.clusters < 2:
        return drawn
    low, high = exact_share(drawn.mean, drawn.clusters, level)
    return replace(drawn, low=low, high=high, note=EXACT)


def exact_share(share: float, clusters: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of 0 or 1 among ``clusters`` patients, each counted once.

    Every resample of identical values is the same, so that a bootstrap would give an interval without width.
    """
    interval = stats.binomtest(round(share) * clusters, clusters).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def bootstrap_curve(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean curve of ``values`` (n, points) with a pointwise band: columns mean, low, high, n (defined) per point."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise DataError(f"curves have the shape (samples, points), not {array.shape}")
    codes = _codes(clusters, len(array))
    finite = np.isfinite(array)
    size = int(codes.max()) + 1 if len(codes) else 0
    sums, counts = np.zeros((size, array.shape[1])), np.zeros((size, array.shape[1]))
    np.add.at(sums, codes, np.where(finite, array, 0.0))
    np.add.at(counts, codes, finite)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
    band = np.full((2, array.shape[1]), np.nan)
    enough = (counts > 0).sum(0) > 1
    if enough.any():
        drawn = _resample(sums[:, enough], counts[:, enough], resamples, seed)
        band[:, enough] = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame({"mean": mean, "low": band[0], "high": band[1], "n": finite.sum(0)})


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Mean of a − b (both (n,), the same samples) with a clustered bootstrap interval and a sign-flip test.

    Under the null hypothesis a and b can be exchanged within a cluster, so the signs of the clusters' sums are flipped
    at random; p = (1 + flips at least as extreme) / (1 + flips).
    """
    first, codes = _flat(a, clusters)
    second, _ = _flat(b, clusters)
    if len(first) != len(second):
        raise DataError(f"a paired comparison needs the same samples, got {len(first)} and {len(second)}")
    delta = first - second
    interval = bootstrap_mean(delta, clusters, resamples=resamples, seed=seed)
    defined = np.isfinite(delta)
    if interval.clusters < 2:
        return PairedDifference(
            interval.mean, np.nan, np.nan, np.nan, interval.n, interval.clusters, interval.undefined
        )
    sums, _ = _cluster_sums(delta[defined], codes[defined])
    rng = np.random.default_rng([seed, 1])
    observed, extreme = abs(sums.sum()), 0
    for start in range(0, resamples, _CHUNK):
        signs = rng.integers(0, 2, (min(_CHUNK, resamples - start), len(sums))) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= observed * (1 - 1e-12)).sum())
    p = (1 + extreme) / (1 + resamples)
    return PairedDifference(
        interval.mean, interval.low, interval.high, p, interval.n, interval.clusters, interval.undefined
    )


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction of p-values (any order); NaN stays NaN and does not count as a test."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def compare_methods(
    table: pd.DataFrame,
    clusters: Sequence[Hashable] | None = None,
    *,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences between the columns of ``table`` (rows: samples, columns: methods), Holm-corrected together.

    ``reference``: compare every other method with this one only. Columns of the result: a, b, difference, low, high,
    p, p_holm, n, clusters, undefined.
    """
    names = list(table.columns)
    pairs = [(reference, name) for name in names if name != reference] if reference else list(combinations(names, 2))
    rows = []
    for a, b in pairs:
        difference = paired_difference(table[a], table[b], clusters, resamples=resamples, seed=seed)
        rows.append({"a": a, "b": b, **difference.__dict__})
    columns = ["a", "b", "difference", "low", "high", "p", "n", "clusters", "undefined"]
    result = pd.DataFrame(rows, columns=columns)
    result.insert(6, "p_holm", holm(result["p"]))
    return result


def pearson(a: ArrayLike, b: ArrayLike, scale_a: ArrayLike | None = None, scale_b: ArrayLike | None = None) -> Floats:
    """Pearson correlation over the last axis; NaN where a side is constant to 1e-12 of its scale or not finite.

    The scale of a side is its largest absolute value, or ``scale_a`` / ``scale_b`` where the values are differences of
    larger numbers (their rounding is no signal).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    (x, flat_x), (y, flat_y) = _centred(x, scale_a), _centred(y, scale_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(flat_x | flat_y, np.nan, np.clip(r, -1.0, 1.0))


def spearman(a: ArrayLike, b: ArrayLike) -> Floats:
    """Spearman correlation over the last axis (tied values share their mean rank); NaN where a side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    broken = ~(np.isfinite(x).all(-1) & np.isfinite(y).all(-1))
    ranks = pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))
    return np.where(broken, np.nan, ranks)


def _centred(values: Floats, scale: ArrayLike | None) -> tuple[Floats, NDArray[np.bool_]]:
    finite = np.asarray(np.isfinite(values).all(-1))
    values = np.where(finite[..., None], values, 0.0)
    size = np.abs(values).max(-1) if scale is None else np.abs(np.asarray(scale, dtype=np.float64))
    centred = values - values.mean(-1, keepdims=True)
    flat = np.abs(centred).max(-1) <= 1e-12 * size
    return centred, flat | ~finite


def _flat(values: ArrayLike, clusters: Sequence[Hashable] | None) -> tuple[Floats, NDArray[np.intp]]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array, _codes(clusters, len(array))


def _codes(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(f"clusters: {len(clusters)} labels for {n} samples")
    return np.asarray(pd.factorize(np.asarray(clusters, dtype=object))[0], dtype=np.intp)


def _cluster_sums(values: Floats, codes: NDArray[np.intp]) -> tuple[Floats, Floats]:
    _, dense = np.unique(codes, return_inverse=True)
    sums = np.bincount(dense, weights=values).astype(np.float64)
    return sums, np.bincount(dense).astype(np.float64)


def _resample(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, points) means of clusters drawn with replacement; sums and counts are (clusters, points)."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    drawn = []
    for start in range(0, resamples, _CHUNK):
        weights = rng.multinomial(size, np.full(size, 1 / size), min(_CHUNK, resamples - start))
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((weights @ sums) / (weights @ counts))
    return np.concatenate(drawn)
