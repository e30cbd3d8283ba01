"""The log-odds by biomarker: parts sum to the whole, and are found again where they are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from audit.log_odds import REST, fit_parts, largest, parts_of, share_inside
from audit.measure import Reader
from audit_turns import cohort, looked_at

from lidc_xai.models import build_model
from lidc_xai.nodules.turning import Turn
from lidc_xai.simulate import edit_nodule, simulate_crop


def test_parts_are_found_again_and_sum_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    margin, texture = rng.normal(4, 2, 300), rng.normal(3, 0.5, 300)
    logit = 1 + 0.7 * (margin - 4) / 2 - 1.5 * (texture - 3) / 0.5
    table = pd.DataFrame({"margin": margin, "texture": texture, "malignancy_logit": logit})
    betas, explained = fit_parts(table, {"margin": (4, 2), "texture": (3, 0.5), "absent": (0, 1)})
    assert betas == pytest.approx({"margin": 0.7, "texture": -1.5})
    assert explained == pytest.approx(1)
    maps = {name: rng.normal(size=(4, 4)) for name in ("malignancy", "margin", "texture")}
    parts = parts_of(maps, betas)
    np.testing.assert_allclose(sum(parts.values()), maps["malignancy"])
    assert (
        largest(parts_of({"malignancy": 1.0, "margin": 1.0, "texture": 0.1}, betas), ["margin", "texture"]) == "margin"
    )
    assert parts_of({"malignancy": 1.0, "margin": 1.0, "texture": 0.1}, betas)[REST] == pytest.approx(1 - 0.7 + 0.15)


def test_share_on_the_edit_counts_what_is_positive() -> None:
    relevance = np.array([[3.0, -9.0], [1.0, 0.0]])
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    assert share_inside(relevance, mask) == pytest.approx(0.75)
    assert np.isnan(share_inside(-np.ones((2, 2)), mask))


def test_a_turned_nodule_and_its_cohort(by_id: dict) -> None:
    crop = simulate_crop(by_id["LIDC-IDRI-0013-s1-n1"], seed=1)[0]
    model = build_model("vit_nodule_p8", ["malignancy", "margin", "spiculation"], size=32, seed=0)
    edited, changed = edit_nodule(crop, "spiculation", 1.0)
    turn = Turn("spiculation", 1.0, 0.4, 0.6, edited, changed, 1)
    row, points = looked_at(
        Reader("m", [model], ["cdam", "attention"], 1), [model], crop, turn, {"margin": 0.0, "spiculation": 1.0}
    )
    assert row["by margin"] == 0
    assert row["by margin"] + row["by spiculation"] + row[f"by {REST}"] == pytest.approx(row["logit_change"])
    assert {one["method"] for one in points} == {"centred disc", "cdam", "attention", "cdam@random_weights"}
    assert all(0 <= one["whole"] <= 1 for one in points if np.isfinite(one["whole"]))
    about = {"nodule_id": "a", "patient_id": "p"}
    turned = pd.DataFrame([about | row, {"nodule_id": "b", "patient_id": "q", "edit": "", "turned": False}])
    table = cohort(turned, pd.DataFrame([about | one for one in points])).set_index(["figure", "of"])["mean"]
    assert table["turned by an edit", "all"] == 0.5
    assert table["turned first by", "spiculation"] == 0.5
    assert table["the edited biomarker's part of the log-odds moves most", "all"] == 1
