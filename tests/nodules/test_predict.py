"""One row per nodule in clinical units, from stores and from crops without reader or patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lidc_xai.cli import app
from lidc_xai.csv_files import read_table
from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.models import NoduleModel, build_model, save_model
from lidc_xai.nodules._predict import patient_of, predict
from lidc_xai.nodules.maps import nodule_images


def crop(nodule_id: str, side: int = 16, seed: int = 0) -> NoduleCrop:
    """Noise in lung."""
    noise = np.random.default_rng(seed)
    return NoduleCrop(noise.normal(-600, 300, (side, side, side)).astype(np.float32), np.eye(4), nodule_id=nodule_id)


@pytest.fixture
def model() -> NoduleModel:
    made = build_model("vit_small64_p8", ["malignancy", "margin", "diameter"], size=16, seed=0)
    made.calibration["malignancy"] = (2.0, -0.5)
    made.target_scaling |= {"margin": (4.0, 0.8), "diameter": (10.0, 4.0)}
    made.training_info = {"train_patients": ["A", "B"], "validation_patients": ["C"]}
    return made


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    """Patients A, C and D with a nodule each."""
    writer = StoreWriter(tmp_path / "store", size_mm=16, spacing_mm=1.0, rule="test")
    for number, patient in enumerate("ACD"):
        writer.write(crop(f"{patient}-s1-n0", seed=number), {"patient_id": patient}, [])
    return writer.finish()


def test_values_are_the_models_own_in_clinical_units(model: NoduleModel) -> None:
    one = crop("X-s1-n0")
    with torch.no_grad():
        raw = model(nodule_images(model, one))  # what the maps explain
    row = predict(model, one).iloc[0]
    assert row["malignancy_logit"] == pytest.approx(float(raw[:, 0].mean()), abs=1e-5)
    assert row["malignancy_probability"] == pytest.approx(float(torch.sigmoid(2 * raw[:, 0].mean() - 0.5)), abs=1e-5)
    sides = torch.sigmoid(2 * raw[:, 0] - 0.5)
    assert row["malignancy_probability_least"] == pytest.approx(float(sides.min()), abs=1e-5)
    assert row["malignancy_probability_greatest"] == pytest.approx(float(sides.max()), abs=1e-5)
    diameters = 10 + 4 * raw[:, 2]
    assert row["diameter"] == pytest.approx(float(diameters.mean()), abs=1e-4)
    assert row["diameter_models_disagree_by"] == pytest.approx(float(diameters.std(correction=0)), abs=1e-4)
    assert row["diameter_words"] == f"{row['diameter']:.1f} mm"
    assert row["margin_words"] in ("medium margin", "near sharp", "sharp")


def test_ratings_stay_within_their_scale(model: NoduleModel) -> None:
    model.target_scaling |= {"margin": (99.0, 0.1), "diameter": (-50.0, 0.1)}
    row = predict(model, [crop("X")]).iloc[0]
    assert row["margin"] == 5
    assert row["margin_words"] == "sharp"
    assert row["diameter"] == 0


def test_out_of_fold_is_about_patients(model: NoduleModel, store: CropStore) -> None:
    table = predict(model, store).set_index("patient_id")
    assert table["out_of_fold"].to_dict() == {"A": False, "C": False, "D": True}
    assert predict(model, store.path, nodule_ids=["D-s1-n0"])["nodule_id"].tolist() == ["D-s1-n0"]
    by_crop = predict(model, [store.load("A-s1-n0"), store.load("D-s1-n0")])
    assert by_crop["out_of_fold"].tolist() == [False, True]
    assert np.allclose(by_crop["margin"], table.loc[["A", "D"], "margin"])


def test_without_a_training_record_nothing_is_claimed(model: NoduleModel, store: CropStore) -> None:
    unknown = build_model("vit_small64_p8", model.output_names, size=16, seed=3)
    table = predict(unknown, store)
    assert table["out_of_fold"].isna().all()
    assert predict(unknown, store, nodule_ids=["D-s1-n0"]).to_csv(index=False).splitlines()[1].endswith(",")
    both = predict([model, unknown], store).set_index("patient_id")
    assert both["out_of_fold"].to_dict() == {"A": False, "C": False, "D": True}
    assert both["n_models"].to_dict() == {"A": 2, "C": 2, "D": 1}  # only the one that is known not to have seen D


def test_fold_models_are_used_where_they_did_not_see_the_patient(
    model: NoduleModel, store: CropStore, tmp_path: Path
) -> None:
    other = build_model("vit_small64_p8", model.output_names, size=16, seed=9)
    other.training_info = {"train_patients": ["C"], "validation_patients": ["D"]}
    for fold, each in enumerate([model, other]):
        save_model(each, tmp_path / "run" / f"fold-{fold}" / "model")
    table = predict(tmp_path / "run", store).set_index("patient_id")
    first, second = (predict(each, store).set_index("patient_id") for each in (model, other))
    assert table["n_models"].to_dict() == {"A": 1, "C": 2, "D": 1}
    assert table["out_of_fold"].to_dict() == {"A": True, "C": False, "D": True}
    assert table.loc["A", "malignancy_logit"] == pytest.approx(second.loc["A", "malignancy_logit"])
    assert table.loc["D", "malignancy_logit"] == pytest.approx(first.loc["D", "malignancy_logit"])
    assert abs(first.loc["A", "malignancy_logit"] - second.loc["A", "malignancy_logit"]) > 0.01
    mean = (first.loc["C", "malignancy_logit"] + second.loc["C", "malignancy_logit"]) / 2
    assert table.loc["C", "malignancy_logit"] == pytest.approx(mean)
    assert table.loc["C", "malignancy_probability_least"] <= table.loc["C", "malignancy_probability"]


def test_a_model_reads_only_the_nodules_that_it_is_used_for(model: NoduleModel, store: CropStore) -> None:
    other = build_model("vit_small64_p8", model.output_names, size=16, seed=9)
    other.training_info = {"train_patients": ["C"], "validation_patients": ["D"]}
    read: dict[str, int] = {"first": 0, "second": 0}

    def counting(name: str):  # type: ignore[no-untyped-def]
        def count(_module, inputs) -> None:  # type: ignore[no-untyped-def]
            read[name] += len(inputs[0])

        return count

    handles = [each.register_forward_pre_hook(counting(name)) for name, each in (("first", model), ("second", other))]
    predict(model, crop("X"))
    planes = read.pop("first")
    read["first"] = 0
    predict([model, other], store)
    for handle in handles:
        handle.remove()
    assert planes > 0
    assert read == {"first": 2 * planes, "second": 2 * planes}  # C and D, C and A


def test_crops_of_several_sizes_and_the_model_is_left_as_it_was(model: NoduleModel) -> None:
    model.train()
    table = predict(model, [crop("X", 16), crop("Y", 20), crop("Z", 16)])
    assert table["nodule_id"].tolist() == ["X", "Y", "Z"]
    assert model.training


def test_patients_are_read_from_ids() -> None:
    assert patient_of("LIDC-IDRI-0003-s1-n12") == "LIDC-IDRI-0003"
    assert patient_of("my-point") == "my-point"


def test_wrong_calls_are_one_line(model: NoduleModel, store: CropStore) -> None:
    with pytest.raises(DataError, match="no crop to predict"):
        predict(model, [])
    with pytest.raises(UsageError, match="has no nodule"):
        predict(model, store, nodule_ids=["absent"])
    with pytest.raises(UsageError, match="chooses from a store"):
        predict(model, [crop("X")], nodule_ids=["X"])
    with pytest.raises(UsageError, match="no such model folder"):
        predict("absent", store)
    with pytest.raises(UsageError, match="different outputs"):
        predict([model, build_model("vit_small64_p8", size=16)], store)
    flat = NoduleCrop(np.zeros((4, 16, 16), np.float32), np.eye(4), nodule_id="flat")
    with pytest.raises(DataError, match="wanted a cube"):
        predict(model, [flat])


def test_a_prediction_in_doubt_has_no_plain_words(model: NoduleModel, tmp_path: Path) -> None:
    """A nodule larger than the box, and planes that are half padding. What no model reads is no reason for doubt."""
    large, edge, short = crop("large"), crop("edge", seed=1), crop("short", seed=2)
    large.larger_than_box, large.issues = True, ["the mask reaches over 34.0 mm"]
    edge.padded, edge.padded_share = True, 0.5
    edge.ct[:, :, :8] = -1000
    short.padded, short.padded_share = True, 0.75
    short.ct[:6] = short.ct[10:] = -1000  # the scan ends above and below the planes that are read
    writer = StoreWriter(tmp_path / "s", size_mm=16, spacing_mm=1.0, rule="test")
    for one in (large, edge, short):
        writer.write(one, {"patient_id": "P"}, [])
    store = writer.finish()
    model.preprocess = replace(model.preprocess, views=("axial",))
    rows = predict(model, store).set_index("nodule_id")
    assert rows["flag"].to_dict() == {
        "large": "the nodule is larger than the box",
        "edge": "50% of the planes that are read lies outside the scan",
        "short": "",
    }
    for column in ("malignancy_words", "margin_words", "diameter_words"):
        assert rows[column]["large"].startswith("in doubt (the nodule is larger than the box): ")
        assert not rows[column]["short"].startswith("in doubt")
    assert rows["issues"]["large"] == "the mask reaches over 34.0 mm"
    model.target_scaling |= {"diameter": (34.0, 1e-6)}  # more than a box of 16 mm can show
    beyond = predict(model, store).set_index("nodule_id")
    told = "predicted larger than the box (34 mm in 16 mm)"
    assert (beyond["flag"]["short"], beyond["diameter_words"]["short"]) == (told, f"in doubt ({told}): 34.0 mm")
    assert beyond["flag"]["large"] == "the nodule is larger than the box"
    model.target_scaling |= {"diameter": (10.0, 4.0)}
    np.testing.assert_array_equal(rows["margin"], predict(model, [edge, large, short])["margin"])


@pytest.mark.parametrize(
    ("values", "words"),
    [(np.nan, "no numbers"), (np.inf, "no numbers"), (-1024.0, "is blank: -1024 HU throughout")],
)
def test_a_crop_that_nobody_could_read_is_refused(model: NoduleModel, values: float, words: str) -> None:
    one = crop("X")
    one.ct[:] = values
    with pytest.raises(DataError, match=words):
        predict(model, [one])


def test_a_model_of_nan_predicts_nothing(model: NoduleModel) -> None:
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="nodule X: the model's outputs are NaN"):
        predict(model, [crop("X")])


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_limit_takes_the_first_so_many(verb: str, model: NoduleModel, store: CropStore, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    given = [verb, "--store", str(store.path), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    for more, wanted in (
        (["--limit", "2"], store.nodule_ids[:2]),
        (["--limit", "1", "--nodule", f"{store.nodule_ids[2]},{store.nodule_ids[0]}"], [store.nodule_ids[2]]),
    ):
        done = CliRunner().invoke(app, [*given, *more, "--quiet"])
        assert done.exit_code == 0, done.output
        assert read_table(tmp_path / "out" / "predictions.csv", ("nodule_id",))["nodule_id"].tolist() == wanted
