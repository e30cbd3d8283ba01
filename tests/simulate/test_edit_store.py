"""A store of edited crops and the verb that writes it: marked everywhere, continued, bad nodules are rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lidc_xai.cli import app
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore
from lidc_xai.models import build_model
from lidc_xai.models.saved import save_model
from lidc_xai.simulate import edit_nodule, edit_store, simulate_store
from lidc_xai.simulate.edits.edit import original_of
from lidc_xai.skipped import read_skipped

NAMES = ("LIDC-IDRI-0013-s1-n1", "LIDC-IDRI-0055-s1-n1", "LIDC-IDRI-0001-s1-n0")
"""The last is larger than the box."""


@pytest.fixture(scope="module")
def store(by_id: dict, tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    return simulate_store(tmp_path_factory.mktemp("stores") / "plain", [by_id[name] for name in NAMES])


@pytest.fixture(scope="module")
def edited(store: CropStore) -> CropStore:
    return edit_store(store, store.path.parent / "edited", "calcification", [0, 1], seed=2)


def test_every_dose_is_a_nodule_of_the_same_patient(store: CropStore, edited: CropStore) -> None:
    assert len(edited) == 4
    for nodule_id in edited.nodule_ids:
        original, name, dose = original_of(nodule_id)
        assert "-EDITED-" in nodule_id
        row, before = edited.row(nodule_id), store.row(original)
        assert row["patient_id"] == before["patient_id"]
        assert row["malignancy_median"] == before["malignancy_median"]
        assert row["edited"] == f"{name}, dose {dose:g}, seed 2"
        assert before["edited"] == ""
        crop, changed = edit_nodule(store.load(original), name, dose, seed=2)
        assert np.array_equal(edited.load(nodule_id).ct, crop.ct)
        assert (nodule_id in set(edited.votes["nodule_id"])) == (original in set(store.votes["nodule_id"]))
        causes = edited.causes(nodule_id)
        assert np.array_equal(causes["calcification"], changed) if dose else not causes
    (first, second) = read_skipped(edited.path)
    assert first.nodule_id == "LIDC-IDRI-0001-s1-n0-EDITED-calcification+0.00"
    assert "larger than the box" in second.reason


def test_it_is_continued_and_kept_apart(store: CropStore, edited: CropStore) -> None:
    kept = {path: path.stat().st_mtime_ns for path in edited.path.glob("crops/*/ct.nii.gz")}
    again = edit_store(store, edited.path, "calcification", [0, 1, 0.5], nodule_ids=store.nodule_ids[1:2], seed=2)
    assert len(again) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    with pytest.raises(UsageError, match="choose another --out"):
        edit_store(store, edited.path, "margin", [1])
    with pytest.raises(UsageError, match="is the store that is edited"):
        edit_store(store, store.path, "margin", [1])
    with pytest.raises(DataError, match="not the id of an edited nodule"):
        original_of(store.nodule_ids[0])


def test_the_verb_with_its_slider_page_and_a_report(store: CropStore, tmp_path: Path) -> None:
    save_model(build_model("vit_nodule_p8", ["malignancy", "margin"], size=32, seed=0), tmp_path / "model")
    model, one = str(tmp_path / "model"), ["--store", str(store.path), "--nodule", NAMES[0]]
    given = ["edit", *one, "--edit", "margin", "--dose", "-1,0,1", "--model", model, "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "out" / "doses.html").read_text(encoding="utf-8")
    for words in ("EDITED", 'data-dose="-1.00"', 'data-dose="+1.00"', "(should fall with the dose)", 'type="range"'):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")
    edited_id = f"{NAMES[0]}-EDITED-margin+1.00"
    given = [
        "report", "--store", str(tmp_path / "out"), "--model", model, "--nodule", edited_id, "--method", "cdam",
        "--set", "pdf=false", "--set", "curves=[]", "--set", "controls=false", "--out", str(tmp_path / "report"),
    ]  # fmt: skip
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, ran.output
    for path in (tmp_path / "report" / "index.html", tmp_path / "report" / "nodules" / f"{edited_id}.html"):
        assert "<strong>EDITED</strong>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--edit", "colour"], 2, "choose one of remove"),
        (["--edit", "margin", "--dose", "two"], 2, "wanted numbers"),
        (["--edit", "margin", "--dose", "1.5"], 2, "from -1 to 1"),
        ([], 2, "--edit is missing"),
        (["--edit", "margin", "--nodule", NAMES[2]], 1, "larger than the box"),
        (["--edit", "remove", "--dose", "1", "--nodule", f"{NAMES[0]},{NAMES[2]}"], 3, "1 left out"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    given: list[str], code: int, words: str, store: CropStore, tmp_path: Path
) -> None:
    ran = CliRunner().invoke(app, ["edit", "--store", str(store.path), "--out", str(tmp_path / "out"), *given])
    assert ran.exit_code == code
    assert words in ran.output
    assert "Traceback" not in ran.output
