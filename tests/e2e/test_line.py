"""The line through the whole house as a user walks it: the demo, then real slices, then wrong input on purpose."""

import io
import json
import re
import sys
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest

from lidc_xai.cli import main


def called(*arguments):
    """The exit code of the command line in this process, which has imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lidc-xai", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A tiny demo: two simulated patients as DICOM, a few crops, one epoch."""
    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    with redirect_stdout(said):
        assert called("demo", "--tiny", "--set", "pdf=false", "--jobs", "1", "--out", out) == 0
    assert str(out / "report" / "index.html") in said.getvalue().splitlines()[-1]
    return out


def test_demo_leaves_everything_that_it_promises(demo):
    record = json.loads((demo / "run.json").read_text())
    assert (record["verb"], record["status"]) == ("demo", "done")
    figures = json.loads((demo / "held_out.json").read_text())
    assert 0 <= figures["auc"]["low"] <= figures["auc"]["value"] <= figures["auc"]["high"] <= 1
    manifest = pd.read_parquet(demo / "store" / "manifest.parquet")
    assert manifest["simulated"].all()
    assert manifest["patient_id"].nunique() == 2
    for nodule_id in manifest["nodule_id"]:
        page = (demo / "report" / "nodules" / f"{nodule_id}.html").read_text()
        assert "SIMULATED" in page
        assert "Research use only" in page
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_no_patient_of_the_demo_is_in_two_parts(demo):
    info = json.loads((demo / "run" / "model" / "model.json").read_text())["training_info"]
    learned, chosen = set(info["train_patients"]), set(info["validation_patients"])
    study = set(pd.read_parquet(demo / "store" / "manifest.parquet")["patient_id"])
    assert learned
    assert chosen
    assert not study & (learned | chosen)
    assert not learned & chosen


def test_the_demo_again_repeats_nothing(demo):
    weights = demo / "run" / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert called("demo", "--tiny", "--set", "pdf=false", "--jobs", "1", "--out", demo) == 0
    assert weights.stat().st_mtime_ns == before


def test_maps_are_raw_and_signed_for_every_output(demo):
    file = next((demo / "maps").glob("*/cdam.npz"))
    with np.load(file, allow_pickle=False) as found:
        meta = json.loads(str(found["meta"]))
        assert found["relevance"].shape == (3, 9, 8, 8)
        assert meta["engine"] == "exact"
        assert (found["relevance"] < 0).any()
        assert (found["relevance"] > 0).any()
    assert meta["token_mm"] == [4.0, 4.0]


def test_real_slices_take_the_same_way(demo, shared, tmp_path):
    store = tmp_path / "real"
    assert called("prepare", "--dicom", shared / "lidc" / "dicom", "--out", store) == 3
    manifest = pd.read_parquet(store / "manifest.parquet")
    assert manifest["nodule_id"].tolist() == ["LIDC-IDRI-0001-s1-n0"]
    assert manifest["n_readers_masked"].item() == 4
    assert not manifest["simulated"].item()
    skipped = pd.read_csv(store / "skipped.csv")
    assert skipped["nodule_id"].tolist() == ["LIDC-IDRI-0002-s1-n0"]
    assert "cut off" in skipped["reason"].item()

    model = demo / "run" / "model"
    maps, report = tmp_path / "x", tmp_path / "report"
    assert called("explain", "--store", store, "--model", model, "--method", "cdam,attention", "--out", maps) == 0
    code = called("report", "--store", store, "--model", model, "--maps", maps, "--out", report)
    assert code in (0, 3)  # 3: no Pango here, so no PDF, and skipped.csv says so
    page = (report / "nodules" / "LIDC-IDRI-0001-s1-n0.html").read_text()
    assert "towards spiculated" in page
    table = pd.read_csv(maps / "predictions.csv")
    assert table["malignancy_probability"].between(0, 1).all()
    assert table["out_of_fold"].all() == ("LIDC-IDRI-0001" not in _patients(model))


def _patients(model):
    info = json.loads((model / "model.json").read_text())["training_info"]
    return {*info["train_patients"], *info["validation_patients"]}


WRONG = [
    (["prepare", "--dicom", "{empty}", "--out", "{out}"], 2, "DICOM"),
    (["prepare", "--dicom", "{empty}/absent", "--out", "{out}"], 2, "no such file or folder"),
    (["prepare", "--out", "{out}"], 2, "--dicom"),
    (["prepare", "--dicom", "{dicom}", "--cohort", "paper853", "--out", "{out}"], 2, "paper854"),
    (["explain", "--store", "{empty}", "--model", "{model}", "--out", "{out}"], 2, "not a store"),
    (["explain", "--store", "{store}", "--model", "{store}", "--out", "{out}"], 1, "model.json"),
    (["explain", "--store", "{store}", "--model", "{file}", "--out", "{out}"], 1, "is a file"),
    (["explain", "--store", "{store}", "--model", "{model}", "--method", "cdma", "--out", "{out}"], 2, "cdam"),
    (["explain", "--store", "{store}", "--model", "{model}", "--nodule", "nobody", "--out", "{out}"], 2, "nobody"),
    (["train", "--store", "{store}", "--out", "{out}", "--set", "fit.epohcs=3"], 2, "did you mean 'epochs'"),
    (["train", "--store", "{store}", "--out", "{out}", "--set", "fit.epochs=ten"], 2, "fit.epochs"),
    (["predict", "--store", "{store}"], 2, "--model is missing"),
    (["predict", "--store", "{store}", "--model", "{model},{model}"], 2, "twice: a copy is not another training"),
    (["predict", "--store", "{store}", "--model", "{model},{empty}/absent"], 2, "absent: no such model folder"),
    (["cross-validate", "--store", "{store}", "--splits", "{file}", "--out", "{out}"], 1, "cannot be read as JSON"),
    (["edit", "--store", "{store}", "--edit", "nonsense", "--out", "{out}"], 2, "choose one of"),
    (["explain-image", "{file}", "--model", "nosuch_net", "--out", "{out}"], 2, "unknown model 'nosuch_net'"),
    (["prepare", "--slices", "{empty}", "--out", "{out}"], 2, "is it the PNG edition?"),
    (["prepare", "--slices", "{empty}", "--hu", "{file}", "--out", "{out}"], 1, "has no column 'patient_id'"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), WRONG, ids=[f"{case[0][0]}-{case[2]}" for case in WRONG])
def test_wrong_input_is_one_line_and_an_exit_code(demo, tmp_path, capsys, arguments, code, text):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a model")
    places = {
        "empty": tmp_path / "empty", "file": tmp_path / "file", "out": tmp_path / "out", "store": demo / "store",
        "model": demo / "run" / "model", "dicom": demo / "dicom",
    }  # fmt: skip
    ended = called(*(part.format(**places) for part in arguments), "--quiet")
    said = capsys.readouterr().err
    assert ended == code, said
    assert text in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
