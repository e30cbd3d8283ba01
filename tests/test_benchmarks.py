"""Benchmarks that no other test starts, once each and small: they run, and what they print is a measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path

import backbones
import ensemble
import key_path
import prepare
import pytest

from lidc_xai.annotations import get_nodules
from lidc_xai.simulate import simulate_store


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_key_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate_store(tmp_path / "store", list(get_nodules(["LIDC-IDRI-0475-s1-n0"]).values()))
    assert key_path.main(["--model", "lidc-small", "--store", str(tmp_path / "store")]) == 0
    first, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "3 planes of 1 nodules"
    assert [cells(row)[0] for row in rows][-1] == "mean"
    assert len(rows) == 10
    for row in rows:
        _, share, spearman, wrong = cells(row)
        assert 0 < float(share) < 1
        assert 0 <= float(wrong) <= 1
        assert spearman == "" or -1 <= float(spearman) <= 1


def test_ensemble(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--backbone", "vit_small64_p8", "--size", "32", "--learned", "1", "--models", "2", "--rounds", "1"]
    assert ensemble.main(small) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:16].strip() for line in lines] == ["one model", "2 one by one", "2 together"]
    one, apart, together = (float(re.findall(r"operations +([\d.]+) x", line)[0]) for line in lines)
    assert one == 1
    assert apart == 2
    assert 1 < together < apart, "what the models share is computed once"


def test_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert backbones.main(["--names", "vit_nodule_p8", "--batch", "1", "--repeats", "1"]) == 0
    name, tokens, builds, official, learns, explains, *times = cells(capsys.readouterr().out.splitlines()[-1])
    assert (name, tokens, builds, official, learns) == ("vit_nodule_p8", "65", "yes", "none published", "yes")
    assert explains == "cdam (exact)"
    assert float(times[-1]) > 0


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scan with the fewest slices."""
    assert prepare.main(["--scans", "1", "--slices", "1", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr()
    found = json.loads((tmp_path / "out" / "run.json").read_text())["results"]
    (row,) = found["runs"]
    assert found["slices"][0] < 100
    assert row["nodules"] > 0
    assert min(row[part] for part in ("read", "resample", "write", "wall", "cpu", "peak_mib")) > 0
