"""What pages say must be true of this nodule, this model and this run: each sentence that once was not has a test."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

import lidc_xai
from lidc_xai.errors import ModelError
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.models import build_model
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.nodules.explained import shared_info
from lidc_xai.nodules.record import recorded_no_nodule
from lidc_xai.nodules.strength import Anchor, recorded_anchors
from lidc_xai.ratings import BIOMARKERS, SCALES
from lidc_xai.reporting import nodule_report, study_report
from lidc_xai.reporting.glossary import WORDS
from lidc_xai.reporting.nodule.charts import deletion_caption
from lidc_xai.reporting.nodule.drawing import largest_indices
from lidc_xai.reporting.nodule.flags import quality_flags
from lidc_xai.reporting.nodule.words import reads_words, removal_words, trust_in_rating


def with_spaces(path):
    """A page's text with ordinary spaces."""
    return path.read_text(encoding="utf-8").replace("\xa0", " ")


def written(store, out, **parts):
    """A page's text and its facts."""
    nodule_id = store.nodule_ids[0]
    nodule_report(store, nodule_id, out, pdf=False, **parts)
    text = with_spaces(out / f"{nodule_id}.html")
    return text, json.loads((out / f"{nodule_id}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("codes", "share", "tally"),
    [([6, 6, 6, 6], 0.0, "4 × absent"), ([3, 3, 6, 3], 0.75, "3 × solid, 1 × absent")],
)
def test_calcification_is_a_share_and_votes_never_a_mean_of_codes(made, tmp_path, codes, share, tally):
    store = made.store(tmp_path / "store", n=1)
    store.votes["calcification"] = codes
    predictions = made.predictions(store.nodule_ids).assign(calcification=5.2, calcification_words="central")
    text, facts = written(store, tmp_path, predictions=predictions)
    output = next(one for one in facts["outputs"] if one["name"] == "calcification")
    assert output["readers"]["mean"] == share
    assert output["readers"]["tally"] == tally
    assert output["prediction"] is None  # a mean code is no quantity
    assert tally in text
    for word in ("non-central", "central"):
        assert word not in text, word
    assert "calcification not measured" in text
    with_p = predictions.assign(p_calcified=0.07)
    text, facts = written(store, tmp_path, predictions=with_p)
    output = next(one for one in facts["outputs"] if one["name"] == "calcification")
    assert output["prediction"]["value"] == 0.07
    assert output["prediction"]["words"] == ""
    assert "any calcification 7 % likely" in text


def test_disagreement_is_no_interval(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    predictions = made.predictions(store.nodule_ids)
    text, facts = written(store, tmp_path, predictions=predictions)
    margin = next(one for one in facts["outputs"] if one["name"] == "margin")["prediction"]
    assert (margin["low"], margin["high"], margin["disagree_by"]) == (None, None, 0.4)
    assert "interval not measured" in text
    assert "Models disagree by" in text
    assert "± spread" not in text
    measured = predictions.assign(margin_low=1.25, margin_high=4.75, malignancy_set="low,high")
    info = {"intervals": {"coverage": dict.fromkeys(BIOMARKERS, 0.91)}}
    text, facts = written(store, tmp_path, predictions=measured, model_info=info)
    margin = next(one for one in facts["outputs"] if one["name"] == "margin")["prediction"]
    assert (margin["low"], margin["high"], margin["coverage"]) == (1.25, 4.75, 0.91)
    assert "1.2 to 4.8" in text
    assert "91 to 91 % of nodules" in text
    assert "at 90 % confidence: low or high" in text
    assert facts["trust"]["rating"]["level"] == "limited"
    assert "low and high are both possible" in facts["trust"]["rating"]["reasons"]


def test_a_set_that_was_not_measured_is_not_told(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    predictions = made.predictions(store.nodule_ids).assign(malignancy_probability=0.6)
    text, facts = written(store, tmp_path, predictions=predictions)
    assert "the probability is far from 0 and 1" in facts["trust"]["rating"]["reasons"]
    assert "both possible" not in text


def test_a_rating_against_the_readers_own_is_read_with_care(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    _, facts = written(store, tmp_path, predictions=made.predictions(store.nodule_ids))
    for median, probability, told in (
        (4, 0.05, "high (median 4)"),
        (2, 0.95, "low (median 2)"),
        (3, 0.95, ""),
        (4, 0.95, ""),
    ):
        facts["malignancy_median"], facts["outputs"][0]["prediction"]["value"] = median, probability
        reasons = [reason for reason in trust_in_rating(facts)["reasons"] if "the readers rated" in reason]
        assert reasons == ([f"the readers rated this nodule {told}"] if told else [])


def test_the_probability_is_not_drawn_on_the_readers_axis(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    text, _ = written(store, tmp_path, predictions=made.predictions(store.nodule_ids))
    row = text.split('<tr data-output="malignancy">')[1].split("</tr>")[0]
    strips = row.split('<svg class="strip"')[1:]
    assert len(strips) == 2
    assert "probability 0.20" in strips[0]
    assert strips[0].count("<circle") == 0  # no vote beside the probability
    assert strips[1].count("<circle") == 4
    assert "Z" not in strips[1]  # and no model's diamond among the votes


@pytest.mark.parametrize(
    ("views", "slices", "wanted"),
    [
        (("axial",), 1, "the middle axial plane of the crop"),
        (("axial",), 3, "the 3 axial planes about the middle of the crop"),
        (("axial", "coronal", "sagittal"), 1, "the middle axial, coronal and sagittal planes of the crop"),
    ],
)
def test_what_the_model_read_comes_from_the_model(made, tmp_path, views, slices, wanted):
    store = made.store(tmp_path / "store", n=1)
    model = build_model("vit_nodule_p8", ["malignancy"], size=32, preprocess=Preprocess(views=views, slices=slices))
    info = shared_info([model])
    assert reads_words(info) == wanted
    result = study_report(store, tmp_path, made.predictions(store.nodule_ids), model_info=info, pdf=False)
    assert f"The model read {wanted}." in result.index.read_text(encoding="utf-8")
    if len(views) == 1:
        assert "coronal and sagittal" not in result.index.read_text(encoding="utf-8").split("How to read this")[1]


def test_print_shows_only_planes_that_the_model_read(made, tmp_path, monkeypatch):
    printed = {}
    monkeypatch.setattr(
        "lidc_xai.reporting.nodule.page.write_pdf",
        lambda text, path, paper, pictures, **_: printed.update(text=text, names=set(pictures)) or path,
    )
    store = made.store(tmp_path / "store", n=1)
    nodule_id = store.nodule_ids[0]
    model = build_model("vit_nodule_p8", ["malignancy"], size=32, preprocess=Preprocess(views=("axial",)))
    maps = made.maps(nodule_id)
    for info, wanted in ((shared_info([model]), {"input-axial"}), ({}, set())):
        nodule_report(store, nodule_id, tmp_path, maps={"cdam": [maps]}, model_info=info)
        assert {name for name in printed["names"] if name.startswith("input")} == wanted
        assert ("What the model was shown" in printed["text"]) == bool(wanted)


def own_store(made, path, patient: str, mask: bool = True) -> CropStore:
    """One crop of somebody's own CT, as prepare --mask or --points writes it."""
    writer = StoreWriter(path, size_mm=32, spacing_mm=1, rule={"source": "mask" if mask else "points"})
    crop = made.crop("scan-nodule-1", readers=1 if mask else 0)
    crop.padded = True
    crop.issues.append("12.5% of the box lies outside the scan: padded with -1000 HU")
    writer.write(crop, {"patient_id": patient, "slice_thickness_mm": 1.0, "scanner": "Somebody"}, [])
    return writer.finish()


@pytest.mark.parametrize("mask", [True, False])
def test_own_ct_has_no_word_of_lidc_and_no_identifier(made, tmp_path, mask):
    patient = "DOE^JANE 19500101"
    store = own_store(made, tmp_path / "store", patient, mask)
    predictions = made.predictions(store.nodule_ids).assign(diameter=34.0, p_calcified=0.1)
    info = {"train_patients": ["LIDC-IDRI-0001"], "reads": {"views": ["axial"], "slices": 1, "window": [-1000, 400]}}
    maps = {"cdam": [made.maps(store.nodule_ids[0])]}
    result = study_report(store, tmp_path / "out", predictions, maps, info, pdf=False)
    for path in result.paths:
        text = with_spaces(path)
        for word in (
            "LIDC-IDRI",
            "LIDC",
            patient,
            "1.2.3",
            "<NA>",
            "&lt;NA&gt;",
            "readers said",
            "of 4 readers",
            ">nan",
        ):
            assert word not in text, (path.name, word)
    text = with_spaces(result.paths[1])
    assert "34 mm in a picture of 32 mm" in text
    assert "12.5% of the cube cut out about the nodule lies outside the scan" in text
    assert ("outline of the given mask" in text) == mask
    kept = study_report(store, tmp_path / "kept", predictions, keep_ids=True, pdf=False)
    assert patient in kept.paths[1].read_text(encoding="utf-8")


SHIPPED = Path(lidc_xai.__file__).parent / "models" / "shipped"
NO_NODULE = {"crops": 200, "patients": 90, "clear": 0.67, "low": 0.59, "high": 0.74}


def test_a_crop_that_no_reader_marked_may_hold_no_nodule(made, tmp_path):
    store = own_store(made, tmp_path / "store", "P", False)
    predictions = made.predictions(store.nodule_ids)
    result = study_report(store, tmp_path / "out", predictions, None, {"no_nodule": NO_NODULE}, pdf=False)
    said = "of 200 crops without one (lung, vessel, pleura) it gave 67 % [59, 74] a clear verdict"
    index, page = (with_spaces(path) for path in result.paths[:2])
    assert said in index
    assert "at a point that no reader marked" in index
    assert page.index("Is it a nodule?") < page.index(said) < page.index("Model: malignancy")  # the first screen
    assert "no nodule</th>" not in page  # not again among the model's record
    unmeasured = study_report(store, tmp_path / "bare", predictions, pdf=False).paths[1].read_text(encoding="utf-8")
    assert "what it says of crops without one was not measured" in unmeasured
    marked = made.store(tmp_path / "marked", n=1)
    predictions, info = made.predictions(marked.nodule_ids), {"no_nodule": NO_NODULE}
    text, facts = written(marked, tmp_path, predictions=predictions, model_info=info)
    assert facts["no_nodule"] == ""
    assert "Is it a nodule?" not in text
    with pytest.raises(ModelError, match="no_nodule is damaged"):
        recorded_no_nodule({"no_nodule": {"crops": 200}})


@pytest.mark.parametrize("name", ["lidc-small", "lidc-dinov2/member-1", "lidc-dinov2/member-5"])
def test_shipped_models_say_how_strong_a_map_of_theirs_is(name):
    info = json.loads((SHIPPED / name / "model.json").read_text(encoding="utf-8"))["training_info"]
    anchor = recorded_anchors(info)["cdam"]["malignancy"]
    assert anchor.weak < anchor.strong < anchor.full
    assert anchor.nodules >= 300
    if name == "lidc-small":
        assert recorded_no_nodule(info).crops == 200


def test_one_model_disagrees_with_nobody(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    table = made.predictions(store.nodule_ids).assign(
        malignancy_probability_models_disagree_by=0.002,
        malignancy_probability_least=0.2,
        malignancy_probability_greatest=0.7,
    )
    for one in (table.assign(n_models=1), table.assign(fold=2)):
        text, facts = written(store, tmp_path, predictions=one)
        assert facts["models"] == 1
        assert all(output["prediction"]["disagree_by"] is None for output in facts["outputs"] if output["prediction"])
        assert "isagree by" not in text
        assert "planes and models" not in text
        assert "One model made these values" in text
        assert "one model; its single planes" in text
        assert "Its planes differ" in {flag["title"] for flag in facts["flags"]}
    text, facts = written(store, tmp_path, predictions=table.assign(n_models=5))
    assert facts["models"] == 5
    assert "models disagree by &lt;0.01" in text
    assert "Models disagree" in {flag["title"] for flag in facts["flags"]}


def test_a_rating_beyond_its_scale_is_shown_at_its_end(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    table = made.predictions(store.nodule_ids).assign(subtlety=5.3, texture=0.6)
    _, facts = written(store, tmp_path, predictions=table)
    shown = {output["name"]: output["prediction"]["value"] for output in facts["outputs"] if output["prediction"]}
    assert (shown["subtlety"], shown["texture"]) == (5.0, 1.0)


def test_means_of_several_maps_are_ranked_among_such_means_alone(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    maps, predictions = made.maps(store.nodule_ids[0]), made.predictions(store.nodule_ids)
    anchor = Anchor(full=1.0, weak=0.5, strong=0.7, nodules=100, models=5)
    text, facts = written(
        store, tmp_path, predictions=predictions, maps={"cdam": [maps]}, anchors={"cdam": {"malignancy": anchor}}
    )
    assert facts["maps"][0]["strength"]["malignancy"]["rank"] == ""
    assert facts["maps"][0]["limits"]["malignancy"] == 1.0
    assert "same colour, same strength on every page of this model" in text
    bare, _ = written(store, tmp_path, predictions=predictions, maps={"cdam": [maps]})
    assert "they do not compare with other pages" in bare


def test_colour_and_words_of_a_map_are_the_cohorts(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    maps = made.maps(store.nodule_ids[0])  # scores of about 0.02, largest about 0.05
    largest = float(np.abs(maps.relevance[:, 0]).max())
    anchor = {"malignancy": Anchor(full=20 * largest, weak=2 * largest, strong=5 * largest, nodules=100)}
    predictions = made.predictions(store.nodule_ids)
    _, plain = written(store, tmp_path, predictions=predictions, maps={"cdam": [maps]})
    text, facts = written(store, tmp_path, predictions=predictions, maps={"cdam": [maps]}, anchors={"cdam": anchor})
    assert plain["maps"][0]["limits"]["malignancy"] == pytest.approx(largest)
    assert facts["maps"][0]["limits"]["malignancy"] == pytest.approx(20 * largest)
    strength = facts["maps"][0]["strength"]["malignancy"]
    assert strength["rank"] == "weak"
    assert strength["positive"] == pytest.approx(maps.relevance[:, 0].clip(min=0).sum((1, 2)).mean(), rel=1e-5)
    assert strength["word"] == "strength"  # CDAM's scores do not add up to the output
    assert "The map gives no reliable place: it is weak, in the lowest quarter of nodules." in text
    assert "from the nodule" not in text  # no place is named for a map that is not to be relied on
    assert "would raise" not in text
    assert "95 % of the cohort’s maps" in text
    assert "it is weak, in the lowest quarter of nodules" in facts["trust"]["map"]["reasons"]


def test_a_map_is_held_against_the_area_of_the_outline(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    (nodule_id,), crop = store.nodule_ids, store.load(store.nodule_ids[0])
    maps = made.maps(nodule_id, grid=32)
    planes = [crop.consensus[16], crop.consensus[:, 16], crop.consensus[:, :, 16]]
    predictions, against = made.predictions([nodule_id]), "less of it lies on the nodule than by chance"
    for weight, wanted in ((2.0, False), (0.1, True)):
        relevance = np.ones_like(maps.relevance)
        for place, mask in enumerate(planes):
            relevance[place, :, mask] = weight
        item = type(maps)(**{**vars(maps), "relevance": relevance})
        text, facts = written(store, tmp_path, predictions=predictions, maps={"cdam": [item]})
        assert ("The map gives no reliable place: less of it lies on the nodule" in text) == wanted
        assert any(against in reason for reason in facts["trust"]["map"]["reasons"]) == wanted


@pytest.mark.parametrize(("views", "level"), [(("axial",), "detail"), (("axial", "coronal"), "warning")])
def test_padding_that_no_model_reads_is_no_warning(made, tmp_path, views, level):
    crop = made.crop("n")
    crop.padded, crop.padded_share = True, 0.5
    crop.ct[:8] = crop.ct[24:] = -1000
    crop.issues.append("50.0% of the box lies outside the scan: padded with -1000 HU")
    writer = StoreWriter(tmp_path / "store", size_mm=32, spacing_mm=1, rule="test")
    writer.write(crop, {"patient_id": "p", "n_readers": 4}, [])
    model = build_model("vit_nodule_p8", ["malignancy"], size=32, preprocess=Preprocess(views=views))
    parts = {"predictions": made.predictions(["n"]), "model_info": shared_info([model])}
    _, facts = written(writer.finish(), tmp_path, **parts)
    (flag,) = (flag for flag in facts["flags"] if flag["title"] == "Partly outside the scan")
    assert flag["level"] == level
    assert flag["text"].startswith("50.0% of the cube cut out about the nodule lies outside the scan")
    assert ("partly outside the scan" in facts["trust"]["rating"]["reasons"]) == (level == "warning")
    assert {"detail": "reads are whole", "warning": "25% of the planes that the model reads"}[level] in flag["text"]


def test_no_line_breaks_between_a_figure_and_its_unit(study, tmp_path):
    result = study_report(study.store, tmp_path, study.predictions, study.maps, pdf=False)
    for path in result.paths:
        if path.suffix == ".html":
            text = re.sub(r"<(script|style)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            assert re.findall(r"\d (?:%|mm|HU|SD|logit)\b|\d ±|± \d|n = \d", re.sub(r"<[^>]*>", "", text)) == []
            assert "\xa0" in text


def test_the_plane_of_the_largest_outline_is_shown(made, tmp_path):
    crop = made.crop("n")  # its ball lies 4, −3 and 2 mm off the centre
    areas = [crop.consensus[:, index].sum() for index in range(32)]
    assert areas[largest_indices(crop)["coronal"]] == max(areas)
    assert areas[16] < max(areas)
    store = made.store(tmp_path / "store", n=1)
    maps = made.maps(store.nodule_ids[0])
    text, facts = written(store, tmp_path, maps={"cdam": [maps]})
    index = largest_indices(store.load(store.nodule_ids[0]))["coronal"]
    assert f"y = {20 + index:.1f} mm" in text
    grazing = type(maps)(**{**vars(maps), "indices": (16, 8, 16)})
    _, facts = written(store, tmp_path, maps={"cdam": [grazing]})
    assert any("coronal" in flag["text"] for flag in facts["flags"] if flag["title"] == "A plane grazes the nodule")


def test_a_deletion_curve_is_told_as_it_is():
    falling = {"percent": [0, 50, 100], "mif": [2.0, 0.0, 0.0], "lif": [2.0, 2.0, 0.0], "removed": 2.0}
    assert deletion_caption(falling, "logit").startswith("falls by 2.00 logit when all is replaced")
    assert "is borne out" in deletion_caption(falling, "logit")
    rising = {"percent": [0, 50, 100], "mif": [-2.0, 0.0, 0.0], "lif": [-2.0, -2.0, 0.0], "removed": -2.0}
    assert deletion_caption(rising, "logit").startswith("rises by 2.00 logit")
    assert "is not borne out" in deletion_caption(rising, "logit")
    close = {"percent": [0, 20, 100], "mif": [1.35, -0.96, -0.8], "lif": [1.35, -0.91, -0.8], "removed": 2.15}
    assert "no further apart than those of a random map" in deletion_caption(close, "logit")
    assert removal_words(close) == (
        "Removal test not passed: what the map says raises the score matters no more than in a random map "
        "(gap 1 %; random maps: up to 25 %)"
    )
    assert removal_words(falling).startswith("Removal test passed: ")
    assert removal_words(falling).endswith("(gap 33 %; random maps: up to 25 %)")
    failed = {"percent": [0, 50, 100], "mif": [2.0, 2.0, 0.0], "lif": [2.0, 0.0, 0.0]}
    assert removal_words(failed).startswith("Removal test failed: ")
    assert "the score falls later if what the map says" in removal_words(failed)
    assert removal_words(None) == ""


def test_words_of_a_mean_are_for_ordered_scales_only(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    _, facts = written(store, tmp_path, predictions=made.predictions(store.nodule_ids))
    for output in facts["outputs"]:
        if output["prediction"] and output["prediction"]["words"]:
            assert output["prediction"]["words"] == SCALES[output["name"]].in_words(output["prediction"]["value"])
            assert output["name"] not in ("malignancy", "calcification", "diameter")


def test_a_prediction_that_fits_the_box_is_no_warning():
    assert quality_flags({"size_mm": 32.0, "n_readers": 4}, {}, {"diameter": 31.0}) == []
    (flag,) = quality_flags({"size_mm": 32.0, "n_readers": 4}, {}, {"diameter": 33.0})
    assert flag["title"] == "Predicted larger than the picture"


def test_words_are_one_page_that_every_page_links_to(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    result = study_report(store, tmp_path, made.predictions(store.nodule_ids), pdf=False)
    page = with_spaces(tmp_path / "glossary.html")
    assert tmp_path / "glossary.html" in result.paths
    for word, meaning in WORDS.items():
        assert f'<th scope="row">{escape(word)}</th><td>{escape(meaning)}</td>' in page
    assert 'href="glossary.html"' in result.index.read_text(encoding="utf-8")
    nodule = tmp_path / "nodules" / f"{store.nodule_ids[0]}.html"
    assert 'href="../glossary.html"' in nodule.read_text(encoding="utf-8")
    docs = Path(__file__).parents[2] / "docs" / "glossary.md"
    if docs.is_file():
        lines = [line for line in docs.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
        assert lines == [f"| {word} | {meaning} |" for word, meaning in WORDS.items()]
