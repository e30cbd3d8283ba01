"""Repeatability against naive references, and on maps with a planted agreement."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma, polygamma

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import (
    LogVariances,
    VariancePrior,
    benjamini_hochberg,
    disjoint_groups,
    group_agreement,
    group_correlations,
    group_identified,
    models_needed,
    moderated_t,
    spearman_brown,
    stable_share,
    stable_tokens,
    variance_prior,
)

SIDE = 8


def noise_sd(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Standard deviation of the noise of every token, 1 in the mean square."""
    rows, columns = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    sd = {
        "flat": np.ones(SIDE * SIDE),
        "any": np.exp(0.5 * rng.standard_normal(SIDE * SIDE)),
        "centre": (1 + 2 * np.exp(-(rows**2 + columns**2) / 8)).ravel(),
    }[shape]
    return sd / np.sqrt((sd**2).mean())


def planted(rho: float, models: int, maps: int, shape: str = "any", null_share: float = 0.0, seed: int = 0):
    """(maps, models, tokens) whose single models agree at ``rho``; and which tokens have no signal."""
    rng = np.random.default_rng(seed)
    sd = noise_sd(shape, rng)
    signal = math.sqrt(rho / (1 - rho)) * sd * rng.standard_normal((maps, 1, len(sd)))
    null = rng.random((maps, 1, len(sd))) < null_share
    return np.where(null, 0.0, signal) + sd * rng.standard_normal((maps, models, len(sd))), null[:, 0]


def called(scores: np.ndarray) -> np.ndarray:
    """Stable tokens of every map, the prior from the other maps."""
    each = [LogVariances.of(one) for one in scores]
    total = sum(each, LogVariances())
    return np.stack([stable_tokens(one, variance_prior(total - own)) for one, own in zip(scores, each, strict=True)])


@pytest.mark.parametrize("rho", [0.3, 0.55, 0.72])
def test_a_planted_agreement_is_found_and_grows_as_spearman_and_brown_say(rho: float) -> None:
    maps = np.moveaxis(planted(rho, 8, 1, "flat", seed=1)[0], 1, 0)[:, 0]
    many = np.concatenate([np.moveaxis(planted(rho, 8, 1, "flat", seed=s)[0], 1, 0)[:, 0] for s in range(60)], axis=1)
    expected = 6 / math.pi * math.asin(rho / 2)  # Spearman's of two normal variables that correlate at rho
    assert group_agreement(many) == pytest.approx(expected, abs=0.02)
    for k in (2, 4):
        pearson = spearman_brown(rho, k)
        assert group_agreement(many, k) == pytest.approx(6 / math.pi * math.asin(pearson / 2), abs=0.02)
    assert group_agreement(maps) < group_agreement(maps, 2) < group_agreement(maps, 4)


