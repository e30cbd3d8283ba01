"""The noise of the smoothed methods is the one that the score likes best."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import sigma_scores, tune_sigma
from lidc_xai.explain import LogOdds, explain
from lidc_xai.models import NoduleModel, build_model


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()


@pytest.fixture(scope="session")
def nodule() -> NoduleModel:
    return build_model("vit_small64_p8", ["malignancy", "margin", "diameter"], seed=0)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """(3, 3, 32, 32)"""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def planes() -> Tensor:
    """(2, 3, 64, 64)"""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_best_sigma_is_found_and_every_target_is_asked(vit: nn.Module, images: Tensor) -> None:
    asked: list[Any] = []

    def likes(model: nn.Module, x: Tensor, relevance: Tensor, target: Any) -> Tensor:
        """Best where the map is that of σ = 0.2."""
        asked.append(target)
        rows = slice(0, 2) if len(x) == 2 else slice(2, 3)
        wanted = explain(vit, images, [1, 2], "smooth_cdam", samples=2, sigma=0.2, max_batch=2).to_pixels()
        return -(relevance - wanted[rows, target - 1]).abs().flatten(1).sum(1)

    options = {"samples": 2, "max_batch": 2}
    assert tune_sigma(vit, images, [1, 2], sigmas=(0.1, 0.2, 0.4), score=likes, **options) == 0.2
    assert asked == [1, 2, 1, 2] * 3


@pytest.mark.parametrize(
    "targets",
    [None, 2, LogOdds(1), torch.tensor([1, 0, 4]), torch.tensor([[1, 2], [0, 3], [4, 4]]), [1, LogOdds(2)]],
)
def test_targets_go_to_the_score_one_by_one(vit: nn.Module, images: Tensor, targets: Any) -> None:
    shapes = []

    def note(model: nn.Module, x: Tensor, relevance: Tensor, target: Any) -> list[float]:
        shapes.append((len(x), tuple(relevance.shape[1:])))
        expected = explain(vit, x, target, "smooth_cdam", samples=1, sigma=0.1).to_pixels()[:, 0]
        assert torch.allclose(relevance, expected, atol=1e-6)
        return [1.0] * len(x)

    scores = sigma_scores(vit, images, targets, sigmas=[0.1], score=note, samples=1, max_batch=2)
    assert scores == {0.1: 1.0}
    several = (
        targets.shape[1]
        if isinstance(targets, Tensor) and targets.ndim == 2
        else len(targets)
        if isinstance(targets, list)
        else 1
    )
    assert shapes == [(2, (32, 32))] * several + [(1, (32, 32))] * several


def test_every_output_of_a_nodule_model(nodule: NoduleModel, planes: Tensor) -> None:
    seen = []
    sigma_scores(nodule, planes, sigmas=[0.1], score=lambda m, x, r, t: seen.append(t) or [0.0] * len(x), samples=1)
    assert seen == ["malignancy", "margin", "diameter"]


def test_undefined_scores_are_left_out(vit: nn.Module, images: Tensor) -> None:
    scores = sigma_scores(vit, images, 1, sigmas=[0.1], score=lambda m, x, r, t: [torch.nan, 2.0, 4.0], samples=1)
    assert scores == {0.1: 3.0}


def test_the_default_score_is_fidelity(vit: nn.Module, images: Tensor) -> None:
    from lidc_xai.evaluation import fidelity

    scores = sigma_scores(vit, images, 1, sigmas=[0.2], samples=2)
    maps = explain(vit, images, 1, "smooth_cdam", samples=2, sigma=0.2).to_pixels()[:, 0]
    assert scores[0.2] == pytest.approx(float(fidelity(vit, images, maps, 1).area.mean()), rel=1e-6)


def test_what_cannot_be_tuned_is_refused(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="cdam has no sigma to tune"):
        tune_sigma(vit, images, 1, "cdam")
    with pytest.raises(UsageError, match="sigmas is empty"):
        tune_sigma(vit, images, 1, sigmas=())
