"""The caller's model, gradients, hooks and random state are found as they were left, for every method."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain import concept_vector, explain, list_methods

QUICK = {
    "smooth_cdam": {"samples": 2},
    "integrated_cdam": {"steps": 2},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
}
METHODS = [name for name in list_methods() if name not in ("gradcam_plus_plus", "rsi_gradcam")]
LRP = ("partial_lrp", "transformer_attribution")


def state(model: nn.Module) -> list[Any]:
    modules = [
        (m.training, *(len(getattr(m, hooks)) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")))
        for m in model.modules()
    ]
    return [
        modules,
        [(p.requires_grad, id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    def equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        return a[:2] == b[:2] and (a[2] is b[2] is None or torch.equal(a[2], b[2]))

    return before[0] == after[0] and all(equal(a, b) for a, b in zip(before[1], after[1], strict=True))


@pytest.fixture
def used(vit: nn.Module, images: Tensor) -> nn.Module:
    """In train mode but for one block, half frozen, with gradients and a hook of its own."""
    model: Any = vit.train()
    model.blocks[0].eval()
    for parameter in model.patch_embed.parameters():
        parameter.requires_grad_(False)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: None)
    model(images).sum().backward()
    return model


@pytest.mark.parametrize("around", ["plain", "no_grad", "inference_mode", "autocast"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(used: Any, images: Tensor, method: str, around: str) -> None:
    if method in LRP:  # whose rules stand on blocks as they were written
        used.blocks[1]._forward_hooks.clear()
    plain = explain(deepcopy(used), images, [1, 3], method, **QUICK.get(method, {}))
    before, random_state = state(used), torch.get_rng_state()
    contexts: dict[str, Any] = {
        "no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "plain": torch.enable_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }  # fmt: skip
    with contexts[around]():
        found = explain(used, images.clone(), [1, 3], method, **QUICK.get(method, {}))
        grad_mode = torch.is_grad_enabled()
    assert grad_mode == (around in ("plain", "autocast"))
    assert same(before, state(used))
    assert torch.get_rng_state().equal(random_state)
    assert found.relevance.dtype == torch.float32
    assert not found.relevance.requires_grad
    assert torch.allclose(found.relevance, plain.relevance, rtol=1e-4, atol=1e-7)
    assert torch.allclose(found.values, plain.values, atol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", METHODS)
def test_an_exception_leaves_nothing_behind(
    used: Any, images: Tensor, method: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(x: Tensor) -> Tensor:
        raise error("stopped on the way")

    monkeypatch.setattr(used.norm if method != "attention" else used.blocks[1].norm1, "forward", stop)
    before, random_state = state(used), torch.get_rng_state()
    with pytest.raises(ModelError if error is RuntimeError else error, match="stopped on the way"):
        explain(used, images, [1, 3], method, **QUICK.get(method, {}))
    assert same(before, state(used))
    assert torch.get_rng_state().equal(random_state)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_frozen_model_is_explained_and_stays_frozen(vit: nn.Module, images: Tensor) -> None:
    expected = explain(vit, images).relevance
    vit.requires_grad_(False)
    assert torch.equal(explain(vit, images).relevance, expected)
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_images_that_want_gradients_keep_them_to_themselves(vit: nn.Module, images: Tensor) -> None:
    images = images.clone().requires_grad_()
    for method in ("cdam", "saliency"):
        explain(vit, images, method=method)
    assert images.grad is None


def test_weights_made_in_inference_mode_are_refused_with_the_remedy(images: Tensor) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with pytest.raises(ModelError, match=r"made inside torch\.inference_mode"):
        explain(model, images, method="saliency")


def test_concept_vector_leaves_nothing_behind(used: nn.Module, images: Tensor) -> None:
    before = state(used)
    with torch.inference_mode():
        found = concept_vector(used, images)
    assert same(before, state(used))
    assert not found.requires_grad


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_seen_through(vit: nn.Module, images: Tensor, wrap: Any) -> None:
    wrapped = wrap(vit)
    assert list_methods(wrapped) == list_methods(vit)
    assert torch.allclose(explain(wrapped, images).relevance, explain(vit, images).relevance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_come_to_the_models_precision(vit: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    expected = explain(vit, images).relevance
    found = explain(vit.to(dtype), images).relevance
    assert found.dtype == (torch.float32 if dtype is torch.bfloat16 else torch.float64)
    assert torch.allclose(found.float(), expected, atol=0.1 * float(expected.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(vit: nn.Module, images: Tensor, method: str) -> None:
    vit, images = vit.double(), images.double()
    options = QUICK.get(method, {}) | ({"sigma": 0.0} if "smooth" in method else {})  # its noise is the device's own
    expected = explain(vit, images, [1, 3], method, **options)
    before = torch.cuda.get_rng_state()
    found = explain(vit.cuda(), images, [1, 3], method, **options)
    assert found.relevance.is_cuda
    assert torch.cuda.get_rng_state().equal(before)
    assert torch.allclose(found.relevance.cpu(), expected.relevance, rtol=1e-6, atol=1e-9)
