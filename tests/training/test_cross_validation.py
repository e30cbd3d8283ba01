"""Out-of-fold predictions: every nodule once, by a model that never saw its patient, and every figure from that
file.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import subgroups

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import load_model
from lidc_xai.nodules._predict import predict
from lidc_xai.training import CrossValidation, FitOptions, cross_validate, evaluate_predictions
from lidc_xai.training.baselines import diameter_line, own_diameter
from lidc_xai.training.sweeping import Range, SweepOptions

Quick = Callable[..., FitOptions]
OPTIONS = {"epochs": 10, "optimiser": {"lr": 1e-3}, "augment": {"slices": 3}}


@pytest.fixture(scope="module")
def options() -> FitOptions:
    model = {"backbone": "vit_small64_p8", "outputs": ["malignancy", "texture", "diameter"], "size": 16}
    return FitOptions.model_validate({"model": model, "batch_size": 16, "device": "cpu", "logs": False, **OPTIONS})


@pytest.fixture(scope="module")
def run(toy_store: CropStore, options: FitOptions, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """Two folds with baselines and a final model."""
    out = tmp_path_factory.mktemp("cv") / "run"
    return cross_validate(toy_store, out, options=options, n_folds=2, resamples=300)


def test_every_nodule_once_by_a_model_that_never_saw_its_patient(run: CrossValidation, toy_store: CropStore) -> None:
    table = pd.read_csv(run.folder / "predictions.csv")
    assert table["nodule_id"].tolist() == sorted(toy_store.nodule_ids)
    for fold, rows in table.groupby("fold"):
        info = load_model(run.folder / f"fold-{fold}").training_info
        seen = {*info["train_patients"], *info["validation_patients"]}
        assert not seen & set(rows["patient_id"])
        assert not set(info["train_patients"]) & set(info["validation_patients"])
        assert (info["fold"], info["leaks"]) == (fold, False)
    assert np.allclose(table["texture_readers"], toy_store.manifest["texture"])


def test_folder_holds_the_run(run: CrossValidation) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.yaml", "predictions.csv", "metrics.json", "fold-0", "fold-1", "model"}
    final = load_model(run.folder / "model")
    assert final.training_info["fold"] is None
    assert not list(run.folder.rglob("*.ckpt"))


def test_what_its_own_diameter_gives_is_fitted_on_the_other_folds(run: CrossValidation) -> None:
    table = run.predictions
    given = own_diameter(table)
    for fold in (0, 1):
        here, other = table["fold"] == fold, table[table["fold"] != fold]
        intercept, slope = diameter_line(other["diameter"].to_numpy(), other["label"].to_numpy(float))
        assert np.allclose(given[here], 1 / (1 + np.exp(-intercept - slope * table.loc[here, "diameter"])))
    assert own_diameter(table.assign(label=1.0)).isna().all()


def test_learned_and_beside_it_the_baselines(run: CrossValidation) -> None:
    found = run.metrics
    auc = found["malignancy"]["all"]["auc"]
    assert auc["low"] > 0.5
    assert auc["low"] < auc["value"] < auc["high"]
    fitted = {"diameter_only", "mask_oracle", "ratings_without_diameter", "reader_ratings"}
    assert set(found["baselines"]) == {*fitted, "own_diameter"}
    assert {row["b"] for row in found["comparisons"]} == fitted  # its own size is no rival
    assert found["baselines"]["mask_oracle"]["malignancy"]["all"]["auc"]["value"] > 0.8
    assert "diameter" not in found["baselines"]["diameter_only"]["biomarkers"]
    assert found["biomarkers"]["diameter"]["spearman"]["value"] > 0.5
    strata = [found["malignancy"][name]["nodules"] for name in ("< 8 mm", "8–12 mm", "12–20 mm", "≥ 20 mm")]
    assert sum(strata) == 48
    assert sum(row["nodules"] for row in found["malignancy"]["reliability"]) == 48
    assert found["simulated"] is True
    assert found["leaks"] is False
    pairs = {(row["part"], row["metric"], row["b"]) for row in found["comparisons"]}
    assert ("all", "auc", "diameter_only") in pairs
    assert ("all", "auc_within_folds", "diameter_only") in pairs
    assert found["malignancy"]["all"]["auc_within_folds"]["value"] == pytest.approx(
        np.mean([row["auc"] for row in found["malignancy"]["per_fold"]])
    )
    assert ("8–12 mm", "accuracy", "reader_ratings") in pairs
    assert "cancer" not in json.dumps(found)


def test_evaluate_recomputes_everything_from_the_file_alone(run: CrossValidation, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.csv"
    copy.write_bytes((run.folder / "predictions.csv").read_bytes())
    again = evaluate_predictions(copy, tmp_path, resamples=300)
    assert (
        again
        == json.loads((run.folder / "metrics.json").read_text())
        == json.loads((tmp_path / "metrics.json").read_text())
    )


def test_standardised_error_is_on_the_training_parts_scale(run: CrossValidation) -> None:
    table = run.predictions
    error = ((table["texture"] - table["texture_readers"]) / table["texture_train_sd"]) ** 2
    assert np.isclose(run.metrics["biomarkers"]["texture"]["mse_z"]["value"], error.mean())
    both = [run.metrics["biomarkers"][name]["mse_z"]["value"] for name in ("texture", "diameter")]
    assert np.isclose(run.metrics["biomarkers"]["mean"]["mse_z"]["value"], np.mean(both))


def test_all_fold_models_predict_each_nodule_out_of_fold(run: CrossValidation, toy_store: CropStore) -> None:
    table = predict(run.folder, toy_store).merge(run.predictions, on="nodule_id", suffixes=("", "_cv"))
    assert table["out_of_fold"].all()
    assert (table["n_models"] == 1).all()
    assert np.allclose(table["malignancy_probability"], table["malignancy_probability_cv"], atol=1e-6)


def test_shuffled_ratings_leave_nothing_to_learn(
    toy_store: CropStore, options: FitOptions, run: CrossValidation, tmp_path: Path
) -> None:
    control = cross_validate(
        toy_store, tmp_path / "run", options=options, n_folds=2, baselines=False, permute_labels=True, resamples=300
    )
    assert control.final is None
    folds = [table.set_index("nodule_id")["fold"] for table in (control.predictions, run.predictions)]
    common = folds[0].index.intersection(folds[1].index)
    assert len(common) > 0
    assert (folds[0][common] == folds[1][common]).all()
    own, random = run.metrics["malignancy"]["all"]["auc"], control.metrics["malignancy"]["all"]["auc"]
    assert random["low"] < 0.6
    assert own["value"] > random["high"]


def test_the_papers_split_says_that_it_leaks(toy_store: CropStore, options: FitOptions, tmp_path: Path) -> None:
    quick = options.model_copy(update={"epochs": 1})
    run = cross_validate(
        toy_store, tmp_path / "run", options=quick, n_folds=2, kind="paper", folds=[1], baselines=False, resamples=20
    )
    assert run.metrics["leaks"] is True
    assert set(run.predictions["fold"]) == {1}
    assert run.final is None
    assert load_model(tmp_path / "run" / "fold-1").training_info["leaks"] is True
    with pytest.raises(UsageError, match="apart from the test part"):
        cross_validate(toy_store, tmp_path / "b", options=quick, n_folds=2, kind="paper", search=SweepOptions())


def test_a_search_inside_each_fold(toy_store: CropStore, options: FitOptions, tmp_path: Path) -> None:
    quick = options.model_copy(update={"epochs": 1})
    search = SweepOptions(trials=2, space={"optimiser.lr": Range(low=1e-4, high=1e-2, log=True)})
    run = cross_validate(
        toy_store, tmp_path / "run", options=quick, n_folds=2, folds=[0], search=search, baselines=False, resamples=20
    )
    best = pd.read_csv(run.folder / "fold-0" / "sweep" / "sweep.csv")
    used = load_model(run.folder / "fold-0").training_info["options"]["optimiser"]["lr"]
    assert used == best.loc[best["value"].idxmin(), "params_optimiser.lr"]


def test_files_that_are_no_predictions(tmp_path: Path, run: CrossValidation) -> None:
    with pytest.raises(UsageError, match="no such file"):
        evaluate_predictions(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no column 'nodule_id'"):
        evaluate_predictions(tmp_path / "other.csv")
    with pytest.raises(DataError, match="has no row"):
        evaluate_predictions(run.predictions.iloc[:0])


def test_one_class_only_gives_notes_instead_of_numbers(run: CrossValidation) -> None:
    found = evaluate_predictions(run.predictions.assign(label=1.0), resamples=50)
    assert found["malignancy"]["all"]["auc"]["value"] is None
    assert found["malignancy"]["all"]["sensitivity"]["value"] is not None


def test_models_carry_the_intervals_that_the_table_shows(make_store, quick, tmp_path) -> None:
    """Pooled calibration and intervals of the other folds: in predictions.csv, and the same from the saved models."""
    from lidc_xai.nodules import predict

    store = make_store(tmp_path / "store", patients=36, seed=4)
    options = quick(epochs=1, outputs=["malignancy", "texture", "diameter"])
    run = cross_validate(store, tmp_path / "run", options=options, n_folds=3, baselines=False, resamples=50)
    table = run.predictions.set_index("nodule_id")
    again = predict(tmp_path / "run", store).set_index("nodule_id").loc[table.index]
    for column in ("malignancy_probability", "texture_low", "texture_high", "diameter_low", "diameter_high"):
        np.testing.assert_allclose(again[column], table[column], atol=2e-4)
    assert again["out_of_fold"].all()
    assert again["malignancy_set"].tolist() == table["malignancy_set"].tolist()
    assert (table["texture_low"] <= table["texture_high"]).all()
    assert run.final is not None
    own = predict(tmp_path / "run" / "model", [store.load(store.nodule_ids[0])]).iloc[0]
    assert own["diameter_low"] <= own["diameter"] <= own["diameter_high"]
    assert run.final.model.training_info["intervals"]["coverage"]["texture"] == pytest.approx(
        run.metrics["intervals"]["texture"]["all"]["coverage"]["value"]
    )
    resumed = cross_validate(store, tmp_path / "run", options=options, n_folds=3, baselines=False, resamples=50)
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)


def test_subgroups_and_wrong_nodules(
    run: CrossValidation, toy_store: CropStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(run.folder), "--store", str(toy_store.path), "--resamples", "50", "--out", str(tmp_path)]
    assert subgroups.main(arguments) == 0
    table = pd.read_csv(tmp_path / "subgroups.csv").set_index(["group", "part"])
    small = run.predictions[run.predictions["diameter_readers"] < 8]
    row = table.loc["readers' diameter", "< 8 mm"]
    assert (row["nodules"], row["positives"]) == (len(small), small["label"].sum())
    right = (small["malignancy_probability"] >= 0.5) == (small["label"] > 0.5)
    assert row["ACC"] == pytest.approx(right.mean())
    missed = pd.read_csv(tmp_path / "wrong.csv")
    both = (run.predictions["malignancy_probability"] >= 0.5) == (run.predictions["label"] > 0.5)
    assert len(missed) == (~both).sum()
    assert missed["off_by"].is_monotonic_decreasing
    assert "| readers' diameter: < 8 mm |" in capsys.readouterr().out
