"""Every shipped configuration is one that the commands accept, and says what its name says."""

from pathlib import Path

import pytest
import torch

from lidc_xai.commands.training import CrossValidateConfig, SweepConfig
from lidc_xai.config import load_config
from lidc_xai.models import BACKBONES, build_model
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


@pytest.mark.parametrize("task", ["malignancy", "biomarkers"])
def test_the_papers_best_dino_model(task: str) -> None:
    fit = load_config(CrossValidateConfig, CONFIGS / f"paper_{task}_dino.yaml").fit
    assert (fit.trainable_tensors, fit.model.dropout, fit.epochs) == (50, 0.003, 50)


def test_the_search_of_section_5() -> None:
    config = load_config(SweepConfig, CONFIGS / "sweep_paper_dino.yaml")
    space = load_config(SweepOptions, None, (), config.search).space
    assert (space["trainable_tensors"].low, space["trainable_tensors"].high) == (10, 50)
    assert (space["model.dropout"].low, space["model.dropout"].high) == (0, 0.09)
    assert (config.fit.optimiser.name, config.fit.optimiser.schedule) == ("adam", "exponential")


def test_the_papers_search_is_valid() -> None:
    config = load_config(SweepConfig, CONFIGS / "sweep_paper.yaml")
    search = load_config(SweepOptions, None, (), config.search)
    assert search.trials == 40
    assert search.space["optimiser.lr"].log
    assert (config.fit.optimiser.name, config.fit.optimiser.schedule) == ("adam", "cyclic")
    assert {"optimiser.cycle_lowest", "optimiser.cycle_epochs"} <= set(search.space)
    ranges = {name: (one.low, one.high) for name, one in search.space.items()}
    assert ranges["batch_size"] == (8, 32)
    assert ranges["model.backbone_dropout"] == (0, 0.12)
    for backbone, head in (("dinov2_vitb14_reg", "mlp"), ("deit_base", "linear")):  # the upper end opens everything
        with torch.device("meta"):
            model = build_model(backbone, head=head)
        assert len(list(model.parameters())) <= ranges["trainable_tensors"][1]
