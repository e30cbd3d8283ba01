"""Metrics against scikit-learn and SciPy, weights against repetition, intervals against plain resampling."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from sklearn import metrics as reference

from lidc_xai.annotations import select_cohort
from lidc_xai.evaluation.decision import decision_curve
from lidc_xai.evaluation.statistics import Interval
from lidc_xai.nodules.failures import failure_table
from lidc_xai.nodules.turning import wants_turning
from lidc_xai.training import metrics
from lidc_xai.training.bootstrap import mcnemar, metric_difference, metric_interval, patient_weights
from lidc_xai.training.intervals import calibrate
from lidc_xai.training.metrics import reader_noise


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, tied probabilities, patients with one to three nodules."""
    noise = np.random.default_rng(3)
    y = (noise.random(120) < 0.4).astype(float)
    probability = np.round(np.clip(0.3 * y + noise.random(120) * 0.7, 0, 1), 2)
    return y, probability, [f"P{i}" for i in np.sort(noise.integers(0, 60, 120))]


def test_classification_figures_equal_scikit_learns(sample: tuple) -> None:
    y, p, _ = sample
    assert np.isclose(metrics.auc(y, p), reference.roc_auc_score(y, p))
    assert np.isclose(metrics.accuracy(y, p), reference.accuracy_score(y, p >= 0.5))
    assert np.isclose(metrics.sensitivity(y, p), reference.recall_score(y, p >= 0.5))
    assert np.isclose(metrics.specificity(y, p), reference.recall_score(1 - y, p < 0.5))
    assert np.isclose(metrics.brier(y, p), reference.brier_score_loss(y, p))


def test_auc_within_folds_does_not_see_a_folds_own_calibration(sample: tuple) -> None:
    y, p, patients = sample
    folds = np.arange(len(y)) % 3
    metric = metrics.auc_within(folds)
    wanted = np.mean([reference.roc_auc_score(y[folds == k], p[folds == k]) for k in range(3)])
    assert np.isclose(metric(y, p), wanted)
    skewed = p ** np.array([1, 5, 0.2])[folds]
    assert np.isclose(metric(y, skewed), wanted)
    assert not np.isclose(metrics.auc(y, skewed), metrics.auc(y, p))
    weights = patient_weights(patients, resamples=5, seed=1)
    times = weights[2].astype(int)
    repeated = metrics.auc_within(np.repeat(folds, times))(np.repeat(y, times), np.repeat(p, times))
    assert np.isclose(metric(y, p, weights)[2], repeated)


def test_calibration_error_by_hand() -> None:
    y, p = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.95, 0.15, 0.1])
    assert np.isclose(metrics.expected_calibration_error(y, p), (abs(1.85 - 1) + abs(0.25 - 1)) / 4)
    assert metrics.expected_calibration_error(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.0


def test_regression_figures_equal_references(sample: tuple) -> None:
    y, p, _ = sample
    value = y + p
    assert np.isclose(metrics.mean_squared(y, value), reference.mean_squared_error(y, value))
    assert np.isclose(metrics.mean_absolute(y, value), reference.mean_absolute_error(y, value))
    assert np.isclose(metrics.r_squared(p, value), reference.r2_score(p, value))
    assert np.isclose(metrics.spearman(y, value), stats.spearmanr(y, value).statistic)


@pytest.mark.parametrize("name", ["auc", "spearman", "r_squared", "expected_calibration_error", "sensitivity"])
def test_a_weight_is_a_repetition(name: str, sample: tuple) -> None:
    y, p, patients = sample
    weights = patient_weights(patients, resamples=20, seed=1)
    metric = getattr(metrics, name)
    found = metric(y, p, weights)
    for row, value in zip(weights, found, strict=True):
        times = row.astype(int)
        assert np.isclose(metric(np.repeat(y, times), np.repeat(p, times)), value)


def test_undefined_is_nan() -> None:
    one_class, p = np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])
    assert np.isnan(metrics.auc(one_class, p))
    assert np.isnan(metrics.specificity(one_class, p))
    assert np.isnan(metrics.r_squared(one_class, p))
    assert np.isnan(metrics.spearman(one_class, p))
    assert np.isnan(metrics.auc(np.empty(0), np.empty(0)))


