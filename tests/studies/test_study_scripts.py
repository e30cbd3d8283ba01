"""The three studies from their scripts, small: tables, identities that must come out, and what is named as missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from studies.study import main
from studies.study_arms import StudyImage
from studies.study_measures import OWN_OTHER, OWN_SHARE
from studies.study_table import COLUMNS

from lidc_xai.config import load_config

ROOT = Path(__file__).resolve().parents[2]
MULTI = "X_multi: MSRC"
KINDS = {"study_contrastive": "Contrastive", "study_reciprocam": "Reciprocam", "study_softmax": "Softmax"}


def script(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pydantic looks the annotations up there
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def run(photographs: Path, weights: Path, features: Path, tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """Run a study on two images of each kind; its table."""

    def call(name: str, code: int, *options: str, arguments: tuple[str, ...] = ()) -> pd.DataFrame:
        module: Any = script(name)
        given = [part for option in ("examples=1", "size=56", "batch=2", *options) for part in ("--set", option)]
        usual = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--limit", "2", "--quiet", *arguments]
        paths = ["--out", str(tmp_path), "--photographs", str(photographs), "--features", str(features)]
        code_here = main(
            getattr(module, KINDS[name]), module.work, name=name, about=module.__doc__, source=module.SOURCE,
            models=module.models, arguments=[*usual, *paths, "--weights", str(weights), *given],
        )  # fmt: skip
        assert code_here == code
        table = pd.read_csv(tmp_path / "table.csv")
        assert tuple(table.columns) == COLUMNS
        assert table["here"].notna().any()
        assert (tmp_path / "figure.png").stat().st_size > 1000
        assert list((tmp_path / "examples").glob("X_multi*.png"))
        return table

    return call


def value(table: pd.DataFrame, method: str, metric: str, data: str) -> float:
    own = table[(table["method"] == method) & (table["metric"] == metric) & (table["data"] == data)]
    assert len(own) == 1, (method, metric)
    return float(own["here"].iloc[0])


@pytest.mark.parametrize("name", KINDS)
def test_configuration(name: str) -> None:
    kind = getattr(script(name), KINDS[name])
    config = load_config(kind, ROOT / "configs" / f"{name}.yaml")
    assert config.seed == 0
    assert config.cnns == kind().cnns if name != "study_reciprocam" else config.vits == kind().vits


def test_contrastive(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    options = ("methods=[gradcam]", "steps=[1]", "epsilon=0.03", "threshold=0.01", "vits=[torchvision:vit_b_16]")
    table = run("study_contrastive", 3, *options)
    skipped = (tmp_path / "skipped.csv").read_text()
    for file in ("vgg16-397923af.pth", "alexnet-owt-7be5be79.pth", "vit_b_16-c867db91.pth"):
        assert file in skipped
    val = "X_val: superclasses"
    changes = {name: value(table, name, "epsilon n=1/Δ logit", val) for name in ("plain", "mean", "max", "weighted")}
    assert changes["plain"] == max(changes.values()) > 0
    probability = {name: value(table, name, "epsilon n=1/Δ probability", val) for name in changes}
    assert probability["weighted"] >= probability["plain"] - 1e-6
    assert 0 <= value(table, "gradient_rollout, weighted", OWN_SHARE, MULTI) <= 1
    assert 0 <= value(table, "model", "share with two probable classes", "ILSVRC") <= 1
    for name in ("positive/blur", "negative/blur/first", "negative/share removed"):
        assert (table["metric"] == name).any()


def test_confident_misclassifications() -> None:
    """Taken: wrong and sure. Left: unsure, right, and a class that the image shows beside its label."""
    errors = script("study_contrastive").confident_errors
    images = [
        StudyImage(str(k), Path("x"), label=0, classes=(0, *more)) for k, more in enumerate(((), (), (), (1,), ()))
    ]
    logits = torch.tensor([[0.0, 9, 0], [0, 0.1, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]])
    rows, pairs = errors(images, logits, 0.9)
    assert rows.tolist() == [0, 4]
    assert pairs.tolist() == [[1, 0], [2, 0]]
    assert not len(errors([StudyImage("0", Path("x"))], logits[:1], 0.9)[0]), "a photograph has no label to miss"


def test_reciprocam(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    table = run("study_reciprocam", 3, "batches=[1]", "repeats=1", "vits=[deit_tiny]", "layers=2")
    assert "deit_tiny_patch16_224-a1311bcf.pth" in (tmp_path / "skipped.csv").read_text()
    assert value(table, "attention", OWN_OTHER, MULTI) == 0
    val = "X_val: superclasses"
    assert value(table, "centred disc", "coherency", val) == pytest.approx(1.0)
    assert value(table, "centred disc", "complexity", val) == pytest.approx(0.2, abs=0.01)
    for method in ("reciprocam", "reciprocam, dirac", "reciprocam, input of block 12", "reciprocam, block 11"):
        assert 0 <= value(table, method, "adcc", val) <= 1
    assert value(table, "reciprocam", "ms per image, batch 1, cpu", val) > 0
    assert value(table, "reciprocam", "layer scale folded/largest relative difference", MULTI) < 1e-4
    gain = table[table["metric"] == "ADCC gain over relevance_propagation, points"].iloc[0]
    assert (gain["published"], gain["place"]) == (4.58, "abstract")
    assert gain["differs"].startswith("model: dinov2_vits14")
    assert value(table, "reciprocam", "speed against relevance_propagation", val) > 0


def test_softmax(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    options = ("methods=[gradcam]", "vit_methods=[cdam]", "factors=[1,64]", "cell=112")
    table = run("study_softmax", 3, *options)
    assert "vgg19-dcbb9e9d.pth" in (tmp_path / "skipped.csv").read_text()
    same, cnn = "shifted/Spearman with the original", "ILSVRC"
    assert value(table, "gradcam, log-probability", same, cnn) > 0.999
    assert value(table, "gradcam, probability", same, cnn) > 0.999
    assert value(table, "gradcam, logit", same, cnn) < 0.999
    assert value(table, "both models", "shifted/largest change of a probability", cnn) < 1e-4
    assert value(table, "saliency, log-probability", "check/largest relative difference from −∂L/∂x", cnn) < 1e-10
    sizes = [value(table, name, "saturation ×64/log10 gradient", cnn) for name in ("logit", "probability")]
    assert sizes[0] > sizes[1]
    kept = "information/nats that the kept input tells"
    for data, method in ((cnn, "gradcam"), ("X_val: superclasses", "cdam")):
        assert value(table, f"{method}, probability", kept, data) == value(
            table, f"{method}, log-probability", kept, data
        )
    assert 0 <= value(table, "cdam, sigmoid", OWN_SHARE, MULTI) <= 1


def test_what_a_study_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = script("study_contrastive")
    given = ["--out", str(tmp_path), "--quiet", "--set", "contrasts=[plain,heavy]"]
    found = main(
        module.Contrastive, module.work, name="x", about="", source="", models=module.models, arguments=given
    )  # fmt: skip
    assert found == 2
    assert "contrasts are plain, mean" in capsys.readouterr().err
