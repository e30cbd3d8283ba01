"""What drove the rating, in words: where the map lies against a brute-force reference, and what the sentences claim."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from lidc_xai.errors import ModelError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.nodules.map_record import Repeatability
from lidc_xai.nodules.record import (
    Association,
    associations,
    own_size,
    recorded_associations,
    recorded_own_size,
    recorded_unseen,
    unseen_accuracy,
)
from lidc_xai.ratings import BIOMARKERS, OUTPUTS
from lidc_xai.reporting import nodule_report
from lidc_xai.reporting.nodule.places import ZONES, map_places
from lidc_xai.reporting.nodule.reason import reason_words, where_words
from lidc_xai.reporting.nodule.words import trust_in_map


def planted(made, scores: np.ndarray, grid: int = 8):
    """One axial map whose malignancy scores are ``scores`` (grid, grid)."""
    maps = made.maps("LIDC-IDRI-0001-s1-n0", grid=grid)
    relevance = np.zeros((1, len(OUTPUTS), grid, grid), np.float32)
    relevance[0, OUTPUTS.index("malignancy")] = scores
    return replace(maps, views=("axial",), indices=(16,), relevance=relevance, values=maps.values[:1])


def by_hand(crop, maps, rim: float) -> dict[str, list[float]]:
    """Zone -> share of positive, of negative relevance, and of the plane: every pixel against every other."""
    mask = crop.consensus[maps.indices[0]]
    cell = mask.shape[0] // maps.relevance.shape[-1]
    scores = np.kron(maps.relevance[0, 0].astype(float), np.ones((cell, cell)))
    sums = {name: [0.0, 0.0, 0.0] for name in ZONES}
    pixels = [(row, column) for row in range(mask.shape[0]) for column in range(mask.shape[1])]
    for row, column in pixels:
        across = (
            min(np.hypot(row - r, column - c) for r, c in pixels if mask[r, c] != mask[row, column]) - 0.5
        )  # the boundary runs half a pixel before the first pixel of the other side
        name = "rim" if across <= rim else "inside" if mask[row, column] else "outside"
        value = scores[row, column]
        for place, amount in enumerate((max(value, 0), max(-value, 0), 1.0)):
            sums[name][place] += amount
    total = np.sum(list(sums.values()), axis=0)
    return {name: (np.array(one) / total).tolist() for name, one in sums.items()}


def test_places_are_those_of_every_pixel_by_hand(made):
    crop = made.crop("n", size=32)
    maps = planted(made, np.random.default_rng(3).normal(size=(8, 8)))
    places = map_places(crop, maps, "malignancy")
    assert places["rim_mm"] == 2.0
    expected = by_hand(crop, maps, 2.0)
    for name in ZONES:
        assert list(places["zones"][name].values()) == pytest.approx(expected[name], abs=1e-6), name


def test_directions_are_the_patients(made):
    """The nodule's middle lies near column 19, row 12 of 32: patches beside it lie left, right, front and back."""
    crop = made.crop("n")
    for (row, column), wanted in {
        (3, 6): ["left"], (3, 2): ["right"], (1, 4): ["front"], (5, 4): ["back"], (3, 4): ["middle"],
    }.items():  # fmt: skip
        scores = np.zeros((8, 8))
        scores[row, column] = 1.0
        places = map_places(crop, planted(made, scores), "malignancy")
        assert (places["raises_peak"], places["lowers_peak"]) == (wanted, [])
        sure = np.ones((1, 1, 8, 8), bool)
        sure[0, 0, row, column] = False  # another training may turn its sign: it is grey, and no place is told of it
        maps = planted(made, scores)
        known = Repeatability(("a", "b", "c"), np.zeros((1, 1, 8, 8)), sure, {}, {}, {})
        assert map_places(crop, replace(maps, repeatability=known), "malignancy")["raises_peak"] == []
        assert places["zones"]["inside"]["lowers"] is None
    mirrored = NoduleCrop(
        crop.ct, crop.affine @ np.diag([-1.0, 1, 1, 1]), crop.reader_masks, crop.consensus, [], "n", "1.2.3"
    )
    scores = np.zeros((8, 8))
    scores[3, 6] = 1.0
    assert map_places(mirrored, planted(made, scores), "malignancy")["raises_peak"] == ["right"]


