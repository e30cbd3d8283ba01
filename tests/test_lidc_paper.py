"""The main job end to end: a tiny ViT on simulated crops, one backbone without its weights, and a second run."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import lidc_paper

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import StoreWriter
from lidc_xai.models import build_backbone
from lidc_xai.ratings import BIOMARKERS


def write_store(path: Path, patients: int = 20) -> Path:
    """Two simulated nodules of 16 mm per patient: bright large balls and faint small ones."""
    noise = np.random.default_rng(0)
    writer = StoreWriter(path, size_mm=16, spacing_mm=1.0, rule="simulated")
    axis = np.arange(16) - 7.5
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    for patient in range(patients):
        for label in (0, 1):
            radius = noise.uniform(2, 3) + 3 * label
            mask = distance <= radius
            ct = (np.where(mask, 0.0, -850.0) + noise.normal(0, 25, mask.shape)).astype(np.float32)
            crop = NoduleCrop(ct, np.eye(4), np.stack([mask] * 3), mask, [], f"SIM-{patient:04d}-s1-n{label}", "1.2")
            row = {"patient_id": f"SIM-{patient:04d}", "label": label, "n_readers": 3, "simulated": True}
            for name in ("malignancy", *BIOMARKERS):
                row |= {name: float(noise.uniform(1, 5)), f"{name}_sd": 0.5}
            writer.write(crop, row | {"malignancy": 1.0 + 4 * label, "diameter": 2 * radius, "p_calcified": 0.0}, [])
    writer.finish()
    return path


def test_the_main_job(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(build_backbone("vit_small64_p8", size=16).state_dict(), weights / "vit_small64_p8.safetensors")
    out = tmp_path / "out"
    given = ["--store", str(store), "--weights", str(weights), "--out", str(out)]
    given += ["--backbones", "vit_small64_p8,dino_vits8"]
    given += ["--size", "16", "--epochs", "1", "--folds", "2", "--shown", "1", "--limit", "32", "--quiet"]
    given += ["--device", "cpu"]
    assert lidc_paper.main(given) == 3  # done, with rows left out
    table = pd.read_csv(out / "comparison.csv")
    assert len(table) == 8
    done, missing = (table[table["backbone"] == name] for name in ("vit_small64_p8", "dino_vits8"))
    assert (done["status"] == "done").all()
    assert (done["nodules"] == 32).all()
    assert done.loc[done["task"] == "malignancy", "accuracy"].between(0, 1).all()
    assert (
        done.loc[done["task"] == "malignancy", ["diameter_accuracy", "diameter_auc"]].stack().between(0, 1).sum() == 4
    )
    assert (done.loc[done["task"] == "biomarkers", "mse_z"] > 0).all()
    assert missing["status"].str.contains("dino_vits8.safetensors: no such weights file").all()
    assert (table.loc[table["backbone"] == "dino_vits8", "published"].fillna("") != "").sum() == 2
    page = (out / "comparison.html").read_text()
    assert "as published: leaks" in page
    assert "simulated CT" in page
    assert "readers&#39; diameter only" in page
    for task in ("malignancy", "biomarkers"):
        folder = out / "reports" / "vit_small64_p8" / task
        assert (folder / "index.html").is_file()
        assert list((folder / "nodules").glob("SIM-*.html"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("fold-*/model/weights.safetensors")}
    assert len(before) == 8
    assert lidc_paper.main(given) == 3
    pd.testing.assert_frame_equal(pd.read_csv(out / "comparison.csv"), table)


def test_one_source_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lidc_paper.main(["--out", str(tmp_path)]) == 2
    both = ["--store", str(tmp_path), "--slices", str(tmp_path)]
    assert lidc_paper.main(["--out", str(tmp_path), *both]) == 2
    assert "give one of --dicom" in capsys.readouterr().err
    assert lidc_paper.main(["--out", str(tmp_path), "--store", str(tmp_path), "--hu", str(tmp_path)]) == 2
    assert "--hu goes with --slices" in capsys.readouterr().err
