"""Heads on frozen features: folded standardisation, nobody explained by a head that learned from it, chance beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from studies.photo_heads import (
    cross_fitted,
    distilled,
    kept_heads,
    mean_precision,
    multi_label_head,
    scores_of,
    split,
)

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(3, 2, (90, 5)) * [1, 10, 0.1, 1, 1]
LABELS = np.repeat(np.arange(3), 30)
FEATURES[np.arange(90), LABELS] += [4, 40, 0.4][0] * np.array([1, 10, 0.1])[LABELS]


def test_a_head_reads_plain_features_as_scikit_learn_reads_standardised_ones() -> None:
    present = np.stack([LABELS == 0, LABELS != 1], 1)
    scores = scores_of([multi_label_head(FEATURES, present, 0.1)], FEATURES, np.zeros(90, np.intp))
    standard = StandardScaler().fit_transform(FEATURES)
    for k in (0, 1):
        wanted = LogisticRegression(C=0.1, max_iter=2000).fit(standard, present[:, k]).decision_function(standard)
        np.testing.assert_allclose(scores[:, k], wanted, atol=1e-4)


def test_no_row_is_scored_by_a_head_that_learned_from_it() -> None:
    heads, folds = cross_fitted(FEATURES, LABELS, 3, seed=1)
    assert len(heads) == 3
    for label in range(3):
        assert np.bincount(folds[label == LABELS], minlength=3).tolist() == [10, 10, 10]
    scores = scores_of(heads, FEATURES, folds)
    assert (scores.argmax(1) == LABELS).mean() > 0.8
    dealt = RNG.permutation(LABELS)
    heads, folds = cross_fitted(FEATURES, dealt, 3, seed=1, strength=100.0)
    assert abs((scores_of(heads, FEATURES, folds).argmax(1) == dealt).mean() - 1 / 3) < 0.2, "chance where nothing is"


def test_two_classes_are_two_logits() -> None:
    two = LABELS < 2
    heads, folds = cross_fitted(FEATURES[two], LABELS[two], 2, seed=0)
    assert [tuple(weight.shape) for weight, _ in heads] == [(2, 5), (2, 5)]
    scores = scores_of(heads, FEATURES[two], folds)
    assert (scores.argmax(1) == LABELS[two]).mean() > 0.8
    standard = StandardScaler().fit(FEATURES[two][folds != 0])
    fit = LogisticRegression(C=0.01, max_iter=2000).fit(
        standard.transform(FEATURES[two][folds != 0]), LABELS[two][folds != 0]
    )
    wanted = fit.predict_proba(standard.transform(FEATURES[two][folds == 0]))[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(scores[folds == 0, 0] - scores[folds == 0, 1])), wanted, atol=1e-5)


def test_distilled_heads_agree_with_their_teacher() -> None:
    teacher = np.full((90, 3), 0.05)
    teacher[np.arange(90), LABELS] = 0.9
    heads, folds = distilled(FEATURES, teacher, 3, seed=0, steps=100)
    assert (scores_of(heads, FEATURES, folds).argmax(1) == LABELS).mean() > 0.8


def test_precision_beside_chance() -> None:
    present = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    values, chance = mean_precision(np.array([[3.0, 0], [2, 0], [1, 0], [0, 0]]), present)
    assert values[0] == pytest.approx((1 + 2 / 3) / 2)
    assert chance[0] == 0.5
    assert np.isnan([values[1], chance[1]]).all()


def test_parts_and_kept_heads(tmp_path: Path) -> None:
    train, test = split(10, 6, 0)
    assert sorted([*train, *test]) == list(range(10))
    fits = []

    def fit() -> tuple[list, np.ndarray]:
        fits.append(1)
        return cross_fitted(FEATURES, LABELS, 3, 0)

    first, again = (kept_heads(tmp_path / "heads.safetensors", fit) for _ in range(2))
    assert len(fits) == 1
    assert np.array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0][2][0].numpy(), again[0][2][0].numpy())
