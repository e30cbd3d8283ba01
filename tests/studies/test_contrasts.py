"""Contrasts of maps against their formulas, and equivalent models against what makes them equivalent."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from studies.contrasts import contrast_maps
from studies.equivalents import Sharpened, Shifted, shifted
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import Logit, LogOdds, explain
from lidc_xai.imagenet.photographs import InputSpec

SPEC = InputSpec((64, 64), 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    network = nn.Sequential(OrderedDict(parts | {"classifier": nn.Linear(16, 6)}))
    return network.double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


CLASSES = torch.tensor([[1, 4], [0, 2]])


def test_contrasts_of_targets(network: nn.Module, images: Tensor) -> None:
    found = contrast_maps(network, images, CLASSES, "gradcam", ["weighted", "plain"])
    assert list(found) == ["weighted", "plain"]
    for name, kind in (("plain", Logit), ("weighted", LogOdds)):
        wanted = explain(network, images, [kind(CLASSES[:, 0]), kind(CLASSES[:, 1])], "gradcam").to_pixels("bilinear")
        assert torch.allclose(found[name], wanted, rtol=1e-12)


def test_rectified_maps_are_the_contrast_of_rectified_maps(network: nn.Module, images: Tensor) -> None:
    """With every class taken in, it is LogOdds(contrast="maps") of the rectified method."""
    found = contrast_maps(network, images, CLASSES, "gradcam", ["plain", "weighted ReLU"], others=6)
    targets = [LogOdds(CLASSES[:, k], contrast="maps") for k in (0, 1)]
    wanted = explain(network, images, targets, "gradcam", relu=True).to_pixels("bilinear")
    assert torch.allclose(found["weighted ReLU"], wanted, rtol=1e-10, atol=1e-12)
    linear = contrast_maps(network, images, CLASSES, "gradcam", ["weighted"])["weighted"]
    assert not torch.allclose(found["weighted ReLU"], linear, rtol=1e-3)


def test_scaled_maps(network: nn.Module, images: Tensor) -> None:
    found = contrast_maps(network, images, CLASSES, "linear_approximation", ["weighted scaled"], others=6)
    grid = explain(network, images, list(range(6)), "linear_approximation").relevance
    scaled = grid / grid.abs().flatten(-2).amax(-1)[..., None, None]
    every = nn.functional.interpolate(scaled, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        logits = network(images)
    for b in range(2):
        for k in range(2):
            c = int(CLASSES[b, k])
            others = [s for s in range(6) if s != c]
            alpha = logits[b, others].softmax(-1)
            wanted = every[b, c] - (alpha[:, None, None] * every[b, others]).sum(0)
            assert torch.allclose(found["weighted scaled"][b, k], wanted, rtol=1e-10, atol=1e-12)


def test_unknown_contrast(network: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="contrasts are plain, mean"):
        contrast_maps(network, images, CLASSES, "gradcam", ["heavy"])


def test_shifted_model_predicts_the_same_and_explains_something_else(network: nn.Module, images: Tensor) -> None:
    other = shifted(network, images, SPEC, 2.0)
    with torch.no_grad():
        plain, moved = network(images), other(images)
    assert torch.allclose(plain.softmax(-1), moved.softmax(-1), rtol=1e-12)
    assert (moved - plain).abs().mean() == pytest.approx(2 * plain.amax(1).abs().mean().item(), rel=0.05)  # two digits
    assert torch.allclose((moved - plain)[:, :1].expand(-1, 6), moved - plain, rtol=1e-9)
    for target, same in ((Logit(1), False), (LogOdds(1), True)):
        maps = [explain(model, images, target, "gradcam").relevance for model in (network, other)]
        assert torch.allclose(*maps, rtol=1e-7, atol=1e-12) is same
    other.remove()
    assert type(network.pool) is nn.AdaptiveAvgPool2d
    with pytest.raises(ModelError, match="no global pooling"):
        Shifted(nn.Linear(2, 2), 1.0, SPEC)


def test_sharpened_model(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(Sharpened(network, 4)(images), 4 * network(images))
