"""Runs side by side: paired on common nodules, differences to the first."""

from pathlib import Path

import compare_runs
import numpy as np
import pandas as pd
import pytest


def write_run(folder: Path, shift: float, nodules: range) -> Path:
    """Labels alternate, two nodules a patient; the margin is off by ``shift`` everywhere."""
    label = np.array([number % 2 for number in nodules], float)
    table = pd.DataFrame(
        {
            "nodule_id": [f"N{number:03d}" for number in nodules],
            "patient_id": [f"P{number // 2}" for number in nodules],
            "fold": 0,
            "label": label,
            "malignancy_probability": np.where(label > 0, 0.9, 0.1),
            "margin": 3 + shift,
            "margin_readers": 3.0,
            "margin_train_sd": 2.0,
        }
    )
    folder.mkdir()
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


def test_differences_on_common_nodules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "first", 1.0, range(40))
    second = write_run(tmp_path / "second", 2.0, range(10, 60))
    assert compare_runs.main(["--runs", f"{first},{second}", "--resamples", "50", "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "compared.csv").set_index("run")
    assert table["mean MSE(z)"].to_dict() == {"first": 0.25, "second": 1.0}
    assert table.loc["second", "Δ mean MSE(z)"] == 0.75
    assert table.loc["second", ["AUC", "Δ AUC"]].tolist() == [1.0, 0.0]
    assert "30 nodules of 15 patients; Δ: minus first" in capsys.readouterr().out
    apart = write_run(tmp_path / "apart", 0.0, range(100, 104))
    assert compare_runs.main(["--runs", f"{first},{apart}", "--out", str(tmp_path / "none")]) == 1
    assert "tested no nodule in common" in capsys.readouterr().err
