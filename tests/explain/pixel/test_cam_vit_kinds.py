"""Gradients and CAMs on every kind of Vision Transformer, against hooks on the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidc_xai.explain import LogOdds, explain

SIZE, GRID = (16, 24), (4, 6)


def small(kind: type[VisionTransformer] = VisionTransformer, **more: object) -> nn.Module:
    return kind(SIZE, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5, **more)


def from_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer as Theirs

    return Theirs(16, 4, 3, 3, 24, 48, num_classes=5)


KINDS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "cls": (small, 1, "blocks.{}.norm1"),
    "registers": (lambda: small(reg_tokens=4), 5, "blocks.{}.norm1"),
    "registers without positions": (
        lambda: small(reg_tokens=2, no_embed_class=True, init_values=0.1), 3, "blocks.{}.norm1",
    ),
    "mean pooling without cls": (lambda: small(class_token=False, global_pool="avg"), 0, "blocks.{}.norm1"),
    "mean pooling with fc_norm": (lambda: small(global_pool="avg", fc_norm=True), 1, "blocks.{}.norm1"),
    "attention pooling": (lambda: small(global_pool="map", class_token=False), 0, "blocks.{}.norm1"),
    "normalised queries": (lambda: small(qk_norm=True), 1, "blocks.{}.norm1"),
    "distilled": (lambda: small(VisionTransformerDistilled), 2, "blocks.{}.norm1"),
    "torchvision": (from_torchvision, 1, "encoder.layers.encoder_layer_{}.ln_1"),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[nn.Module, int, str]:
    make, prefix, layer = KINDS[request.param]
    torch.manual_seed(6)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, prefix, layer


def test_maps_are_those_of_the_models_own_pass(
    naive: SimpleNamespace, images: Tensor, kind: tuple[nn.Module, int, str]
) -> None:
    model, prefix, name = kind
    grid = GRID if "blocks" in name else (4, 4)
    images = images[..., : 4 * grid[1]]
    for layer in (-1, 0):
        seen: list[Tensor] = []
        handle = model.get_submodule(name.format(layer % 3)).register_forward_hook(lambda m, i, o, s=seen: s.append(o))
        inputs = images.clone().requires_grad_()
        value = sum(naive.score("log_odds", 2)(row[None]) for row in model(inputs))
        handle.remove()
        slope, towards_pixels = torch.autograd.grad(value, [seen[0], inputs])
        found = explain(model, images, LogOdds(2), ["gradcam", "xgradcam", "linear_approximation"], layer=layer)
        saliency = explain(model, images, LogOdds(2), "saliency").relevance[:, 0]
        torch.testing.assert_close(saliency, towards_pixels.sum(1), rtol=0, atol=1e-9)
        for b in range(len(images)):
            a, g = (x[b, prefix:].detach().T.reshape(-1, *grid) for x in (seen[0], slope))
            for method, result in found.items():
                torch.testing.assert_close(result.relevance[b, 0], getattr(naive, method)(a, g), rtol=0, atol=1e-9)


def test_fullgrad_reports_its_gap(images: Tensor, kind: tuple[nn.Module, int, str]) -> None:
    model, _, name = kind
    images = images if "blocks" in name else images[..., :16]
    found = explain(model, images, [1, LogOdds(2)], "fullgrad")
    gap = found.relevance.sum((-2, -1)) + found.extras["flat"] - found.values
    torch.testing.assert_close(found.extras["residual"][:, 0], gap[:, 0], rtol=0, atol=1e-9)
    assert found.relevance.isfinite().all()
