"""Every shipped configuration is one that the commands accept, and says what its name says."""

from pathlib import Path

import pytest

from lidc_xai.commands.training import CrossValidateConfig, SweepConfig
from lidc_xai.config import load_config
from lidc_xai.models import BACKBONES
from lidc_xai.ratings import BIOMARKERS, PAPER_OUTPUT_ORDER
from lidc_xai.training import SweepOptions

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER = [f"paper_{task}_{name}" for task in ("malignancy", "biomarkers") for name in ("dino", "deit", "dinov2")]
RUNS = ["default", "small", "lidc_png", "lidc_png_fine", "lidc_dinov2", *PAPER]


@pytest.mark.parametrize("name", RUNS)
def test_training_configurations_are_valid(name: str) -> None:
    options = load_config(CrossValidateConfig, CONFIGS / f"{name}.yaml").fit
    assert options.model.backbone in BACKBONES
    if name.startswith("paper_malignancy"):
        assert options.model.outputs == ["malignancy"]
    if name.startswith("paper_biomarkers"):
        assert tuple(options.model.outputs) == PAPER_OUTPUT_ORDER
        assert set(options.model.outputs) == set(BIOMARKERS)
    if name.startswith("paper"):
        assert options.model.backbone.startswith(name.rsplit("_", 1)[1])
        assert options.optimiser.schedule == ("exponential" if name.endswith("dino") else "cyclic")


def test_the_papers_search_is_valid() -> None:
    config = load_config(SweepConfig, CONFIGS / "sweep_paper.yaml")
    search = load_config(SweepOptions, None, (), config.search)
    assert search.trials == 40
    assert search.space["optimiser.lr"].log