def test_without_an_outline_a_ball_of_the_predicted_diameter_stands_for_it(made):
    crop = made.crop("n", readers=0)
    affine = crop.affine.copy()
    scores = np.zeros((8, 8))
    scores[3:5, 3:5] = 1.0
    maps = planted(made, scores)
    assert map_places(crop, maps, "malignancy") is None
    places = map_places(crop, maps, "malignancy", 10.0)
    assert places["around"] == "ball"
    assert places["zones"]["outside"]["raises"] == 0.0
    area = np.pi * 7**2 / 32**2  # the ball's section and 2 mm about it
    assert places["zones"]["inside"]["area"] + places["zones"]["rim"]["area"] == pytest.approx(area, rel=0.1)
    assert "on a ball of its predicted diameter and its 2 mm rim" in where_words(places, "raises")
    assert (crop.affine == affine).all()


@pytest.mark.parametrize(
    ("shares", "told_apart", "wanted"),
    [
        ((0.6, 0.2, 0.2), True, "mostly from inside the nodule ("),
        ((0.1, 0.7, 0.2), True, "mostly from the nodule’s rim ("),
        ((0.35, 0.3, 0.35), True, "mostly from the whole nodule ("),
        ((0.1, 0.7, 0.2), False, "mostly from the nodule ("),
        ((0.1, 0.15, 0.75), True, "partly from the nodule, mostly from beside it ("),
        ((0.05, 0.05, 0.9), True, "from beside the nodule ("),
        ((0.05, 0.10, 0.85), True, "but from no particular place ("),
    ],
)
def test_where_it_lies_is_held_against_chance(shares, told_apart, wanted):
    areas = (0.05, 0.05, 0.9)
    zones = {
        name: {"raises": share, "lowers": 1 / 3, "area": area}
        for name, share, area in zip(ZONES, shares, areas, strict=True)
    }
    places = {"around": "outline", "rim_mm": 2.0, "told_apart": told_apart, "zones": zones, "raises_peak": []}
    words = where_words(places, "raises")
    assert words.startswith(wanted)
    assert words.endswith(f"({100 * (shares[0] + shares[1]):.0f} % on the nodule and its 2 mm rim; by chance 10 %)")


def test_a_nodule_that_fills_the_plane_has_no_place_beside_it(made):
    zones = {name: {"raises": 0.5, "lowers": 0.5, "area": area} for name, area in (("inside", 0.7), ("rim", 0.25))}
    zones["outside"] = {"raises": 0.0, "lowers": 0.0, "area": 0.05}
    places = {"around": "outline", "rim_mm": 2.0, "told_apart": True, "zones": zones, "raises_peak": ["left"]}
    assert where_words(places, "raises") == (
        "but no place stands out: the nodule and its 2 mm rim are 95 % of the picture"
    )


def cohort(n: int = 60) -> pd.DataFrame:
    """Malignancy rises with the diameter, falls with the margin, and has nothing to do with the rest."""
    rng = np.random.default_rng(0)
    high = np.linspace(0.01, 0.99, n)
    table = {name: rng.normal(3, 0.5, n) for name in BIOMARKERS if name != "calcification"}
    table |= {"diameter": 4 + 20 * high, "margin": 5 - 3 * high, "p_calcified": rng.uniform(0, 0.2, n)}
    ids = [f"LIDC-IDRI-{place:04d}-s1-n0" for place in range(1, n + 1)]
    return pd.DataFrame({"nodule_id": ids, "malignancy_probability": high, "malignancy_logit": 0.0, **table})