def test_interval_draws_patients_not_nodules(sample: tuple) -> None:
    y, p, patients = sample
    interval = metric_interval(metrics.auc, y, p, patients, resamples=500)
    assert isinstance(interval, Interval)
    assert interval.low < interval.mean < interval.high
    assert (interval.n, interval.clusters) == (120, len(set(patients)))
    # the same nodules entered ten times over under their own patients say nothing new; as new patients, they would
    many, same = np.tile(y, 10), np.tile(p, 10)
    kept = metric_interval(metrics.auc, many, same, patients * 10, resamples=500)
    spread = metric_interval(metrics.auc, many, same, [str(i) for i in range(1200)], resamples=500)
    assert np.isclose(kept.high - kept.low, interval.high - interval.low)
    assert spread.high - spread.low < 0.5 * (kept.high - kept.low)
    gaps = metric_interval(metrics.auc, np.append(y, np.nan), np.append(p, 0.5), [*patients, "Q"], resamples=50)
    assert gaps.undefined == 1
    assert gaps.mean == interval.mean
    assert metric_interval(metrics.auc, y[:2], p[:2], ["A", "A"]).note == "no interval from a single patient"


def test_paired_difference(sample: tuple) -> None:
    y, p, patients = sample
    same = metric_difference(metrics.auc, y, p, p, patients, resamples=200)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    better = metric_difference(metrics.auc, y, y * 0.8 + 0.1, p, patients, resamples=500)
    assert better.low > 0
    assert better.p < 0.01
    assert np.isclose(better.difference, 1 - metrics.auc(y, p))


def test_mcnemar_counts_disagreements() -> None:
    y = np.ones(10)
    first, second = np.full(10, 0.9), np.array([0.9] * 4 + [0.1] * 6)
    assert np.isclose(mcnemar(y, first, second), stats.binomtest(6, 6).pvalue)
    assert mcnemar(y, first, first) == 1.0


def test_noise_floor_of_made_up_readers() -> None:
    noise = np.random.default_rng(0)
    truth = noise.normal(0, 2.0, 4000)
    votes = truth[:, None] + noise.normal(0, 1.0, (4000, 4))
    found = reader_noise(votes.mean(1), votes.std(1, ddof=1), np.full(4000, 4))
    assert abs(found.icc - 4 / 5) < 0.02
    assert abs(found.floor_mse_z - 0.25 / 4.25) < 0.004


def test_noise_floor_of_the_cohort_is_the_published_table() -> None:
    cohort = select_cohort("paper854")
    table = {"malignancy": (0.56, 0.18), "sphericity": (0.26, 0.43), "texture": (0.55, 0.18), "diameter": (0.94, 0.02)}
    for name, (icc, floor) in table.items():
        columns = (cohort[column].to_numpy(float) for column in (name, f"{name}_sd", "n_readers"))
        found = reader_noise(*columns)
        assert (round(found.icc, 2), round(found.floor_mse_z, 2)) == (icc, floor), name


