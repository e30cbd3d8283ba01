"""The table of faithfulness on a tiny model: its figures are the metrics' own, and what lies there is kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import timm
import torch

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import fidelity, saco
from lidc_xai.explain import explain
from lidc_xai.run import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("faithfulness", ROOT / "pipelines" / "faithfulness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "faithfulness", module)  # pydantic looks the annotations up there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "list_methods", lambda model: ["cdam", "attn_lrp", "fullgrad"])
    return module


def test_an_arm_is_measured_once_and_gives_the_metrics_figures(script: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()
    images = torch.randn(3, 3, 32, 32)
    arm = script.Arm("tiny", model, images, 1, ["a", "b", "c"], ["p", "p", "q"], "blur", {})
    study = script.Study(points=4, samples=2, out=tmp_path)
    script.measure_arm(study, arm, tmp_path / arm.name)
    files = sorted((tmp_path / "tiny").glob("*.parquet"))
    assert len(files) == 2 * (3 + len([row for row in script.VARIANTS.values() if row["method"] == "attn_lrp"]))
    before = [path.stat().st_mtime_ns for path in files]
    script.measure_arm(study, arm, tmp_path / arm.name)
    assert [path.stat().st_mtime_ns for path in files] == before
    script.write_table(tmp_path)
    table = pd.read_csv(tmp_path / "faithfulness.csv").set_index(["method", "fill", "metric"])
    maps = explain(model, images, 1, "cdam").relevance[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    for fill in ("mean", "blur"):
        expected = fidelity(model, images, maps, 1, points=4, replacement=fill).area.mean()
        assert table.loc[("cdam", fill, "fidelity"), "mean"] == pytest.approx(expected, abs=1e-5)
        expected = saco(model, images, maps, 1, replacement=fill).saco.mean()
        assert table.loc[("cdam", fill, "saco"), "mean"] == pytest.approx(expected, abs=1e-6)
    more = table.loc[("attn_lrp", "mean", "fidelity less cdam"), "mean"]
    assert more == pytest.approx(
        table.loc[("attn_lrp", "mean", "fidelity"), "mean"] - table.loc[("cdam", "mean", "fidelity"), "mean"]
    )
    lines = (tmp_path / "faithfulness.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "### tiny: 3 images of 2 clusters"
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(files) // 2


def test_something_must_be_asked_for(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --store, --photographs, or both"):
        script.measure(script.Study(out=tmp_path), Run("faithfulness", [], {}))
