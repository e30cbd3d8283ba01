"""The audit's tables on rows whose figures are known, the realism test, and the patches that tuning removes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from audit.measure import PLAIN, RANDOM, SHAM, Reader, doses_of, measure_nodule
from audit.realism import DRAWS, figure, realism, told_apart
from audit.tables import dose_response, map_table, own_measures, selectivity, sham_noise
from audit.turned import smallest_turns, turns_table
from tune_masked import Losses, chosen_epoch, with_patches_removed

from lidc_xai.models import NoduleModel, build_model
from lidc_xai.nodules import explain_nodules, predict
from lidc_xai.simulate import EDITS, edit_nodule, simulate_crop

OUTPUTS = ("spiculation", "margin")
PATIENT = "LIDC-IDRI-0013"


@pytest.fixture
def rows() -> pd.DataFrame:
    """Spiculation rises by twice the dose and margin falls by half of it; of nodule 3 spiculation does not move."""
    found = []
    for k in range(4):
        about = {"model": "m", "nodule_id": f"n{k}", "patient_id": f"p{k}", "size": 10.0}
        plain = {"spiculation": float(k), "margin": float(-k)}
        found.append(about | {"edit": PLAIN, "dose": 0.0, "own": 0.0} | plain)
        found.append(about | {"edit": SHAM, "dose": 1.0, "own": np.nan} | plain | {"margin": 0.1 - k})
        for dose in doses_of("spiculation"):
            moved = {"spiculation": k + (0 if k == 3 else 2 * dose), "margin": -k - dose / 2}
            found.append(about | {"edit": "spiculation", "dose": dose, "own": 100 * dose} | moved)
        for dose in doses_of("margin"):
            moved = {"spiculation": float(k), "margin": -k - dose}
            found.append(about | {"edit": "margin", "dose": dose, "own": -dose} | moved)
    return pd.DataFrame(found)


def test_dose_response_knows_the_expected_sign(rows: pd.DataFrame) -> None:
    table = dose_response(rows).set_index("edit")
    assert table.loc["spiculation", "nodules"] == 4
    assert table.loc["spiculation", "rho"] == pytest.approx(1.0)  # a flat curve has no rank correlation
    assert table.loc["spiculation", "expected"] == pytest.approx(0.75)
    assert table.loc["margin", "rho"] == pytest.approx(1.0)  # falls with the dose, as it should
    assert EDITS["margin"].sign == -1


def test_selectivity_is_in_standard_deviations_of_the_output(rows: pd.DataFrame) -> None:
    table = selectivity(rows, OUTPUTS).set_index("edit")
    sd = np.std([0, 1, 2, 3], ddof=1)
    assert table.loc["spiculation", "spiculation"] == pytest.approx(1.5 / sd, abs=1e-3)
    assert table.loc["spiculation", "margin"] == pytest.approx(-0.5 / sd, abs=1e-3)
    assert table.loc["margin", "spiculation"] == 0
    assert table.loc[SHAM, "margin"] == pytest.approx(0.1 / sd, abs=1e-3)
    assert sham_noise(rows, OUTPUTS)["margin"].iloc[0] == pytest.approx(0.1 / sd)
    measures = own_measures(rows).set_index("edit")["rho_of_dose_and_measure"]
    assert measures["spiculation"] == pytest.approx(1.0)


def test_map_table_averages_by_method() -> None:
    one = {"model": "m", "edit": "margin", "of": "S", "area": 0.1, "positive_mass": 0.3, "pointing_2mm": 1.0}
    given = (("x", 0.2, "a"), ("x", 0.4, "b"), ("y", 0.9, "a"))
    rows = pd.DataFrame([one | {"method": name, "auprc": value, "patient_id": p} for name, value, p in given])
    table = map_table(rows).set_index("method")
    assert table.loc["x", "auprc"] == pytest.approx(0.3)
    assert table.loc["x", "nodules"] == 2
    assert table.loc["y", "auprc"] == pytest.approx(0.9)


def test_a_classifier_tells_apart_what_differs_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    same, other = rng.normal(size=(2, 120, 6))
    patients = [f"p{k}" for k in range(120)]
    assert figure(lambda _: (same, other + 3, patients, patients), 0)["verdict"] == "told apart"
    alike = figure(lambda _: (same, other, patients, patients), 0)
    assert alike["verdict"] == "not told apart"
    low, high = (float(str(alike[end])) for end in ("low", "high"))
    assert low < 0.5 < high
    assert "no verdict" in str(figure(lambda _: (same[:40], other[:40], patients[:40], patients[:40]), 0)["verdict"])
    assert "auc" not in figure(lambda _: (same[:5], other[:5], patients[:5], patients[:5]), 0)


def test_the_figure_is_the_mean_over_draws_and_the_smallest_n() -> None:
    rng = np.random.default_rng(1)
    edited, real = rng.normal(size=(2, 60, 6))
    patients = [f"p{k}" for k in range(60)]

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
        n = 60 - seed % DRAWS
        return edited[:n], real[-n:], patients[:n], patients[-n:]

    found = figure(draw, 0)
    each = [told_apart(*draw(seed), seed)[0] for seed in range(DRAWS)]
    assert found["n"] == 60 - DRAWS + 1
    assert found["auc"] == pytest.approx(np.mean(each), abs=6e-4)
    assert len(set(each)) > 1


def test_edited_nodules_meet_real_ones_of_the_rating_that_the_edit_gave(rows: pd.DataFrame) -> None:
    # beside the like one: one further from the rating, one of estimated HU, a large one, the patient's own
    manifest = pd.DataFrame(
        {"nodule_id": ["n0", "like", "further", "estimated", "large", "own"],
         "patient_id": ["p0", "q", "r", "s", "t", "p0"], "diameter": [10.0, 10.5, 11.5, 10.0, 30.0, 10.0],
         "spiculation": [1.0, 3.2, 3.4, 3.0, 3.0, 3.0], "margin": np.nan, "larger_than_box": False,
         "hu_calibrated": [True, True, True, False, True, True], "n_readers_masked": 4}
    )  # fmt: skip
    features = np.zeros(3, np.float32)
    names = [PLAIN + " 0", SHAM + " 1", *(f"spiculation {dose:g}" for dose in doses_of("spiculation"))]
    kept = {"n0": dict.fromkeys(names, features)}
    asked: list[str] = []

    def plain(nodule_id: str) -> np.ndarray:
        asked.append(nodule_id)
        return features

    rows = rows[rows["nodule_id"] == "n0"]
    table = realism(rows, kept, manifest, plain, (1.0,), 0).set_index(["edit", "dose"])
    assert asked == ["like"] * DRAWS  # rated 1 + 2; untouched (rated 1) there is none like it
    assert table.loc[("spiculation", 1.0), "n"] == 1
    assert table.loc[("spiculation", 0.0), "n"] == 0


def test_at_most_half_of_the_patches_are_removed_and_whole_ones() -> None:
    images, removed = torch.zeros(200, 1, 8, 8), torch.ones(200, 1, 8, 8)
    found = with_patches_removed(images, removed, (4, 4), torch.Generator().manual_seed(0))
    shares = found.mean((1, 2, 3))
    assert 0 <= shares.min() < 0.05
    assert 0.45 < shares.max() <= 0.5
    patches = found.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert (patches.min(-1).values == patches.max(-1).values).all()


def tiny(seed: int, patients: list[str]) -> NoduleModel:
    model = build_model("vit_nodule_p8", ["malignancy", "spiculation"], size=32, seed=seed)
    model.preprocess = replace(model.preprocess, views=("axial",), turns=8)
    model.target_scaling = {"spiculation": (2.0, 0.5)}
    model.training_info = {"train_patients": patients, "validation_patients": []}
    return model


def test_a_reader_is_the_mean_of_the_models_that_never_saw_the_patient(by_id: dict) -> None:
    crop = simulate_crop(by_id["LIDC-IDRI-0013-s1-n1"], seed=1)[0]
    first, second, third = (tiny(seed, ["other"] if seed else [PATIENT]) for seed in range(3))
    reader = Reader("runs", [first, second, third], ["cdam", "attention"])
    assert reader.of(PATIENT) == [second, third]
    edited, _ = edit_nodule(crop, "spiculation", 1.0)
    found = reader.outputs([second, third], [crop, edited])
    for row, one in zip(found, (crop, edited), strict=True):
        table = predict([second, third], [one])
        assert row[1] == pytest.approx(table["spiculation"].iloc[0], abs=1e-5)
        assert row[0] == pytest.approx(table["malignancy_logit"].iloc[0], abs=1e-5)
    maps = reader.maps([second, third], [crop, edited], torch.tensor([[1], [0]]))
    assert set(maps) == {"cdam", "attention", RANDOM}
    for place, (one, column) in enumerate(((crop, 1), (edited, 0))):
        wanted = next(explain_nodules([second, third], [one], "cdam"))["cdam"].relevance[0, column]
        np.testing.assert_allclose(maps["cdam"][place, 0], wanted, atol=1e-6)


def test_measuring_a_nodule_says_what_was_refused_and_reads_every_version(by_id: dict) -> None:
    crop = simulate_crop(by_id["LIDC-IDRI-0013-s1-n1"], seed=1)[0]
    reader = Reader("small", [tiny(1, ["other"])], ["cdam"], turns=1)
    found = measure_nodule(crop, PATIENT, [reader], reader.models[0], 0)
    tried = 2 + sum(len(doses_of(name)) for name in EDITS)
    assert len(found.outputs) == tried - len(found.refused) == len(found.features)
    assert {row["members"] for row in found.outputs} == {1}
    rows = pd.DataFrame(found.maps)
    assert set(rows["method"]) == {"cdam", RANDOM, "centred disc"}
    assert set(rows["edit"]) == {"spiculation"}
    assert rows["auprc"].between(0, 1).all()


def test_the_smallest_edit_that_turns_a_verdict_is_found_in_the_rows() -> None:
    given = {
        "n0": [(PLAIN, 0.0, 0.4), ("margin", 0.5, 0.6), ("diameter", -0.5, 0.9), ("diameter", 1.0, 0.99),
               ("remove", 1.0, 0.7)],
        "n1": [(PLAIN, 0.0, 0.9), ("margin", 1.0, 0.8)],
        "n2": [(PLAIN, 0.0, 0.9)],
    }  # fmt: skip
    named = [(nodule, *row) for nodule, found in given.items() for row in found]
    rows = pd.DataFrame(named, columns=["nodule_id", "edit", "dose", "probability"]).assign(model="m", patient_id="p")
    turns = smallest_turns(rows, {"n0": float("nan"), "n1": 0.0, "n2": 1.0}).set_index("nodule_id")
    assert list(turns.index) == ["n0", "n1"]  # n2 is right and sure
    assert (turns.loc["n0", "edit"], turns.loc["n0", "dose"], turns.loc["n0", "after"]) == ("diameter", -0.5, 0.9)
    assert turns.loc["n1", "edit"] == ""
    assert turns["wrong"].tolist() == [False, True]
    table = turns_table(turns.reset_index()).set_index("edit")
    assert table.loc["any", ["asked", "turned", "wrong"]].tolist() == [2, 1, 1]
    assert table.loc["diameter", "dose"] == 0.5


def test_the_tuned_epoch_is_the_best_without_the_patches_that_keeps_whole_images() -> None:
    epochs = [Losses(1.00, 1.9), Losses(1.049, 1.5), Losses(1.06, 1.2), Losses(1.04, 1.6)]
    assert chosen_epoch(epochs, 1.0) == 2
    assert chosen_epoch(epochs[2:3], 1.0) is None
