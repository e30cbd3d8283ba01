"""Small models whose truth is known: linear on one patch, blind to its input, and tiny ViTs with random weights."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class LinearOnPatch(nn.Module):
    """y_c = scale_c · mean of one 8×8 patch, classes reading different patches: only those pixels matter."""

    def __init__(self, corners: tuple[tuple[int, int], ...], scales: tuple[float, ...], size: int = 8) -> None:
        super().__init__()
        self.corners, self.size = corners, size
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64))
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        means = [images[:, :, r : r + self.size, c : c + self.size].mean((1, 2, 3)) for r, c in self.corners]
        return torch.stack(means, dim=1) * self.scales * self.weight

    def oracle(self, images: Tensor, column: int) -> Tensor:
        """(B,H,W): exactly what each pixel contributes to the output."""
        r, c = self.corners[column]
        found = torch.zeros_like(images)
        part = images[:, :, r : r + self.size, c : c + self.size]
        found[:, :, r : r + self.size, c : c + self.size] = part * self.scales[column] / part[0].numel()
        return found.sum(1)


class Blind(nn.Module):
    """The same outputs for every image."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(1.0, outputs + 1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


class Named(nn.Module):
    """A ViT with one binary output and two regressions, as a nodule model has them."""

    output_names = ("malignancy", "spiculation", "margin")
    output_kinds = ("binary", "regression", "regression")

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True))


def tiny_vit(classes: int, seed: int = 0, size: int = 32) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=size, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=classes, in_chans=3
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model.double().eval()


@pytest.fixture(scope="session")
def vit() -> VisionTransformer:
    """Five classes, 32 px, 4×4 tokens, float64."""
    return tiny_vit(5)


@pytest.fixture(scope="session")
def named(images: Tensor) -> Named:
    """Outputs malignancy (binary, on both sides of 0 for ``images``), spiculation, margin (regressions)."""
    torch.manual_seed(1)
    model = Named(tiny_vit(0, seed=1)).double().eval()
    with torch.no_grad():
        model.head.weight.normal_()
        model.head.bias -= model(images).quantile(0.5, dim=0)
    return model


@pytest.fixture(scope="session")
def images() -> Tensor:
    """(4,3,32,32) smooth float64 images."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)


@pytest.fixture(scope="session")
def on_patch() -> LinearOnPatch:
    """Two classes that read one patch each of a 32 px image."""
    return LinearOnPatch(((8, 16), (16, 0)), (40.0, -25.0))


@pytest.fixture(scope="session")
def blind() -> Blind:
    return Blind()
