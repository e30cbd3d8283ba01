"""Would another training draw this map again? Agreement of disjoint groups of models, and tokens with a stable sign.

R models, each with one map of N token scores, S (R, N):

    ρ_k        Spearman's correlation of the mean maps of two disjoint groups of k models, mean over pairs of groups
    expected   ρ_k = kρ₁ / (1 + (k − 1)ρ₁)                                              (Spearman, Brown 1910)
    t          mean / (s̃/√R),   s̃² = (d₀s₀² + (R − 1)s²) / (d₀ + R − 1)                 (Smyth 2004: moderated t)
    stable     two-sided p of t with d₀ + R − 1 degrees of freedom, Benjamini and Hochberg over the map's tokens

s₀² and d₀ come from the moments of log s² over the tokens of other maps: with three models a token's own s² has two
degrees of freedom, and a plain t test would find next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.statistics import Floats, spearman

FALSE_DISCOVERIES = 0.05
"""Expected share of tokens called stable that are not."""
MOST_SPLITS = 60
"""Pairs of groups that are compared; of more, so many are drawn."""
_MOST_NUMBERS = 2_000_000  # of maps beside maps that are held at a time


def spearman_brown(agreement: float, k: float) -> float:
    """Expected agreement of the means of two disjoint groups of k models whose single models agree at ``agreement``.

    >>> round(spearman_brown(0.39, 5), 2)
    0.76
    """
    return k * agreement / (1 + (k - 1) * agreement)


def models_needed(agreement: float, wanted: float) -> float:
    """How many models the mean map needs to be drawn again at ``wanted`` (in (0, 1)): a whole number, or infinity.

    >>> models_needed(0.39, 0.75)
    5
    """
    if not 0 < wanted < 1:
        raise UsageError(f"the wanted agreement lies between 0 and 1, not {wanted}")
    if not agreement > 0:
        return math.inf
    if agreement >= 1:
        return 1
    return math.ceil(wanted * (1 - agreement) / (agreement * (1 - wanted)) - 1e-9)


def disjoint_groups(models: int, k: int, most: int = MOST_SPLITS, seed: int = 0) -> list[tuple[tuple[int, ...], ...]]:
    """Pairs of disjoint groups of k of ``models`` models: all of them, or ``most`` drawn at random.

    >>> disjoint_groups(3, 1)
    [((0,), (1,)), ((0,), (2,)), ((1,), (2,))]
    """
    if k < 1 or 2 * k > models:
        raise UsageError(f"two disjoint groups of {k} need {2 * k} models, there are {models}")
    count = math.comb(models, k) * math.comb(models - k, k) // 2
    if count <= most:
        return list(_all_pairs(models, k))
    rng = np.random.default_rng([seed, models, k])
    pairs: dict[tuple[tuple[int, ...], ...], None] = {}
    while len(pairs) < most:
        drawn = rng.permutation(models)[: 2 * k]
        first, second = sorted((tuple(sorted(drawn[:k].tolist())), tuple(sorted(drawn[k:].tolist()))))
        pairs[first, second] = None
    return list(pairs)


def _all_pairs(models: int, k: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    for first in combinations(range(models), k):
        rest = [model for model in range(models) if model not in first]
        yield from ((first, second) for second in combinations(rest, k) if first < second)


def group_correlations(maps: ArrayLike, k: int = 1, *, most: int = MOST_SPLITS, seed: int = 0) -> Floats:
    """Spearman's correlation of the mean maps of every pair of disjoint groups of k models: (..., pairs).

    ``maps``: (R, ..., N) scores of R models. NaN where a mean map is constant.

    >>> group_correlations([[1, 2, 3], [1, 2, 3], [3, 2, 1]]).tolist()
    [1.0, -1.0, -1.0]
    """
    return np.moveaxis(spearman(*_group_means(maps, k, most, seed)), 0, -1)


def _group_means(maps: ArrayLike, k: int, most: int, seed: int) -> list[Floats]:
    """Of every pair of groups the mean maps of the one and of the other: two arrays (pairs, ..., N)."""
    scores = np.asarray(maps, dtype=np.float64)
    groups = np.array(disjoint_groups(len(scores), k, most, seed))  # (pairs, 2, k)
    return [scores[groups[:, side]].mean(1) for side in (0, 1)]


def group_identified(maps: ArrayLike, k: int = 1, *, most: int = MOST_SPLITS, seed: int = 0) -> Floats:
    """Is a mean map most like the other group's map of the same output? (outputs, pairs of groups), chance 1 / outputs.

    ``maps``: (R, outputs, N) scores of R models. Each value is the mean of both directions, and a tie of n maps counts
    1/n, so that a method that draws one map for all outputs has chance. NaN where a mean map is constant.

    >>> group_identified([[[1, 2, 3], [3, 2, 1]], [[1, 2, 4], [3, 2, 1]]]).tolist()
    [[1.0], [1.0]]
    """
    one, other = _group_means(maps, k, most, seed)
    together = max(1, _MOST_NUMBERS // (one.shape[1] * one[0].size))
    parts = [slice(start, start + together) for start in range(0, len(one), together)]
    rho = np.concatenate([spearman(one[part, :, None], other[part, None]) for part in parts])
    return ((_share_of_best(rho) + _share_of_best(rho.swapaxes(1, 2))) / 2).T


def _share_of_best(rho: Floats) -> Floats:
    """Of (pairs, outputs, outputs): 1/n where the diagonal is one of n largest values of its row, else 0."""
    known, own = np.where(np.isnan(rho), -np.inf, rho), np.diagonal(rho, axis1=1, axis2=2)
    best = known.max(-1)
    share = np.isclose(own, best, rtol=0, atol=1e-9) / np.isclose(known, best[..., None], rtol=0, atol=1e-9).sum(-1)
    return np.where(np.isnan(own), np.nan, share)


def group_agreement(maps: ArrayLike, k: int = 1) -> float:
    """ρ_k of one map: the mean of ``group_correlations``; NaN where none is defined.

    ``maps``: (R, N) scores of R models, R ≥ 2k.

    >>> round(group_agreement([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]]), 3)
    0.733
    """
    values = group_correlations(maps, k)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


@dataclass(frozen=True)
class LogVariances:
    """Sums over tokens of e = log s² − ψ(d/2) + log(d/2) and of its square, d the degrees of freedom of s².

    They add up and subtract: a cohort without one patient is the cohort less that patient.

    >>> one, other = LogVariances.of([[0.0, 1.0], [1.0, 3.0]]), LogVariances.of([[0.0], [2.0]])
    >>> (one + other - other).count
    2.0
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    degrees: int = 0

    @classmethod
    def of(cls, maps: ArrayLike) -> LogVariances:
        """Of the maps (R, ..., N) of R ≥ 2 models. A token on which all models agree exactly has no log and is left
        out.

        >>> LogVariances.of([[0.0, 1.0, 1.0], [0.0, 3.0, 2.0]]).count
        2.0
        """
        scores = np.asarray(maps, dtype=np.float64)
        degrees = len(scores) - 1
        if degrees < 1:
            raise UsageError("a variance over models needs two models or more")
        variances = scores.var(axis=0, ddof=1).ravel()
        e = np.log(variances[variances > 0]) - digamma(degrees / 2) + np.log(degrees / 2)
        return cls(float(len(e)), float(e.sum()), float((e * e).sum()), degrees)

    def __add__(self, other: LogVariances) -> LogVariances:
        if self.count and other.count and self.degrees != other.degrees:
            raise UsageError(f"variances of {self.degrees + 1} and of {other.degrees + 1} models do not add up")
        degrees = self.degrees or other.degrees
        return LogVariances(self.count + other.count, self.total + other.total, self.squares + other.squares, degrees)

    def __sub__(self, other: LogVariances) -> LogVariances:
        return self + LogVariances(-other.count, -other.total, -other.squares, other.degrees)


