"""Intervals cover what they promise on planted residuals; records are what a naive reference gives."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from lidc_xai.evaluation.statistics import DIAMETER_STRATA, diameter_stratum
from lidc_xai.training.assessment import coverage
from lidc_xai.training.intervals import (
    FEWEST,
    _fit_scale,
    _strata,
    add_intervals,
    conformal_quantile,
    cross_fitted,
    fit_record,
    malignancy_set,
    platt,
    pooled_strata,
)


def planted(patients: int = 500, seed: int = 0, noise: float = 1.0) -> pd.DataFrame:
    """Five folds of patients with two nodules; the error grows with the diameter, and a patient's errors are alike."""
    draw = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    n = len(patient)
    diameter = np.exp(draw.normal(2.3, 0.5, n))
    table = pd.DataFrame({"nodule_id": [f"P{p}-n{k % 2}" for k, p in enumerate(patient)], "diameter": diameter})
    table["patient_id"], table["fold"] = [f"P{p}" for p in patient], patient % 5
    error = draw.normal(size=n) + 0.5 * draw.normal(size=patients)[patient]
    table["diameter_readers"] = diameter + 0.1 * diameter * error
    table["margin"] = draw.uniform(2.0, 4.0, n)
    table["margin_readers"] = table["margin"] + noise * 0.2 * draw.standard_t(5, n) * (1 + (diameter > 12))
    suspicion = draw.normal(size=n) * 2
    table["malignancy_logit"] = 3 * suspicion + 1  # overconfident, and off
    table["malignancy_probability"] = 1 / (1 + np.exp(-table["malignancy_logit"]))
    table["label"] = (draw.uniform(size=n) < 1 / (1 + np.exp(-suspicion))).astype(float)
    table["calcification"] = draw.uniform(3, 6, n)
    table["p_calcified_readers"] = draw.binomial(4, 1 / (1 + np.exp(2 * (table["calcification"] - 4.5)))) / 4
    return table


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("n", [1, 9, 19, 200])
def test_the_quantile_is_that_of_the_definition(level: float, n: int) -> None:
    scores = np.random.default_rng(n).exponential(size=n)
    rank = next((k for k in range(1, n + 1) if k / (n + 1) >= level - 1e-12), None)
    assert conformal_quantile(scores, level) == (math.inf if rank is None else sorted(scores)[rank - 1])


def test_strata_are_pooled_until_each_has_enough() -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        counts = draw.integers(0, 120, 4).tolist()
        pools = pooled_strata(counts)
        assert pools == sorted(pools)  # neighbours only
        sizes = [sum(c for c, p in zip(counts, pools, strict=True) if p == pool) for pool in set(pools)]
        assert len(sizes) == 1 or min(sizes) >= FEWEST
    assert pooled_strata([50, 60, 70, 80]) == [0, 1, 2, 3]


def test_planted_residuals_are_covered() -> None:
    table, _ = cross_fitted(planted())
    found = coverage(table, {"resamples": 400, "seed": 0})
    for name in ("margin", "diameter", "malignancy"):
        figure = found[name]["all"]["coverage"]
        assert figure["low"] - 0.005 <= 0.9 <= figure["high"] + 0.005, name
    for _, stratum in DIAMETER_STRATA:
        rows = table[table["diameter"].map(diameter_stratum) == stratum]
        inside = (rows["margin_readers"] >= rows["margin_low"]) & (rows["margin_readers"] <= rows["margin_high"])
        assert abs(inside.mean() - 0.9) < 4 * math.sqrt(0.09 / len(rows)) + 0.01
        assert found["margin"][f"predicted {stratum}"]["coverage"]["value"] == pytest.approx(inside.mean())
    width = table["margin_high"] - table["margin_low"]  # the planted error doubles above 12 mm
    assert width[table["diameter"].between(12, 20)].mean() > 1.6 * width[table["diameter"] < 8].mean()


def test_a_fold_learns_nothing_from_its_own_patients() -> None:
    table = planted(120)
    changed = table.copy()
    own = changed["fold"] == 2
    changed.loc[own, ["margin_readers", "diameter_readers"]] += 5.0
    changed.loc[own, "label"] = 1 - changed.loc[own, "label"]
    columns = ["margin_low", "margin_high", "diameter_low", "malignancy_probability", "p_calcified"]
    before, after = (cross_fitted(each)[0] for each in (table, changed))
    pd.testing.assert_frame_equal(before.loc[own, columns], after.loc[own, columns])
    assert not np.allclose(before.loc[~own, "margin_low"], after.loc[~own, "margin_low"])
    leaking = table.assign(patient_id="one patient")  # in every fold: nothing is left to learn from
    assert cross_fitted(leaking)[1] == {}