@pytest.mark.parametrize(("models", "k"), [(2, 1), (5, 1), (5, 2), (6, 3)])
def test_groups_and_their_correlations_against_a_naive_reference(models: int, k: int) -> None:
    maps = np.random.default_rng(2).standard_normal((models, 3, 20))
    found = group_correlations(maps, k)
    naive = []
    for first in itertools.combinations(range(models), k):
        for second in itertools.combinations(range(models), k):
            if not set(first) & set(second) and first < second:
                a, b = (maps[list(group)].mean(0) for group in (first, second))
                naive.append([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert found.shape == (3, len(naive))
    assert np.allclose(np.sort(found), np.sort(np.array(naive).T), atol=1e-12)


def test_many_groups_are_drawn_without_repetition_and_the_same_again() -> None:
    found = disjoint_groups(12, 4, most=50, seed=3)
    assert found == disjoint_groups(12, 4, most=50, seed=3)
    assert len(set(found)) == 50
    assert all(len({*first, *second}) == 8 and first < second for first, second in found)
    with pytest.raises(UsageError, match="need 4 models, there are 3"):
        disjoint_groups(3, 2)


def test_one_map_for_all_outputs_is_told_apart_by_chance() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(1, 5, 40))
    told = group_identified(own + 0.3 * rng.normal(size=(6, 5, 40)))
    assert told.shape == (5, 15)
    assert told.min() == 1
    assert np.allclose(group_identified(np.repeat(rng.normal(size=(6, 1, 40)), 5, axis=1)), 1 / 5)
    assert group_identified(rng.normal(size=(40, 5, 40)), most=300).mean() == pytest.approx(1 / 5, abs=0.04)
    assert np.isnan(group_identified([[[1.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]])[0]).all()


def test_a_constant_map_agrees_with_nothing() -> None:
    assert math.isnan(group_agreement([[1.0, 1.0], [1.0, 2.0]]))


def test_how_many_models_a_wanted_agreement_needs() -> None:
    for rho, wanted in itertools.product((0.05, 0.39, 0.72), (0.5, 0.6, 0.75, 0.9)):
        count = models_needed(rho, wanted)
        assert spearman_brown(rho, count) >= wanted - 1e-9
        assert count == 1 or spearman_brown(rho, count - 1) < wanted
    assert models_needed(-0.1, 0.6) == math.inf
    assert models_needed(1.0, 0.6) == 1
    with pytest.raises(UsageError, match="between 0 and 1"):
        models_needed(0.5, 1.0)


@pytest.mark.parametrize("degrees", [3.0, 20.0])
@pytest.mark.parametrize("models", [3, 5])
def test_the_prior_of_variances_drawn_from_one_is_found(models: int, degrees: float) -> None:
    rng = np.random.default_rng(4)
    variances = 0.7 * degrees / rng.chisquare(degrees, 200_000)
    maps = np.sqrt(variances) * rng.standard_normal((models, 200_000))
    prior = variance_prior(LogVariances.of(maps))
    assert prior is not None
    assert prior.variance == pytest.approx(0.7, rel=0.05)
    assert prior.degrees == pytest.approx(degrees, rel=0.15)


def test_the_moments_are_those_of_smyth() -> None:
    """The two equations of his section 6.2, solved here for a cohort and checked by putting the result in."""
    maps = np.random.default_rng(5).standard_normal((3, 500)) * np.exp(np.random.default_rng(6).standard_normal(500))
    prior = variance_prior(LogVariances.of(maps))
    assert prior is not None
    e = np.log(maps.var(0, ddof=1)) - digamma(1) + np.log(1)
    assert float(polygamma(1, prior.degrees / 2)) == pytest.approx(e.var(ddof=1) - polygamma(1, 1), rel=1e-9)
    assert math.log(prior.variance) == pytest.approx(
        e.mean() + digamma(prior.degrees / 2) - math.log(prior.degrees / 2), abs=1e-9
    )


def test_moments_of_a_cohort_without_a_patient() -> None:
    maps = np.random.default_rng(7).standard_normal((4, 3, 30))
    rest = LogVariances.of(maps[:, :2]) + LogVariances.of(maps[:, 2]) - LogVariances.of(maps[:, 2])
    alone = LogVariances.of(maps[:, :2])
    assert (rest.count, rest.total, rest.squares) == pytest.approx((alone.count, alone.total, alone.squares))
    same = np.ones((3, 5))
    assert LogVariances.of(same).count == 0
    assert variance_prior(LogVariances.of(same)) is None
    with pytest.raises(UsageError, match="do not add up"):
        LogVariances.of(maps) + LogVariances.of(maps[:3])


def test_moderated_t_lies_between_its_two_ends() -> None:
    maps = np.random.default_rng(8).standard_normal((4, 50)) + 0.5
    plain = stats.ttest_1samp(maps, 0)
    weak = moderated_t(maps, VariancePrior(1.0, 1e-9))
    assert np.allclose(weak.t, plain.statistic)
    assert np.allclose(weak.p, plain.pvalue, atol=1e-6)
    known = moderated_t(maps, VariancePrior(1.0, math.inf))
    assert np.allclose(known.t, maps.mean(0) * 2)
    assert np.allclose(known.p, 2 * stats.norm.sf(np.abs(known.t)))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_benjamini_hochberg_is_its_step_up_rule(rate: float) -> None:
    p = np.random.default_rng(9).random(200) ** 3
    ordered = sorted(p.tolist())
    reached = [k for k in range(1, len(ordered) + 1) if ordered[k - 1] <= rate * k / len(ordered)]
    limit = ordered[max(reached) - 1] if reached else -1.0
    assert np.array_equal(benjamini_hochberg(p, rate), p <= limit)
    assert benjamini_hochberg([np.nan, 0.01, 0.9]).tolist() == [False, True, False]
    assert not benjamini_hochberg([]).any()


@pytest.mark.parametrize("shape", ["flat", "any", "centre"])
@pytest.mark.parametrize("models", [3, 5])
def test_noise_is_called_stable_no_more_often_than_promised(models: int, shape: str) -> None:
    """Of maps of nothing but noise, at most 5 % have a stable token: there every discovery is false."""
    found = called(planted(0.0, models, 400, shape, seed=10)[0])
    assert found.any(1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("models", [3, 5])
def test_false_discoveries_among_true_ones(models: int) -> None:
    scores, null = planted(0.72, models, 200, "centre", null_share=0.5, seed=11)
    found = called(scores)
    assert found.any(1).mean() > 0.95
    assert ((found & null).sum(1) / np.maximum(found.sum(1), 1)).mean() <= 0.05


@pytest.mark.parametrize(("models", "rho", "least"), [(3, 0.55, 0.2), (3, 0.72, 0.5), (5, 0.55, 0.5), (5, 0.72, 0.7)])
def test_planted_maps_are_mostly_stable_where_a_plain_t_test_finds_little(
    models: int, rho: float, least: float
) -> None:
    scores, _ = planted(rho, models, 80, seed=12)
    share = np.mean([stable_share(one.mean(0), kept) for one, kept in zip(scores, called(scores), strict=True)])
    plain = np.mean([stable_share(one.mean(0), benjamini_hochberg(stats.ttest_1samp(one, 0).pvalue)) for one in scores])
    assert share > least
    assert share > plain + (0.2 if models == 3 else 0.1)
    if models == 3:
        assert plain < 0.06


def test_two_models_give_agreement_alone() -> None:
    with pytest.raises(UsageError, match="three models or more"):
        stable_tokens([[1.0, 2.0], [1.0, 2.0]], VariancePrior(1.0, 5.0))
    assert math.isnan(stable_share([0.0, 0.0], [True, True]))