@dataclass(frozen=True)
class VariancePrior:
    """What the tokens of other maps say of a token's variance over models: s₀² and the degrees of freedom d₀ that this
    is worth (infinite where all tokens vary alike).

    >>> VariancePrior(variance=0.04, degrees=4.0).degrees
    4.0
    """

    variance: float
    degrees: float


def variance_prior(moments: LogVariances) -> VariancePrior | None:
    """s₀² and d₀ by the moments of log s² (Smyth 2004, section 6.2); None where fewer than two tokens tell.

        ψ′(d₀/2) = var(e) − ψ′(d/2)          s₀² = exp(mean(e) + ψ(d₀/2) − log(d₀/2))

    >>> rng = np.random.default_rng(0)
    >>> variance_prior(LogVariances.of(2 * rng.standard_normal((3, 4000)))).variance.__round__()
    4
    """
    if moments.count < 2:
        return None
    mean = moments.total / moments.count
    spread = max(moments.squares - moments.count * mean**2, 0.0) / (moments.count - 1)
    above = spread - float(polygamma(1, moments.degrees / 2))
    if above <= 0:
        return VariancePrior(math.exp(mean), math.inf)
    half = _inverse_trigamma(above)
    return VariancePrior(math.exp(mean + float(digamma(half)) - math.log(half)), 2 * half)


