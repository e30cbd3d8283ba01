"""Which layer is read by default in the networks of timm and torchvision, and in which layout."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.convnext import CNBlockConfig

from lidc_xai.errors import ModelError
from lidc_xai.explain import explain, list_methods
from lidc_xai.explain.pixels.cnn import _KNOWN

SIZE = (64, 96)


def small_vgg() -> nn.Module:
    features = vgg.make_layers([8, "M", 8, "M", 12, "M"], batch_norm=True)
    return nn.Sequential(
        OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten(), head=nn.Linear(48, 5))
    )


def small_swin(size: tuple[int, int] = SIZE) -> SwinTransformer:
    return SwinTransformer(
        size, patch_size=4, window_size=4, embed_dim=12, depths=(1, 1, 2), num_heads=(1, 2, 4), num_classes=5
    )


def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 1, 2], [1, 2, 4], [4, 4], num_classes=5)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str, tuple[int, int]]] = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "layer4.1", "layer4.1", (2, 3)),
    "torchvision vgg, before its ReLU": (small_vgg, "features.8", "features.10", (16, 24)),
    "torchvision efficientnet": (
        lambda: torchvision.models.efficientnet_b0(num_classes=5), "features.8.0", "features.8.0", (2, 3),
    ),
    "torchvision convnext": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=5),
        "features.3.1", "features.3.1", (8, 12),
    ),
    "torchvision densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5),
        "features.denseblock2", "features.denseblock2", (8, 12),
    ),
    "torchvision swin": (torchvision_swin, "features.5.1.norm2", "features.5.1.norm2", (4, 6)),
    "timm resnet": (lambda: timm.create_model("resnet10t", num_classes=5), "layer4.0", "layer4.0", (2, 3)),
    "timm efficientnet": (
        lambda: timm.create_model("efficientnet_lite0", num_classes=5), "conv_head", "bn2.act", (2, 3),
    ),
    "timm convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=5), "stages.3.blocks.1", "stages.3.blocks.1", (2, 3),
    ),
    "timm swin": (small_swin, "layers.2.blocks.1.norm2", "layers.2.blocks.1.norm2", (4, 6)),
}  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_default_layers(batch: Tensor, name: str) -> None:
    torch.manual_seed(0)
    make, layer, rectified, grid = NETWORKS[name]
    model = make().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.05 * torch.randn_like(parameter)
    maps = explain(model, batch, [0, 4], ["gradcam", "linear_approximation", "gradcam_plus_plus"])
    for method, found in maps.items():
        assert found.relevance.shape == (2, 2, *grid)
        assert found.relevance.isfinite().all()
        assert found.extras["layer"] == (rectified if method == "gradcam_plus_plus" else layer)


@pytest.mark.parametrize("layer", ["layers.2", "layers.2.blocks.0.norm1"])
def test_channels_last_is_read_the_right_way_round(naive: SimpleNamespace, layer: str) -> None:
    """Swin keeps (B, h, w, K), and inside its blocks (B, h·w, K); the grid is not square."""
    torch.manual_seed(1)
    model = small_swin().double().eval()
    image = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    found = explain(model, image, 2, ["gradcam", "linear_approximation"], layer=layer)
    if layer == "layers.2":
        trunk = nn.Sequential(model.patch_embed, model.layers)
        a, g = naive.cam_parts(
            lambda x: trunk(x), lambda z: model.forward_head(model.norm(z)), image, naive.score("logit", 2)
        )
        a, g = a.movedim(-1, 0), g.movedim(-1, 0)
    else:
        seen: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o))
        output = model(image)
        handle.remove()
        (slope,) = torch.autograd.grad(output[0, 2], seen[0])
        a, g = (x.detach().reshape(4, 6, -1).movedim(-1, 0) for x in (seen[0], slope))
    assert a.shape == (48, 4, 6)
    torch.testing.assert_close(found["gradcam"].relevance[0, 0], naive.gradcam(a, g), rtol=0, atol=1e-9)
    wanted = naive.linear_approximation(a, g)
    torch.testing.assert_close(found["linear_approximation"].relevance[0, 0], wanted, rtol=0, atol=1e-9)


def test_swin_can_do_what_needs_no_tokens(batch: Tensor) -> None:
    model = small_swin()
    able = list_methods(model)
    assert {"gradcam", "xgradcam", "linear_approximation", "saliency", "integrated_gradients"} <= set(able)
    assert not {"attention", "cdam", "attention_rollout", "reciprocam"} & set(able)
    with pytest.raises(
        ModelError, match="attention cannot explain this model: SwinTransformer has no attention of patches"
    ):
        explain(model, batch, 0, "attention")
    with pytest.raises(ModelError, match="windows"):
        explain(model, batch, 0, "fullgrad")


def test_the_search_is_made_once_and_again_when_the_model_changes(batch: Tensor) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    model(batch)
    assert explain(model, batch, 0, "gradcam").extras["layer"] == "2"
    first = _KNOWN[model]
    explain(model, batch, 1, "gradcam")
    assert _KNOWN[model] is first
    model[2] = nn.MaxPool2d(3, 2)
    assert explain(model, batch, 0, "gradcam").extras["layer"] == "0"


def test_a_network_without_convolution_is_refused(batch: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 3))
    assert "gradcam" not in list_methods(model)
    with pytest.raises(ModelError, match="Sequential has no convolution"):
        explain(model, batch, 0, "gradcam")
    only_pixels = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(ModelError, match="no convolution that gives a map"):
        explain(only_pixels, batch, 0, "gradcam")
