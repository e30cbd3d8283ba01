"""A cross-validated run in a report: every nodule by the fold that never saw its patient."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lidc_xai.commands.explain import ExplainConfig, explain
from lidc_xai.commands.report import ReportConfig, _wanted, report
from lidc_xai.errors import UsageError
from lidc_xai.evaluation.metrics._fidelity import fidelity
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_model, save_model
from lidc_xai.nodules._predict import load_models, predict
from lidc_xai.nodules.explained import explain_out_of_fold, explaining_models, with_baselines, with_spread
from lidc_xai.nodules.maps import explain_nodules, load_maps, nodule_images
from lidc_xai.run import Run

PATIENTS = ["LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003"]


@pytest.fixture(scope="module")
def run(study: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds: the first knows patients 2 and 3, the second 1 and 3, so that nobody can explain 3."""
    folder = tmp_path_factory.mktemp("run")
    for fold, known in enumerate([PATIENTS[1:], [PATIENTS[0], PATIENTS[2]]]):
        model = build_model("vit_small64_p8", ["malignancy", "texture"], size=16, seed=fold)
        model.target_scaling["texture"] = (3.0, 1.0)
        model.training_info = {"train_patients": known, "fold": fold, "seed": 7}
        save_model(model, folder / f"fold-{fold}" / "model")
    table = predict(folder, study.store, nodule_ids=study.ids[:2])
    table = table[["nodule_id", "patient_id", "malignancy_probability", "texture"]].assign(fold=[0, 1])
    table["split_kind"], table["label"], table["n_readers"], table["simulated"] = "patient", [0, 1], 4, True
    table["baseline.diameter_only.malignancy_probability"] = [0.25, 0.75]
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


def test_each_nodule_is_explained_by_a_model_that_never_saw_its_patient(
    run: Path, study: SimpleNamespace, tmp_path: Path
) -> None:
    models = load_models(run)
    assert [explaining_models(models, patient) for patient in PATIENTS] == [[0], [1], []]
    found = explain_out_of_fold(models, study.store, tmp_path, study.ids, ["cdam", "attention"], curves=["malignancy"])
    assert list(found.maps) == ["cdam", "attention", "cdam@random_weights"]
    assert list(found.maps["cdam"]) == study.ids[:2]
    assert [row.nodule_id for row in found.skipped] == study.ids[2:]
    assert "trained or chosen on this patient" in found.skipped[0].reason
    for place, nodule_id in enumerate(study.ids[:2]):
        single = explain_out_of_fold([models[place]], study.store, tmp_path / "one" / str(place), [nodule_id], ["cdam"])
        assert np.array_equal(found.maps["cdam"][nodule_id].relevance, single.maps["cdam"][nodule_id].relevance)
    assert found.maps["cdam"][study.ids[0]].repeatability is None  # one fold is left: nobody knows
    assert found.maps["cdam@random_weights"][study.ids[0]].method == "cdam@random_weights"


def test_the_verb_explains_a_run_out_of_fold(run: Path, study: SimpleNamespace, tmp_path: Path) -> None:
    log = Run("explain", [], {})
    explain(ExplainConfig(store=study.store.path, model=str(run), out=tmp_path, format=["nifti"]), log)
    for fold, nodule_id in enumerate(study.ids[:2]):
        model = load_models(run)[fold]
        [alone] = explain_nodules(model, [study.store.load(nodule_id)])
        found = load_maps(tmp_path / f"fold-{fold}" / "maps", nodule_id, "cdam")
        assert np.array_equal(found.relevance, alone["cdam"].relevance)
        assert (tmp_path / "nifti" / nodule_id / "cdam_malignancy.nii.gz").exists()
    assert [row.nodule_id for row in log.skipped] == study.ids[2:]
    assert pd.read_csv(tmp_path / "predictions.csv")["out_of_fold"].tolist() == [True, True, False]
    with pytest.raises(UsageError, match="names no method"):
        explain(ExplainConfig(store=study.store.path, model=str(run), out=tmp_path, method=[""]), log)


def test_deletion_curves_are_those_of_fidelity(run: Path, study: SimpleNamespace, tmp_path: Path) -> None:
    import torch

    model, nodule_id = load_models(run)[0], study.ids[0]
    found = explain_out_of_fold(
        [model], study.store, tmp_path, [nodule_id], ["cdam"], controls=False, curves=["texture"]
    )
    curve, maps = found.curves[nodule_id]["texture"], found.maps["cdam"][nodule_id]
    assert curve["percent"][::5] == [0, 50, 100]
    crop = study.store.load(nodule_id)
    images = nodule_images(model, crop)
    with torch.no_grad():
        assert curve["mif"][0] == curve["lif"][0] == pytest.approx(float(model(images)[:, 1].mean()), abs=1e-5)
    planes = [crop.consensus[16], crop.consensus[:, 16], crop.consensus[:, :, 16]]
    masks = torch.from_numpy(np.stack(planes))
    lung = torch.from_numpy(np.stack([crop.ct[16], crop.ct[:, 16], crop.ct[:, :, 16]]) < -500)
    lung &= ~torch.from_numpy(np.stack([mask.any(0) for mask in (
        crop.reader_masks[:, 16], crop.reader_masks[:, :, 16], crop.reader_masks[:, :, :, 16])]))  # fmt: skip
    again = fidelity(
        model, images, torch.from_numpy(maps.relevance[:, 1]), "texture", points=11, replacement="lung", masks=masks,
        parenchyma=lung,
    )  # fmt: skip
    assert np.allclose(curve["mif"], again.mif.mean(0), atol=1e-5)
    assert curve["removed"] == pytest.approx(float(again.at_stake.mean()), abs=1e-5)