def _inverse_trigamma(value: float) -> float:
    """y with ψ′(y) = value > 0, by Newton's method on 1/ψ′, which converges from this start (Smyth 2004, appendix)."""
    y = 0.5 + 1 / value
    for _ in range(100):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-12:
            break
    return y


@dataclass(frozen=True, eq=False)
class ModeratedT:
    """(N,) each: ``mean``, ``standard_error`` s̃/√R, ``t``, two-sided ``p``; ``degrees`` of freedom d₀ + R − 1.

    >>> moderated_t([[1.0], [1.2], [0.8]], VariancePrior(0.04, 4.0)).standard_error.round(4).tolist()
    [0.1155]
    """

    mean: Floats
    standard_error: Floats
    t: Floats
    p: Floats
    degrees: float


def moderated_t(maps: ArrayLike, prior: VariancePrior) -> ModeratedT:
    """Is a token's mean over R ≥ 2 models different from zero? ``maps``: (R, N), a model's scores a row.

    >>> found = moderated_t([[1.0, 0.1], [1.2, -0.1], [0.8, 0.0]], VariancePrior(0.04, 4.0))
    >>> found.t.round(2).tolist(), found.degrees
    ([8.66, 0.0], 6.0)
    """
    from scipy import stats  # a second to import, and a page that asks for no test needs none

    scores = np.asarray(maps, dtype=np.float64)
    count = len(scores)
    if count < 2:
        raise UsageError("a t test over models needs two models or more")
    mean, own = scores.mean(0), scores.var(axis=0, ddof=1)
    degrees = prior.degrees + count - 1
    if math.isinf(prior.degrees):
        variance = np.full_like(own, prior.variance)
    else:
        variance = (prior.degrees * prior.variance + (count - 1) * own) / degrees
    error = np.sqrt(variance / count)
    t = mean / error
    p = 2 * (stats.norm.sf(np.abs(t)) if math.isinf(degrees) else stats.t.sf(np.abs(t), degrees))
    return ModeratedT(mean, error, t, p, degrees)


def benjamini_hochberg(p_values: ArrayLike, rate: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """(n,) of bool: the tests that are called at a false discovery rate of ``rate``. NaN is no test.

    >>> benjamini_hochberg([0.001, 0.02, 0.04, 0.9]).tolist()
    [True, True, False, False]
    """
    from scipy import stats

    p = np.asarray(p_values, dtype=np.float64)
    tested = np.isfinite(p)
    called = np.zeros(p.shape, dtype=bool)
    if tested.any():
        called[tested] = stats.false_discovery_control(p[tested]) <= rate
    return called


def stable_tokens(maps: ArrayLike, prior: VariancePrior, rate: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """(N,) of bool: tokens whose mean score keeps its sign from training to training. ``maps``: (R, N), R ≥ 3.

    The scores are to be on one scale: divide each model's by its median over the cohort of Σ|S|.

    >>> stable_tokens([[1.0, 0.1], [1.2, -0.1], [0.8, 0.0]], VariancePrior(0.04, 4.0)).tolist()
    [True, False]
    """
    if len(np.asarray(maps)) < 3:
        raise UsageError("stable tokens need three models or more; two models give their agreement alone")
    return benjamini_hochberg(moderated_t(maps, prior).p, rate)


def stable_share(mean: ArrayLike, stable: ArrayLike) -> float:
    """Share of the mean map's strength Σ|mean S| that lies on stable tokens; NaN for a map of zeros.

    >>> stable_share([3.0, -1.0], [True, False])
    0.75
    """
    strength = np.abs(np.asarray(mean, dtype=np.float64))
    total = float(strength.sum())
    return float(strength[np.asarray(stable, dtype=bool)].sum() / total) if total > 0 else math.nan


def on_grid(relevance: ArrayLike, grid: tuple[int, int]) -> NDArray[Any]:
    """(..., h, w) scores on a coarser grid over the same area: a cell's score is divided by area, so that sums stay.

    >>> on_grid(np.ones((2, 3)), (1, 2)).tolist()
    [[3.0, 3.0]]
    """
    scores: NDArray[Any] = np.asarray(relevance)
    if scores.shape[-2:] == tuple(grid):
        return scores
    rows, columns = (_overlap(size, cells) for size, cells in zip(scores.shape[-2:], grid, strict=True))
    return np.asarray(rows @ scores @ columns.T, dtype=np.float32)


def _overlap(size: int, cells: int) -> Floats:
    """(cells, size): which share of each of ``size`` equal parts of a line lies in each of ``cells`` equal parts."""
    edges, parts = np.arange(cells + 1) / cells, np.arange(size + 1) / size
    high, low = np.minimum(edges[1:, None], parts[1:]), np.maximum(edges[:-1, None], parts[:-1])
    return np.asarray(np.clip(high - low, 0, None) * size)