def test_pooled_calibration_is_calibrated() -> None:
    table, records = cross_fitted(planted())
    for low in np.arange(0, 1, 0.2):
        inside = table["malignancy_probability"].between(low, low + 0.2)
        share = table.loc[inside, "label"].mean()
        assert abs(share - table.loc[inside, "malignancy_probability"].mean()) < 0.08
    slope, intercept = records[0]["malignancy"]
    assert slope == pytest.approx(1 / 3, rel=0.2)
    assert intercept == pytest.approx(-1 / 3, abs=0.2)


def test_any_calcification_is_a_falling_probability_of_the_code() -> None:
    record = fit_record(planted())
    slope, intercept = record["p_calcified"]
    assert slope == pytest.approx(-2, rel=0.15)
    assert intercept == pytest.approx(9, rel=0.15)
    assert "calcification" not in record["outputs"]


def test_a_record_travels_as_json_and_intervals_stay_on_the_scale() -> None:
    table = planted(80, noise=30.0)
    record = json.loads(json.dumps(fit_record(table), allow_nan=False))
    again = add_intervals(table, record)
    pd.testing.assert_frame_equal(again, add_intervals(table, fit_record(table)))
    assert again["margin_low"].min() == 1
    assert again["margin_high"].max() == 5
    assert (again["diameter_low"] >= 0).all()
    assert (again["margin_low"] <= again["margin"]).all()


def test_too_few_residuals_give_the_whole_scale() -> None:
    few = planted(4)[:5].drop(columns="diameter")
    found = add_intervals(few, fit_record(few))
    assert (found["margin_low"] == 1).all()
    assert (found["margin_high"] == 5).all()


def test_sets_and_their_empty_ones_are_counted() -> None:
    given = [malignancy_set(p, t) for p, t in ((0.1, 0.3), (0.9, 0.3), (0.5, 0.3), (0.5, 0.7), (0.3, 0.3))]
    assert given == ["low", "high", "low high (empty)", "low high", "low"]
    table = pd.DataFrame({"patient_id": list("abcde"), "label": [0, 0, 1, 1, np.nan], "malignancy_set": given})
    found = coverage(table.assign(diameter_readers=9.0), {"resamples": 50, "seed": 0})["malignancy"]["all"]
    assert found["coverage"]["value"] == pytest.approx(3 / 4)
    assert found["width"]["value"] == pytest.approx((1 + 1 + 2 + 2 + 1) / 5)
    assert found["empty"]["value"] == pytest.approx(1 / 5)


def test_platt_on_shares_is_the_likeliest_line() -> None:
    draw = np.random.default_rng(5)
    x, share = draw.normal(size=60), draw.uniform(size=60)

    def loss(a: float, b: float) -> float:
        value = a * x + b
        return float(np.mean(np.logaddexp(0, value) - share * value))

    a, b = platt(x, share)
    best = loss(a, b)
    assert all(best <= loss(a + da, b + db) + 1e-9 for da in (-0.02, 0, 0.02) for db in (-0.02, 0, 0.02) if a + da > 0)


def test_the_scale_of_scores_is_ridge_but_for_its_mean() -> None:
    """The first column is not shrunk: of residuals that nothing explains the scale is their mean."""
    residual = np.array([1.0, 2.0, 6.0])
    assert _fit_scale(np.ones((3, 1)), residual)["scale"] == pytest.approx([3.0])
    value = np.array([-1.0, 0.0, 1.0])
    fitted = _fit_scale(np.column_stack([np.ones(3), value]), residual)
    assert fitted["scale"] == pytest.approx([3.0, 5.0 / 3])  # Σvr / (Σv² + 1)
    assert fitted["least"] == pytest.approx(0.75)


def test_the_ends_of_the_size_groups_belong_to_the_larger_one() -> None:
    sizes = [3.0, 7.99, 8.0, 12.0, 19.9, 20.0, 31.0]
    names = [name for _, name in DIAMETER_STRATA]
    assert [names[k] for k in _strata(pd.DataFrame({"diameter": sizes}))] == [diameter_stratum(one) for one in sizes]
