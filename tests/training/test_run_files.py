"""Reading a run's files: the table as written, or one line that names the file and what is wrong."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from lidc_xai.errors import DataError, UsageError
from lidc_xai.run import shareable_config
from lidc_xai.training import evaluate_predictions
from lidc_xai.training.assessment import read_metrics, read_predictions
from lidc_xai.training.loop.record import weights_by_hash


def test_predictions_by_nodule(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("nodule_id,patient_id,fold\nb,P2,1\na,P1,0\n")
    assert read_predictions(tmp_path)["nodule_id"].tolist() == ["a", "b"]
    with pytest.raises(DataError, match=r"predictions\.csv: has no column 'malignancy_logit'"):
        read_predictions(tmp_path, ["malignancy_logit"])


def test_metrics_as_written(tmp_path: Path) -> None:
    metrics = {"malignancy": {}, "biomarkers": {}, "baselines": {}, "leaks": False}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert read_metrics(tmp_path) == metrics


@pytest.mark.parametrize(
    ("text", "message"), [("{bad", r"metrics\.json: cannot be read as JSON"), ("{}", r"has no field 'malignancy'")]
)
def test_damaged_metrics(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_metrics(tmp_path)


def test_no_run(tmp_path: Path) -> None:
    for read in (read_metrics, read_predictions):
        with pytest.raises(UsageError, match="no such file; give a folder that cross-validate has finished"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize(("column", "needs"), [("margin_readers", "margin_readers_sd"), ("margin_low", "margin_high")])
def test_columns_that_belong_together(column: str, needs: str) -> None:
    table = pd.DataFrame({"nodule_id": ["a"], "patient_id": "p", "label": 1, "n_readers": 4, "diameter_readers": 9.0})
    with pytest.raises(DataError, match=f"has a column '{column}', but no '{needs}' beside it"):
        evaluate_predictions(table.assign(diameter_readers_sd=1.0, **{column: 3.0}))


def test_a_run_names_its_weights_by_file_and_hash(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    named = shareable_config({"fit": weights_by_hash({"model": {"weights": str(tmp_path / "w.safetensors")}})})
    digest = hashlib.sha256(b"weights").hexdigest()
    assert named == {"fit": {"model": {"weights": f"w.safetensors (sha256 {digest})"}}}
