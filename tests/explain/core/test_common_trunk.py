"""Models fine-tuned from one backbone: explained together, their common blocks run once and the maps are the same."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lidc_xai.explain import explain, explain_each
from lidc_xai.explain.networks.common_trunk import common_blocks
from lidc_xai.models import build_model

DEPTH = 4


def tuned(base: nn.Module, learned: int, seed: int) -> nn.Module:
    """A copy whose last ``learned`` blocks, norm and head moved a little."""
    copied = deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    network = getattr(copied, "backbone", copied)
    parts = [*network.blocks[len(network.blocks) - learned :], network.norm, getattr(copied, "head", network.head)]
    with torch.no_grad():
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return copied


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=5
    ).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def flops(call: Callable[[], object]) -> int:
    """Floating point operations of a call's matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("learned", [1, 2, DEPTH])
def test_maps_are_those_of_each_model_alone(base: nn.Module, images: torch.Tensor, learned: int) -> None:
    models = [tuned(base, learned, seed) for seed in range(3)]
    methods = ["cdam", "attention_rollout", "saliency", "relevance_propagation", "smooth_cdam"]
    together = explain_each(models, images, [0, 3], methods, samples=3)
    assert common_blocks(models) == [DEPTH - 1, *[DEPTH - learned] * 2]
    for model, found in zip(models, together, strict=True):
        alone = explain(model, images, [0, 3], methods, samples=3)
        for name in methods:
            assert torch.allclose(found[name].relevance, alone[name].relevance, rtol=1e-5, atol=1e-8), name
            assert torch.allclose(found[name].values, alone[name].values, rtol=1e-5, atol=1e-7)


def test_the_common_blocks_run_once(base: nn.Module, images: torch.Tensor) -> None:
    models = [tuned(base, 1, seed) for seed in range(3)]
    common = common_blocks(models)  # before counting: the counter hooks every module, which is seen
    explain_each(models, images, 0)  # what is found out about each model, once, is another matter
    alone = flops(lambda: [explain(model, images, 0, ["cdam"]) for model in models])
    together = flops(lambda: explain_each(models, images, 0, common=common))
    with torch.no_grad():
        trunk = flops(lambda: base.blocks[:-1](base._pos_embed(base.patch_embed(images))))
    assert trunk > 0.5 * alone / 3
    assert alone - together == 2 * trunk


def test_what_differs_before_the_blocks_is_seen(base: nn.Module) -> None:
    other = deepcopy(base)
    with torch.no_grad():
        other.pos_embed[0, 3, 0] += 1e-3
    assert common_blocks([base, other]) == [DEPTH - 1, 0]
    hooked = deepcopy(base)
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    assert common_blocks([base, hooked]) == [DEPTH - 1, 0]
    assert common_blocks([hooked, base]) == [0, 0]
    heads = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=DEPTH, num_heads=4, num_classes=5
    ).eval()
    heads.load_state_dict(base.state_dict())
    assert common_blocks([base, heads]) == [DEPTH - 1, 0]  # the same weights, other heads
    assert common_blocks([base, timm.create_model("test_resnet").eval()]) == [DEPTH - 1, 0]
    assert common_blocks([]) == []


def test_models_of_other_architectures_are_explained_beside_each_other(images: torch.Tensor) -> None:
    models = [build_model("vit_nodule_p8", ["malignancy"], size=32, seed=0), build_model("vit_small64_p8", size=32)]
    found = explain_each(models, images)
    for model, one in zip(models, found, strict=True):
        assert torch.allclose(one["cdam"].relevance, explain(model, images).relevance)
