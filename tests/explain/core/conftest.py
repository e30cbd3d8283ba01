"""Small models for what does not depend on the method: a ViT, a CNN, and a nodule model."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from lidc_xai.models import NoduleModel, build_model


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()


@pytest.fixture
def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()  # fmt: skip


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
