"""The page of the studies: its text's marks are filled from runs; the papers' sentences; and the one command."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from studies.page import CLAIMS, TEXT, write_page
from studies.study_table import Finding, Row, table_of

from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.evaluation.statistics import Interval
from lidc_xai.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Page
It is {{cdam; X_val: s; m; cdam; fidelity/area}}, {{cdam; X_val: s; m; cdam; fidelity/area; interval}} of
{{cdam; X_val: s; m; cdam; fidelity/area; n}}; {{cdam; X_val: s; other; cdam; fidelity/area}};
{{effect; cdam; X_multi: s; m; Smooth CDAM outperforms all other methods on fidelity}}.
<!-- rows cdam; X_val: s; fidelity/area + box/area -->
Between.
<!-- rows cdam; X_val: s; adcc -->
<!-- claims cdam -->
<!-- missing cdam -->
<!-- rows softmax; ILSVRC; deletion -->
"""
BEST = "Integrated CDAM performs the best on box sensitivity"


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
    some = Interval(0.2, 0.1, 0.3, 12, 12, 0)
    found = [
        Finding.of("It | holds", "X_val: s", "m", some, note="Table 1"),
        Finding.of("Smooth CDAM outperforms all other methods on fidelity", "X_multi: s", "m", some, -1, note="x"),
        Finding.of(BEST, "X_val: s", "m", some),
        Finding.of(BEST, "X_multi: s", "m", Interval(0.2, -0.1, 0.3, 12, 12, 0)),
    ]
    write_json(folder / "findings.json", [{**vars(one), "p": None, "verdict": one.verdict} for one in found])
    with (folder / "skipped.csv").open("w", newline="") as stream:
        rows_of = csv.writer(stream)
        rows_of.writerows(
            [("nodule_id", "stage", "reason"), ("swin", "weights", "bring it"), ("Table 1: x", "published", "")]
        )
    return folder


def test_marks_are_filled_and_text_stays(tmp_path: Path) -> None:
    source, page = tmp_path / "text.md", tmp_path / "page.md"
    source.write_text(PAGE)
    folder = results(tmp_path)
    folders = {"cdam": folder, "softmax": tmp_path / "absent"}
    assert write_page(page, folders, source) == 5
    text = page.read_text()
    assert "It is 12.3, 12.3 [10.0, 14.0] of\n20; –;\n-0.20 [-0.30, -0.10]." in text
    assert "| cdam | 12.3 [10, 14] (paper 623) | 0.5 | 12 to 20 |" in text
    assert "*X_val: s, m; model: m.*" in text
    assert "- swin: bring it\n- 1 figures that the paper prints" in text
    for part in ("Between.\n*Not reached in this run.*", "\n*Not run.*"):
        assert part in text
    write_page(page, folders, source)
    assert page.read_text() == text, "the same runs, the same page"
    source.write_text("no mark")
    with pytest.raises(DataError, match="has no mark"):
        write_page(page, {}, source)


def test_every_sentence_stands_beside_its_tests(tmp_path: Path) -> None:
    """By claim and images; what no sentence says stands apart, and an untested sentence says why."""
    source, page = tmp_path / "text.md", tmp_path / "page.md"
    source.write_text(PAGE)
    write_page(page, {"cdam": results(tmp_path)}, source)
    lines = page.read_text().splitlines()
    table = "| X_multi: s, m | -0.2 [-0.3, -0.1] | 12 | **refuted** |"
    smooth = next(line for line in lines if "the Smooth CDAM outperforms all other methods" in line)
    assert smooth.endswith("| Smooth CDAM outperforms all other methods on fidelity (x) " + table)
    on_multi = next(line for line in lines if "On the box sensitivity benchmark" in line)
    on_val = next(line for line in lines if "For the random subset" in line)
    assert "X_multi: s, m" in on_multi
    assert "**not decided**" in on_multi
    assert "X_val: s, m" in on_val
    assert "**shown**" in on_val
    assert "needs ImageNet" in next(line for line in lines if "77.0" in line)
    beside = lines[lines.index("Tested beside; no sentence of the paper says it:") :]
    assert "| It \\| holds (Table 1) | X_val: s, m | 0.2 [0.1, 0.3] | 12 | **shown** |" in beside


def test_sentences_and_marks_of_the_page_itself() -> None:
    """Each sentence has a paper that has a table, and a test or a reason; each pattern is one."""
    text = TEXT.read_text(encoding="utf-8")
    with CLAIMS.open(encoding="utf-8", newline="") as stream:
        sentences = list(csv.DictReader(stream))
    assert len({one["sentence"] for one in sentences}) == len(sentences) > 40
    for one in sentences:
        assert f"<!-- claims {one['paper']} -->" in text
        assert one["place"]
        assert one["figure"]
        assert bool(one["tests"]) != bool(one["untested"])
        assert bool(one["answer"]) == bool(one["untested"])
        re.compile(one["tests"])
    for mark in re.findall(r"\{\{(.+?)\}\}", text, re.DOTALL):
        parts = mark.split(";")
        assert len(parts) == 5 if parts[0] == "effect" else len(parts) in (5, 6), mark


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
    assert module.main(["--out", str(tmp_path), "--page", str(tmp_path / "none" / "page.md")]) == 2
    assert module.main(["--out", str(tmp_path), "--only", "reciprocam", "--quiet"]) == 3
    with (tmp_path / "reciprocam" / "skipped.csv").open() as stream:
        reasons = {row["nodule_id"]: row["reason"] for row in csv.DictReader(stream)}
    assert "--photographs FOLDER" in reasons["real photographs"]
    assert "deit_small" in reasons["deit_small"]
