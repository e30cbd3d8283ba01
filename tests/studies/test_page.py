"""The page of the studies: marks are filled from a run, text between them stays; and the one command."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from studies.page import write_page
from studies.study_table import Finding, Row, table_of

from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.evaluation.statistics import Interval
from lidc_xai.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Page
Written by hand.
<!-- rows cdam; X_val: s; fidelity/area + box/area -->
old
<!-- end -->
Between.
<!-- claims cdam -->
<!-- end -->
<!-- missing cdam -->
<!-- end -->
<!-- rows softmax; ILSVRC; deletion -->
kept
<!-- end -->
"""


def results(folder: Path) -> Path:
    rows = [
        Row(
            "X_val: s",
            "m",
            "cdam",
            "fidelity/area",
            12.345,
            10.0,
            14.0,
            20,
            623.0,
            place="Table S1",
            differs="model: m",
        ),
        Row("X_val: s", "m", "cdam", "box/area", 0.5, n=12),
        Row("elsewhere", "m", "cdam", "box/area", 9.0, n=1),
    ]
    write_csv(folder / "table.csv", table_of(rows))
    one = Finding.of("It | holds", "X_val: s", "m", Interval(0.2, 0.1, 0.3, 12, 12, 0), note="Table 1")
    write_json(folder / "findings.json", [{**vars(one), "p": None, "verdict": one.verdict}])
    with (folder / "skipped.csv").open("w", newline="") as stream:
        rows_of = csv.writer(stream)
        rows_of.writerows(
            [("nodule_id", "stage", "reason"), ("swin", "weights", "bring it"), ("Table 1: x", "published", "")]
        )
    return folder


def test_marks_are_filled_and_text_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    folder = results(tmp_path)
    assert write_page(page, {"cdam": folder, "softmax": tmp_path / "absent"}) == 3
    text = page.read_text()
    assert "| cdam | 12.3 [10, 14] (paper 623) | 0.5 | 12 to 20 |" in text
    assert "\nold\n" not in text
    assert "*X_val: s, m. model: m.*" in text
    assert "| It \\| holds | X_val: s, m | 0.2 [0.1, 0.3] | 12 | **shown** | Table 1 |" in text
    assert "- swin: bring it\n- 1 figures that the paper prints" in text
    for kept in ("Written by hand.", "Between.", "kept"):
        assert kept in text
    write_page(page, {"cdam": folder})
    assert page.read_text() == text, "filled twice, the same"
    page.write_text("no mark")
    with pytest.raises(DataError, match="has no mark"):
        write_page(page, {})


def test_the_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong names are one line; a study without anything to run on says what to bring."""
    sys.path.insert(0, str(ROOT / "pipelines"))
    try:
        spec = importlib.util.spec_from_file_location("four_papers", ROOT / "pipelines" / "four_papers.py")
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        sys.modules["four_papers"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "pipelines"))
    assert module.main(["--out", str(tmp_path), "--only", "ghosts"]) == 2
    assert "'ghosts' is none of cdam, contrastive, reciprocam, softmax" in capsys.readouterr().err
    assert module.main(["--out", str(tmp_path), "--page", str(tmp_path / "none.md")]) == 2
    assert module.main(["--out", str(tmp_path), "--only", "reciprocam", "--quiet"]) == 3
    with (tmp_path / "reciprocam" / "skipped.csv").open() as stream:
        reasons = {row["nodule_id"]: row["reason"] for row in csv.DictReader(stream)}
    assert "--photographs FOLDER" in reasons["real photographs"]
    assert "deit_small" in reasons["deit_small"]
