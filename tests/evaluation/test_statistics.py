"""Intervals, paired tests and correlations against closed forms, brute force and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from studies.precision import precision_by_samples, rank_correlations

from lidc_xai.errors import DataError
from lidc_xai.evaluation.benchmark.tables import summarise
from lidc_xai.evaluation.statistics import (
    bootstrap_curve,
    bootstrap_mean,
    compare_methods,
    diameter_stratum,
    holm,
    paired_difference,
    pearson,
    share_interval,
    spearman,
)
from lidc_xai.training.bootstrap import metric_interval
from lidc_xai.training.metrics import accuracy, auc, sensitivity, specificity


def test_interval_of_independent_values_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert (found.n, found.clusters, found.undefined, found.note) == (400, 400, 0, "")


def test_clusters_widen_the_interval_of_repeated_values() -> None:
    patients = np.repeat(np.arange(40), 10)
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)
    alone, together = bootstrap_mean(values), bootstrap_mean(values, patients)
    assert together.clusters == 40
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(10), rel=0.12)


def test_bootstrap_equals_a_plain_loop_over_clusters() -> None:
    rng = np.random.default_rng(2)
    values, labels = rng.normal(size=30), [f"p{k}" for k in rng.integers(0, 8, 30)]
    found = bootstrap_mean(values, labels, resamples=200, seed=5)
    names = list(dict.fromkeys(labels))
    rows = [np.flatnonzero(np.array(labels) == name) for name in names]
    weights = np.random.default_rng(5).multinomial(len(names), [1 / len(names)] * len(names), 200)
    means = [
        np.concatenate([np.repeat(values[r], w) for r, w in zip(rows, draw, strict=True)]).mean() for draw in weights
    ]
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)


def test_undefined_values_are_left_out_and_counted_with_a_note_where_nothing_is_left() -> None:
    some = bootstrap_mean([1.0, np.nan, 3.0])
    assert (some.mean, some.n, some.undefined) == (2.0, 2, 1)
    none = bootstrap_mean([np.nan, np.nan])
    assert np.isnan(none.mean)
    assert (none.n, none.undefined, none.note) == (0, 2, "undefined for every sample")
    assert bootstrap_mean([]).note == "no samples"
    single = bootstrap_mean([1.0, 2.0], ["a", "a"])
    assert single.mean == 1.5
    assert np.isnan(single.low)
    assert single.note == "no interval from a single cluster"


def test_curve_band_is_the_interval_of_each_point() -> None:
    values = np.random.default_rng(3).normal(size=(50, 4))
    values[3, 1] = np.nan
    values[:, 3] = np.nan
    table = bootstrap_curve(values, seed=1)
    assert table["n"].tolist() == [50, 49, 50, 0]
    point = bootstrap_mean(values[:, 0], seed=1)
    assert table.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([point.mean, point.low, point.high])
    assert table.loc[3, ["mean", "low", "high"]].isna().all()


def test_paired_difference_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(0, 5, 60)
    found = paired_difference(base + 0.5 + rng.normal(0, 0.3, 60), base)
    assert found.low > 0.3
    assert found.p == pytest.approx(1 / 2001)
    assert paired_difference(base, base).p == 1.0


def test_sign_flip_p_value_is_exact_for_few_clusters() -> None:
    delta = np.array([1.0, 2.0, 3.0])
    found = paired_difference(delta, np.zeros(3), resamples=20_000)
    assert found.p == pytest.approx(0.25, abs=0.02)  # 2 of the 8 sign patterns are as extreme


def test_p_values_are_uniform_when_there_is_no_difference() -> None:
    rng = np.random.default_rng(6)
    p = [paired_difference(rng.normal(size=30), rng.normal(size=30), resamples=300, seed=k).p for k in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_holm_against_hand_calculation() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, np.nan, 0.6]) == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)


def test_compare_methods_corrects_all_pairs_together() -> None:
    rng = np.random.default_rng(7)
    base = rng.normal(size=80)
    noise = rng.normal(size=(2, 80)) * 0.1
    table = pd.DataFrame({"a": base + 1 + noise[0], "b": base, "c": base + noise[1]})
    found = compare_methods(table, [f"p{k // 2}" for k in range(80)])
    assert list(zip(found["a"], found["b"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (found["p_holm"] >= found["p"]).all()
    assert found["p_holm"][:2].max() < 0.01 < found["p_holm"][2]
    assert (found["clusters"] == 40).all()
    assert compare_methods(table, reference="b")["a"].tolist() == ["b", "b"]


def test_correlations_against_scipy_and_their_undefined_cases() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 5, (3, 40)).astype(float), rng.normal(size=(3, 40))
    assert pearson(x, y) == pytest.approx([stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert spearman(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)))
    assert np.isnan(pearson(1e6 + np.arange(5.0) * 1e-9, np.arange(5.0)))
    assert np.isnan(spearman([1.0, np.nan, 2.0], [1.0, 2.0, 3.0]))
    wobble = np.arange(5.0) * 1e-9
    assert np.isnan(pearson(wobble, np.arange(5.0), scale_a=1e6))
    assert pearson(wobble, np.arange(5.0)) == pytest.approx(1.0)


def test_rank_correlations_give_a_matrix_and_its_counts() -> None:
    table = pd.DataFrame({"up": [1.0, 2, 3, 4], "down": [4.0, 3, 2, 1], "flat": [1.0] * 4, "part": [1.0, 2, np.nan, 4]})
    rho, n = rank_correlations(table)
    assert rho.loc["up", "down"] == pytest.approx(-1)
    assert np.isnan(rho.loc["up", "flat"])
    assert n.loc["up", "part"] == 3
    assert rho.loc["part", "up"] == pytest.approx(1)


def test_more_samples_narrow_the_interval_as_one_over_root_n() -> None:
    table = precision_by_samples(np.random.default_rng(9).normal(size=300), [50, 200], range(300))
    assert table["half_width"][0] / table["half_width"][1] == pytest.approx(2, rel=0.1)


def test_size_groups_and_wrong_lengths() -> None:
    assert [diameter_stratum(d) for d in (7.9, 8, 12, 20, np.nan)] == [
        "< 8 mm", "8–12 mm", "12–20 mm", "≥ 20 mm", "unknown",
    ]  # fmt: skip
    with pytest.raises(DataError, match="2 labels for 3 samples"):
        bootstrap_mean([1.0, 2, 3], ["a", "b"])
    with pytest.raises(DataError, match="same samples"):
        paired_difference([1.0], [1.0, 2.0])


def test_shares_of_none_and_all_have_exact_intervals():
    """Clopper and Pearson: 0 of n ends at 1 − 0.025^(1/n), patients counted; other shares keep the bootstrap."""
    none = share_interval([0, 0, 0, 0], ["a", "a", "b", "c"])
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))
    every = share_interval([1] * 10)
    assert (every.low, every.high) == (pytest.approx(0.025**0.1), 1.0)
    assert every.note
    assert np.isnan(share_interval([1, 1], ["a", "a"]).low)
    mixed = [0, 1, 1, 0, 1]
    assert share_interval(mixed) == bootstrap_mean(mixed)


def test_figures_that_are_shares_are_never_sure():
    """Sensitivity 1 counts patients with positives; an AUC of 1 the disjoint pairs of patients, here two."""
    y = np.array([1.0, 1, 1, 0, 0, 0, 0])
    probability = np.array([0.9, 0.8, 0.9, 0.1, 0.2, 0.7, 0.1])
    patients = ["a", "a", "b", "c", "d", "e", "f"]
    found = metric_interval(sensitivity, y, probability, patients, resamples=50)
    assert (found.low, found.high) == (pytest.approx(0.025**0.5), 1.0)
    right = metric_interval(accuracy, y, y, patients, resamples=50)
    assert (right.low, right.high) == (pytest.approx(0.025 ** (1 / 6)), 1.0)
    part = metric_interval(specificity, y, probability, patients, resamples=50)
    assert part.low < 0.75 < part.high
    assert metric_interval(auc, y, y, patients, resamples=50).low == pytest.approx(0.025 ** (1 / 2))


def test_pointing_on_every_case_has_the_exact_interval():
    cases = [{"case": f"c{k}", "cluster": f"p{k // 2}", "method": "cdam", "output": "malignancy", "group": "",
              "metric": name, "value": 1.0, "note": ""}
             for k in range(8) for name in ("localisation/pointing", "localisation/positive_mass")]  # fmt: skip
    table = summarise(pd.DataFrame(cases), resamples=20).set_index("metric")
    assert table.loc["localisation/pointing", "low"] == pytest.approx(0.025 ** (1 / 4))
    assert table.loc["localisation/positive_mass", "low"] == 1.0