def test_associations_are_rank_correlations_over_a_cohort_or_the_models_record():
    table = cohort()
    found = associations(table)
    assert found["diameter"].rho == 1.0
    assert found["margin"].rho == -1.0
    expected = table[["malignancy_probability", "texture"]].corr("spearman").iloc[0, 1]
    assert found["texture"].rho == pytest.approx(expected, abs=1e-4)
    assert (found["diameter"].low, found["diameter"].high) == tuple(table["diameter"].quantile([0.25, 0.75]))
    assert found["calcification"].nodules == 60
    assert associations(table.head(19)) == {}
    assert associations(None) == {}
    info = {"associations": {"malignancy": {name: asdict(one) for name, one in found.items()}}}
    assert recorded_associations(info) == found
    assert recorded_associations({}) == {}
    with pytest.raises(ModelError, match="associations is damaged"):
        recorded_associations({"associations": {"malignancy": {"diameter": {"rho": 1}}}})


def test_the_reason_says_what_was_measured_and_no_more(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    nodule_id, table = store.nodule_ids[0], cohort()
    scores = np.full((8, 8), -0.1)
    scores[3, 4] = 4.0
    table = table.assign(nodule_id=[*table["nodule_id"][1:], nodule_id])  # the highest of the cohort
    table["baseline.diameter_only.malignancy_probability"] = 0.6
    nodule_report(store, nodule_id, tmp_path, pdf=False, predictions=table, maps={"cdam": [planted(made, scores)]})
    facts = json.loads((tmp_path / f"{nodule_id}.json").read_text(encoding="utf-8"))
    title, text = facts["summary"][1].values()
    assert title == "What drove the rating"
    assert "Not size alone: the readers’ diameter would give 0.60." in text
    assert "The map, untested here, does not show what made it high: 61 % of it lowers the rating." in text
    assert "more poorly defined and larger than three in four nodules, which goes with high ratings" in text
    facts["curves"]["malignancy"] = {"percent": [0, 20, 100], "mif": [2.0, 0.0, 0.0], "lif": [2.0, 2.0, 0.0]}
    passed = trust_in_map(facts)  # a test that is passed by a map of the other sign is no reason
    assert passed["text"] == "The map passed the tests it was put to, but does not show the reason"
    assert (passed["level"], passed["reasons"]) == ("limited", ["it passed the removal test"])
    again = {"models": 3, "agreement": 0.4, "expected": 0.7, "stable_share": 0.0, "note": ""}
    facts["maps"][0]["repeatability"] = {"malignancy": again}
    assert trust_in_map(facts)["text"] == "The map gives no reliable place"
    assert trust_in_map(facts)["reasons"][0] == "no patch is sure to keep its sign in another training"
    page = (tmp_path / f"{nodule_id}.html").read_text(encoding="utf-8")
    assert page.index("<b>What it looks like.</b>") < page.index("<b>What drove the rating.</b>")
    facts["trust"]["map"] = {"level": "low", "reasons": ["it is weak"], "text": "", "unmeasured": []}
    assert reason_words(facts).endswith("The map gives no reliable place: it is weak.")
    assert "The model reads it larger than the readers (23.8 against 10.8 mm), which goes with a higher" in text
    facts["outputs"][-1]["prediction"] = None  # no other size: what raises it is open
    facts["associations"] = {}
    assert "association" not in reason_words(facts)
    assert reason_words(facts).endswith("What raises it is not known.")
    facts["maps"] = []
    assert reason_words(facts).endswith("No map explains it. What raises it is not known.")
    prediction = facts["outputs"][0]["prediction"]
    prediction["diameter_only"] = prediction["value"]  # size is reason enough: nothing is left to be known
    assert reason_words(facts).endswith("No map explains it.")
    prediction["diameter_only"] = None
    assert reason_words(facts) == "No map explains it. What drove it is not known."
    prediction["own_diameter_only"] = 0.97  # no readers: what the model's own diameter gives is what can be told
    assert reason_words(facts).startswith("Its size is reason enough: the model’s own diameter alone would give 0.97.")
    facts["outputs"][0]["prediction"] = None
    assert reason_words(facts) == ""


def test_findings_that_go_with_the_rating_come_first_and_those_against_it_are_named_so(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    held = {"diameter": Association(0.8, 5.0, 9.0, 700), "margin": Association(-0.5, 2.0, 3.5, 700)}
    info = {"associations": {"malignancy": {name: asdict(one) for name, one in held.items()}}}
    table = made.predictions(store.nodule_ids).assign(malignancy_probability=0.9)
    most, low = "than three in four nodules, which goes with", "low ratings"
    for diameter, margin, wanted in (
        (12.0, 4.5, f"To the model it is larger {most} high ratings; but also sharper {most} {low} (association"),
        (7.0, 4.5, f"Its biomarkers point the other way: sharper {most} {low}."),
    ):
        given = table.assign(diameter=diameter, margin=margin)
        nodule_report(store, store.nodule_ids[0], tmp_path, pdf=False, predictions=given, model_info=info)
        facts = json.loads((tmp_path / f"{store.nodule_ids[0]}.json").read_text(encoding="utf-8"))
        assert wanted in reason_words(facts)


def test_what_the_words_deny_is_not_said_to_stand_out(made, tmp_path):
    """Among nodules without spiculation, 1.8 is more than most have, and "nearly no spiculation" all the same."""
    store = made.store(tmp_path / "store", n=1)
    held = {"malignancy": {"spiculation": asdict(Association(rho=0.6, low=1.1, high=1.5, nodules=700))}}
    predictions = made.predictions(store.nodule_ids)
    for value, told in ((1.8, False), (2.6, True)):
        nodule_report(
            store, store.nodule_ids[0], tmp_path, pdf=False, predictions=predictions.assign(spiculation=value),
            model_info={"associations": held},
        )  # fmt: skip
        text = (tmp_path / f"{store.nodule_ids[0]}.html").read_text(encoding="utf-8")
        assert ("more spiculated than three in four nodules" in text) == told
        assert ("nearly no spiculation" in text) != told
        assert ("No biomarker stands out." in text) != told


def test_the_measured_accuracy_is_told_from_cross_validations_alone(made, tmp_path):
    """Two trainings' mean is right where the surer one is; a split by nodule, or few nodules, measure nothing."""
    ids = [f"n{place}" for place in range(40)]
    table = pd.DataFrame({"nodule_id": ids, "patient_id": ids, "fold": 0, "label": [0.0, 1.0] * 20})
    first = table.assign(malignancy_probability=[0.1, 0.9] * 18 + [0.6, 0.4] * 2)
    second = table.assign(malignancy_probability=[0.2, 0.8] * 18 + [0.1, 0.9] + [0.6, 0.4])
    found = unseen_accuracy([first, second])
    assert (found.nodules, found.patients, found.right) == (40, 40, 0.95)
    assert 0.85 < found.low < 0.95 < found.high <= 1.0
    assert unseen_accuracy([first.assign(split_kind="paper")]) is None
    assert unseen_accuracy([first.head(19)]) is None
    assert unseen_accuracy([first.drop(columns="fold")]) is None
    assert unseen_accuracy([]) is None
    store = made.store(tmp_path / "store", n=1)
    told = "On 40 nodules of patients it had not seen, the model was on the readers’ side in 95\xa0% "
    for info in ({"unseen": asdict(found)}, {}):
        nodule_report(
            store, store.nodule_ids[0], tmp_path, pdf=False, predictions=made.predictions(store.nodule_ids),
            model_info=info,
        )  # fmt: skip
        text = (tmp_path / f"{store.nodule_ids[0]}.html").read_text(encoding="utf-8")
        assert (told in text) == bool(info)
    with pytest.raises(ModelError, match="unseen is damaged"):
        recorded_unseen({"unseen": {"right": 1.0}})


def test_what_the_models_own_diameter_alone_gives_is_told_beside_the_readers(made, tmp_path):
    """The line is logistic regression's, of the mean diameter of the runs; a page needs the record alone."""
    rng = np.random.default_rng(4)
    mm = rng.uniform(4, 24, 200)
    label = (mm + rng.normal(0, 3, 200) > 12).astype(float)
    table = pd.DataFrame({"nodule_id": range(200), "fold": 0, "label": label, "diameter": mm - 1})
    found = own_size([table, table.assign(diameter=mm + 1)])
    z, at = (mm - mm.mean()) / mm.std(), np.zeros(2)  # Newton's steps on log loss + slope² / 2, of the mean diameter
    for _ in range(50):
        p = 1 / (1 + np.exp(-(at[0] + at[1] * z)))
        grade, weigh = np.array([(p - label).sum(), ((p - label) * z).sum() + at[1]]), p * (1 - p)
        at -= np.linalg.solve([[weigh.sum(), (weigh * z).sum()], [(weigh * z).sum(), (weigh * z * z).sum() + 1]], grade)
    slope = at[1] / mm.std()
    assert (found.slope, found.intercept) == pytest.approx((slope, at[0] - slope * mm.mean()), abs=2e-3)
    assert found.probability(9.0) == pytest.approx(1 / (1 + np.exp(-(found.intercept + 9 * found.slope))))
    assert own_size([table.assign(split_kind="paper")]) is own_size([table.assign(label=1.0)]) is own_size([]) is None
    with pytest.raises(ModelError, match="own_size is damaged"):
        recorded_own_size({"own_size": {"slope": 1.0}})
    store = made.store(tmp_path / "store", n=1)
    predictions = made.predictions(store.nodule_ids).assign(malignancy_probability=0.27, diameter=9.3)
    predictions["baseline.diameter_only.malignancy_probability"] = 0.69
    for own, wanted in (
        (0.25, "The model reads it smaller (9.3 against 10.8 mm), which is reason enough: its diameter alone would"),
        (0.60, "Not the readers’ size: their diameter alone would give 0.69 (high; the model’s own 0.60). The model "),
    ):
        line = {"intercept": float(np.log(own / (1 - own))) - 9.3, "slope": 1.0, "nodules": 200}
        nodule_report(
            store, store.nodule_ids[0], tmp_path, pdf=False, predictions=predictions, model_info={"own_size": line}
        )
        facts = json.loads((tmp_path / f"{store.nodule_ids[0]}.json").read_text(encoding="utf-8"))
        assert facts["outputs"][0]["prediction"]["own_diameter_only"] == pytest.approx(own)
        assert wanted in reason_words(facts)
        assert "own_size" not in facts["model"]


def test_a_record_of_the_model_stands_in_for_the_cohort(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    held = Association(rho=0.8, low=5.0, high=9.0, nodules=700)
    info = {"associations": {"malignancy": {"diameter": asdict(held)}}}
    nodule_report(
        store, store.nodule_ids[0], tmp_path, pdf=False, predictions=made.predictions(store.nodule_ids), model_info=info
    )
    text = (tmp_path / f"{store.nodule_ids[0]}.html").read_text(encoding="utf-8")
    assert "larger than three in four nodules, which goes with high ratings" in text
    assert "rho 0.8" not in text  # not again among the model's record


def test_one_word_for_a_nodule_that_readers_rated(made, tmp_path):
    """Votes whose median is 3.5 have a mean that rounds to "indeterminate": the label's word alone is told."""
    store = made.store(tmp_path / "store", n=1)
    store.votes["malignancy"] = [2, 3, 4, 4]
    store.manifest["malignancy_median"] = 3.5
    nodule_report(store, store.nodule_ids[0], tmp_path, pdf=False, predictions=made.predictions(store.nodule_ids))
    text = (tmp_path / f"{store.nodule_ids[0]}.html").read_text(encoding="utf-8")
    assert text.count("median 3.5: rated high (above 3)") == 2
    assert "ndeterminate" not in text.replace("<dt>", "")
