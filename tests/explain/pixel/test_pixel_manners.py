"""The caller's network is found as it was left, whatever a pixel or CAM method meets on its way."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain import explain

METHODS = (
    "saliency", "input_x_gradient", "smoothgrad", "integrated_gradients", "gradcam", "xgradcam", "gradcam_plus_plus",
    "linear_approximation", "rsi_gradcam", "fullgrad",
)  # fmt: skip
OPTIONS = {"samples": 2, "steps": 2, "baseline": "zero"}


def options_of(method: str) -> dict[str, object]:
    known = {"smoothgrad": ("samples",), "integrated_gradients": ("steps",), "rsi_gradcam": ("steps", "baseline")}
    return {name: OPTIONS[name] for name in known.get(method, ())}


def state(model: nn.Module) -> list[object]:
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    return [modules, [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()]]


@pytest.fixture
def network(cnn: nn.Sequential, images: Tensor) -> nn.Sequential:
    """Half frozen, in train mode, with gradients of its own."""
    model = deepcopy(cnn).train()
    model[1].eval()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model(images).sum().backward()
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("around", ["plain", "no_grad", "inference_mode", "autocast"])
def test_nothing_is_left_behind(
    network: nn.Sequential, cnn: nn.Module, images: Tensor, method: str, around: str
) -> None:
    contexts = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode(), "autocast": torch.autocast("cpu")}
    before, kept = state(network), images.clone()
    statistics = deepcopy(network.state_dict())
    random_state = torch.get_rng_state()
    with contexts.get(around, torch.enable_grad()):
        found = explain(
            network, images.clone() if around == "inference_mode" else images, [1, 3], method, **options_of(method)
        )
    assert state(network) == before
    assert images.equal(kept)
    assert torch.get_rng_state().equal(random_state)
    assert not found.relevance.requires_grad
    assert all(value.equal(network.state_dict()[name]) for name, value in statistics.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(
    network: nn.Sequential, images: Tensor, method: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("stopped on the way")

    monkeypatch.setattr(network[9], "forward", fail)
    before = state(network)
    with pytest.raises(ModelError if error is RuntimeError else error, match="stopped on the way"):
        explain(network, images, [1, 3], method, **options_of(method))
    assert state(network) == before


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_what_its_images_are_one_by_one(cnn: nn.Module, images: Tensor, method: str) -> None:
    classes = torch.tensor([[4, 1], [0, 2], [3, 3]])
    together = explain(cnn, images, classes, method, max_batch=2, **options_of(method))
    for b in range(len(images)):
        alone = explain(cnn, images[b : b + 1], classes[b : b + 1], method, **options_of(method))
        torch.testing.assert_close(together.relevance[b], alone.relevance[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(together.values[b], alone.values[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_network_in_single_precision(cnn: nn.Module, images: Tensor, method: str) -> None:
    single = deepcopy(cnn).float().requires_grad_(False)
    found = explain(single, images.float(), 1, method, **options_of(method))
    wanted = explain(cnn, images, 1, method, **options_of(method)).relevance
    assert found.relevance.dtype == torch.float32
    if method != "smoothgrad":  # whose draws differ with the precision
        torch.testing.assert_close(found.relevance.double(), wanted, rtol=1e-3, atol=1e-4)