def test_platt_learns_from_softened_labels() -> None:
    """Against a plain minimisation of the cross-entropy to (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2)."""
    logits, labels = np.array([-2.0, -0.5, 0.3, 0.4, 1.5, 3.0]), np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    wanted = np.where(labels == 1, 4 / 5, 1 / 5)

    def loss(line: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(line[0] * logits + line[1])))
        return float(-(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean())

    reference = optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    np.testing.assert_allclose(calibrate(logits, labels, "platt"), reference, atol=1e-3)


def test_interval_and_p_are_those_of_the_replicates(sample: tuple) -> None:
    y, p, patients = sample
    worse = np.clip(p + 0.25 * (0.5 - y), 0, 1)
    weights = patient_weights(patients, resamples=200, seed=7)
    drawn = metrics.brier(y, p, weights)
    found = metric_interval(metrics.brier, y, p, patients, resamples=200, seed=7)
    np.testing.assert_allclose((found.low, found.high), np.quantile(drawn, [0.025, 0.975]))
    gap = drawn - metrics.brier(y, worse, weights)
    paired = metric_difference(metrics.brier, y, p, worse, patients, resamples=200, seed=7)
    np.testing.assert_allclose((paired.low, paired.high), np.quantile(gap, [0.025, 0.975]))
    one_side = min((gap <= 0).sum(), (gap >= 0).sum())
    assert paired.p == pytest.approx(min(1.0, 2 * (one_side + 1) / 201))
    assert paired.p < 1


def test_exactly_one_half_is_not_high_anywhere() -> None:
    """As a median of exactly 3 is not: one rule for accuracies, subgroups, decision curves, edits and words."""
    y, half = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert (metrics.accuracy(y, half), metrics.sensitivity(y, half), metrics.specificity(y, half)) == (0.5, 0.0, 1.0)
    assert mcnemar(np.zeros(8), np.full(8, 0.5), np.full(8, 0.4)) == 1.0  # both call every one low
    net_benefit = decision_curve(y, half, [0.5])
    assert net_benefit["model"].iloc[0] == 0.0
    manifest = pd.DataFrame({"nodule_id": ["a", "b"], "patient_id": ["p", "q"], "label": y})
    manifest = manifest.assign(diameter=9.0, texture=5.0, margin=4.0, spiculation=1.0, slice_thickness_mm=1.0)
    manifest["larger_than_box"] = False
    votes = pd.DataFrame({"nodule_id": ["a", "a", "b", "b"], "malignancy": [2, 2, 4, 4], "calcification": 6})
    table = failure_table(manifest[["nodule_id"]].assign(malignancy_probability=0.5), manifest, votes)
    assert {row["wrong"] for row in table} == {1}  # each property is one group of both nodules
    assert wants_turning({"malignancy_probability": 0.5}, 1)


def test_a_perfect_ranking_has_the_exact_interval_of_pairs_of_patients() -> None:
    y, p = np.array([0.0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.2, 0.2, 0.7, 0.8, 0.8, 0.9])
    patients = ["a", "a", "b", "b", "c", "d", "e"]  # pairs: a-c, b-d (or b's positive with a): two at most
    assert metrics.disjoint_pairs(y, patients) == 2
    found = metric_interval(metrics.auc, y, p, patients, resamples=50)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 2))
    assert found.note.startswith("perfectly separated")
    worst = metric_interval(metrics.auc, y, -p, patients, resamples=50)
    assert (worst.mean, worst.low) == (0.0, 0.0)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / 2))
    alike = metric_interval(metrics.mean_absolute, y, y, patients, resamples=50)
    assert alike.mean == 0.0
    assert np.isnan(alike.low)
    assert alike.note == "no interval: every resample gives the same"


def test_the_exact_interval_of_a_perfect_ranking_covers_the_truth() -> None:
    """One nodule a patient, true AUC .95: of rankings that come out perfect, nearly all hold it."""
    rng, truth = np.random.default_rng(0), 0.95
    shift = np.sqrt(2) * stats.norm.ppf(truth)
    y, held, perfect = np.repeat([0.0, 1.0], 6), 0, 0
    for _ in range(400):
        score = rng.normal(size=12) + shift * y
        if metrics.auc(y, score) == 1.0:
            perfect += 1
            held += metric_interval(metrics.auc, y, score, list(range(12)), resamples=2).low <= truth
    assert perfect > 50
    assert held == perfect  # .025 ** (1/6) = .54 lies well below


def test_r_squared_of_equal_targets_is_undefined_whatever_their_rounding():
    for value in np.random.default_rng(0).uniform(0, 10, 50):
        y = np.full(7, value)  # about half of them have Σ y² − (Σ y)²/n a little above 0
        assert np.isnan(metrics.r_squared(y, y + 1))