def test_the_verb_reports_a_run_out_of_fold(
    run: Path, study: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lidc_xai.training.evaluate_predictions", lambda *_, **__: {}, raising=False)
    config = ReportConfig(
        store=study.store.path, model=str(run), predictions=run / "predictions.csv", out=tmp_path, pdf=False,
        device="cpu", nodule=study.ids,
    )  # fmt: skip
    done = Run("report", [], {})
    report(config, done)
    assert [row.nodule_id for row in done.skipped] == study.ids[2:]
    for place, nodule_id in enumerate(study.ids[:2]):
        facts = json.loads((tmp_path / "nodules" / f"{nodule_id}.json").read_text())
        assert facts["independence"]["status"] == "independent"
        assert f"fold {place}" in facts["independence"]["text"]
        malignancy = facts["outputs"][0]["prediction"]
        assert malignancy["diameter_only"] == [0.25, 0.75][place]
        assert malignancy["low"] is None  # what single folds and planes give is no interval
        assert malignancy["least"] <= malignancy["value"] <= malignancy["greatest"]
        assert facts["maps"][0]["repeatability"] == {}
        text = (tmp_path / "nodules" / f"{nodule_id}.html").read_text()
        assert f"{malignancy['diameter_only']:.2f}" in facts["summary"][1]["text"]
        for phrase in ("again is unknown", "Deletion curve of malignancy", "random weights"):
            assert phrase in text, phrase
    assert _wanted(config.model_copy(update={"nodule": []}), study.store) == study.ids[:2]  # those of the table
    last = json.loads((tmp_path / "nodules" / f"{study.ids[2]}.json").read_text())
    assert last["maps"] == []
    assert any(text.startswith("Maps:") for text in last["missing"])


def test_columns_of_a_run_are_joined_where_they_belong(run: Path, study: SimpleNamespace, tmp_path: Path) -> None:
    store: CropStore = study.store
    joined = with_baselines(predict(run, store), run).set_index("nodule_id")
    column = joined["baseline.diameter_only.malignancy_probability"]
    assert column[study.ids[0]] == 0.25
    assert np.isnan(column[study.ids[2]])
    assert with_baselines(joined, tmp_path) is joined
    table = pd.read_csv(run / "predictions.csv")
    wider = with_spread(table, predict(run, store))
    assert {"malignancy_probability_least", "texture_models_disagree_by"} <= set(wider)
    other = predict(load_models(run)[0], store).assign(malignancy_probability=0.123)
    assert with_spread(table, other) is table  # of other models: not mixed


@pytest.fixture(scope="module")
def seeds(study: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three single models; the last knows patient 1."""
    folders = []
    for seed in range(3):
        model = build_model("vit_nodule_p8", ["malignancy", "texture"], size=16, seed=10 + seed)
        model.training_info = {"train_patients": [PATIENTS[0]] if seed == 2 else ["LIDC-IDRI-0999"]}
        folders.append(save_model(model, tmp_path_factory.mktemp("seeds") / str(seed)))
    return folders


def test_several_models_give_a_mean_map_with_its_error_bar(
    seeds: list[Path], study: SimpleNamespace, tmp_path: Path
) -> None:
    log = Run("explain", [], {})
    several = ",".join(map(str, seeds))
    explain(ExplainConfig(store=study.store.path, model=several, out=tmp_path, format=["nifti"]), log)
    rows = json.loads((tmp_path / "repeatability.json").read_text())
    counts = {row["nodule_id"]: row["models"] for row in rows if row["output"] == "texture"}
    assert counts == dict(zip(study.ids, [2, 3, 3], strict=True))
    members = [load_models(folder)[0] for folder in seeds]
    for count, nodule_id in zip([2, 3, 3], study.ids, strict=True):
        alone = [next(explain_nodules(model, [study.store.load(nodule_id)]))["cdam"] for model in members[:count]]
        maps = load_maps(tmp_path / "maps", nodule_id, "cdam")
        assert np.allclose(maps.relevance, np.mean([one.relevance for one in alone], axis=0), rtol=1e-4, atol=1e-7)
        assert maps.repeatability is not None
        assert len(maps.repeatability.models) == count
        assert "5 nodules of other patients" in maps.repeatability.note or count == 2
        assert (tmp_path / "nifti" / nodule_id / "cdam_texture_standard_error.nii.gz").exists()
        described = json.loads((tmp_path / "nifti" / nodule_id / "maps.json").read_text())["maps"]
        assert described["cdam_texture"]["repeatability"]["models"] == count
    pages = ReportConfig(
        store=study.store.path, model=several, out=tmp_path / "report", maps=tmp_path, pdf=False, controls=False,
        method=["cdam"], curves=[], nodule=[study.ids[1]], device="cpu",
    )  # fmt: skip
    report(pages, Run("report", [], {}))
    text = (tmp_path / "report" / "nodules" / f"{study.ids[1]}.html").read_text()
    assert "The map is the mean of 3 trainings that never saw this patient" in text
    assert "ther trainings would draw" in text
    assert "of the map again (expected rank correlation" in text


def test_a_copy_is_not_another_training(seeds: list[Path], study: SimpleNamespace, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in seeds[0].iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    for model in (f"{seeds[0]},{seeds[0]}", f"{seeds[0]},{seeds[1]},{copied}"):
        with pytest.raises(UsageError, match="is not another training"):
            explain(ExplainConfig(store=study.store.path, model=model, out=tmp_path / "x"), Run("explain", [], {}))
    with pytest.raises(UsageError, match="different outputs"):
        explain(
            ExplainConfig(store=study.store.path, model=f"{seeds[0]},lidc-small", out=tmp_path / "x"),
            Run("explain", [], {}),
        )
