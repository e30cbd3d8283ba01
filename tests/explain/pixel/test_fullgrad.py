"""FullGrad: every term by hand, exact completeness on piecewise linear networks, and its gap elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import LogOdds, MaxContrast, MeanContrast, Probability, explain

CLOSE = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize(("kind", "target"), [("logit", int), ("log_odds", LogOdds), ("max_contrast", MaxContrast)])
def test_sums_of_all_terms_equal_those_by_hand(
    naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor, kind: str, target: type
) -> None:
    found = explain(cnn, images, [target(1), target(4)], "fullgrad", max_batch=2)
    assert found.relevance.shape == (3, 2, 16, 24)
    for b, image in enumerate(images):
        for k, t in enumerate((1, 4)):
            value = naive.score(kind, t)
            maps, flat = naive.bias_terms(cnn, image[None], value)
            total = (naive.gradient(cnn, image[None], value) * image).sum() + sum(term.sum() for term in maps)
            torch.testing.assert_close(found.relevance[b, k].sum(), total, **CLOSE)
            torch.testing.assert_close(found.extras["flat"][b, k], flat, **CLOSE)


@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_a_piecewise_linear_network_is_explained_completely(
    request: pytest.FixtureRequest, images: Tensor, model: str
) -> None:
    found = explain(request.getfixturevalue(model), images, [0, 1, 2, MeanContrast(3), MaxContrast(2)], "fullgrad")
    total = found.relevance.sum((-2, -1)) + found.extras["flat"]
    torch.testing.assert_close(total, found.values, **CLOSE)
    assert found.extras["residual"].abs().max() < 1e-9


def test_other_targets_are_complete_for_their_linearisation(cnn: nn.Sequential, images: Tensor) -> None:
    found = explain(cnn, images, [Probability(1), LogOdds(1)], "fullgrad")
    assert found.extras["residual"].abs().max() < 1e-9
    logits = cnn(images).detach().requires_grad_()
    (slope,) = torch.autograd.grad(logits.softmax(-1)[:, 1].sum(), logits)
    total = found.relevance.sum((-2, -1)) + found.extras["flat"]
    torch.testing.assert_close(total[:, 0], (slope * logits).sum(-1).detach(), **CLOSE)


def test_a_bias_term_stays_where_it_was(images: Tensor) -> None:
    """One convolution with stride 4: its bias term is a 4 × 6 map; each cell's mass stays around that cell."""
    weight = torch.randn(1, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 1, 4, stride=4), nn.Flatten(), nn.Linear(24, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(2.0)
        net[2].weight.copy_(weight)
    relevance = explain(net, images[:1], 0, "fullgrad").relevance[0, 0]
    torch.testing.assert_close(relevance.sum(), 2 * weight.sum(), **CLOSE)
    alone = torch.zeros_like(weight)
    alone[0, 8] = 1.0  # row 1, column 2
    with torch.no_grad():
        net[2].weight.copy_(alone)
    relevance = explain(net, images[:1], 0, "fullgrad").relevance[0, 0]
    assert divmod(int(relevance.argmax()), 24)[0] in range(4, 8)
    assert divmod(int(relevance.argmax()), 24)[1] in range(8, 12)
    outside = torch.ones_like(relevance, dtype=torch.bool)
    outside[2:10, 6:14] = False
    assert relevance[outside].abs().max() == 0


def test_the_public_codes_map(naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor) -> None:
    def scaled(term: Tensor) -> Tensor:
        term = term.abs() - term.abs().min()
        return term / (term.max() + 1e-6)

    found = explain(cnn, images, [2], "fullgrad", post="abs_minmax", max_batch=2)
    assert "residual" not in found.extras
    for b, image in enumerate(images):
        value = naive.score("logit", 2)
        wanted = scaled(naive.gradient(cnn, image[None], value) * image).sum(0)
        for term in naive.bias_terms(cnn, image[None], value)[0]:
            full = nn.functional.interpolate(scaled(term)[None], size=(16, 24), mode="bilinear", align_corners=True)
            wanted = wanted + full[0].sum(0)
        torch.testing.assert_close(found.relevance[b, 0], wanted, **CLOSE)


def test_a_vit_is_explained_on_its_tokens_with_the_gap_reported(vit: nn.Module, images: Tensor) -> None:
    found = explain(vit, images, [0, 3], "fullgrad", max_batch=2)
    assert found.relevance.shape == (3, 2, 4, 6)
    gap = found.relevance.sum((-2, -1)) + found.extras["flat"] - found.values
    torch.testing.assert_close(found.extras["residual"], gap, **CLOSE)
    assert gap.abs().max() > 1e-3, "a ViT is not piecewise linear"


def test_a_linear_vit_has_no_gap(images: Tensor) -> None:
    """Without norms, with equal attention and ReLU, a ViT is piecewise linear: a missed bias leaves a gap."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(3)
    vit = VisionTransformer(
        (16, 24), patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=4, norm_layer=nn.Identity,
        act_layer=nn.ReLU, global_pool="avg", reg_tokens=2,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for block in vit.blocks:  # equal attention everywhere: no query, no key
            block.attn.qkv.weight[:24] = 0
            block.attn.qkv.bias[:24] = 0
    found = explain(vit, images, [0, 3], "fullgrad")
    assert found.extras["residual"].abs().max() < 1e-9
    torch.testing.assert_close(found.relevance.sum((-2, -1)) + found.extras["flat"], found.values, **CLOSE)


def test_torchvision_vits_input_biases_are_seen(images: Tensor) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(4)
    vit = VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=4, norm_layer=lambda width: nn.Identity()).double().eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for layer in vit.encoder.layers:
            layer.self_attention.in_proj_weight[:24] = 0
            layer.self_attention.in_proj_bias[:24] = 0
            layer.mlp[1] = nn.ReLU()
    found = explain(vit, images[..., :16], [0, 3], "fullgrad")
    assert found.extras["residual"].abs().max() < 1e-9


def test_activations_inside_a_norm_layer_are_no_obstacle(images: Tensor) -> None:
    """timm's BatchNormAct2d returns the activation's output: the bias acts before it."""
    from timm.layers import BatchNormAct2d

    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), BatchNormAct2d(5), nn.Conv2d(5, 6, 3), BatchNormAct2d(6), nn.Flatten(), nn.LazyLinear(3)
    ).double()
    net(images)
    net.eval()
    with torch.no_grad():
        for module in (net[1], net[3]):
            module.running_mean.normal_()
            module.bias.normal_()
    assert explain(net, images, [0, 2], "fullgrad").extras["residual"].abs().max() < 1e-9


def test_what_has_no_fullgrad_is_refused(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="post='abs_minmax' is defined for convolutions"):
        explain(vit, images, 1, "fullgrad", post="abs_minmax")
    moving = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.LazyLinear(3)
    ).double()
    moving(images)
    with pytest.raises(ModelError, match="batch norm without running statistics"):
        explain(moving, images, 1, "fullgrad")
