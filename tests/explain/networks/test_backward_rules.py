"""Changed backward passes of single operations, against automatic differentiation with what is held fixed detached."""

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.explain.networks.backward_rules import centred_norm, layer_norm, scaled, secant


def gradient(function, x: Tensor, seed: int = 1) -> Tensor:
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dims", [(-1,), (-2, -1)])
def test_a_norm_is_linear_where_its_deviation_is_held_fixed(x: Tensor, dims: tuple[int, ...], centred: bool) -> None:
    def held(value: Tensor) -> Tensor:
        rest = value - value.mean(dims, keepdim=True) if centred else value
        return rest * (rest.square().mean(dims, keepdim=True) + 1e-5).rsqrt().detach()

    assert torch.equal(centred_norm(x, dims, 1e-5, centred=centred), held(x))
    assert torch.allclose(gradient(lambda v: centred_norm(v, dims, 1e-5, centred=centred), x), gradient(held, x))


def test_a_layer_norm_likewise_with_its_weights(x: Tensor) -> None:
    weight, bias = torch.rand(5, dtype=x.dtype) + 0.5, torch.rand(5, dtype=x.dtype)

    def held(value: Tensor) -> Tensor:
        rest = value - value.mean(-1, keepdim=True)
        return rest * (rest.square().mean(-1, keepdim=True) + 1e-5).rsqrt().detach() * weight + bias

    ours = gradient(lambda v: layer_norm(v, weight, bias, (5,), 1e-5), x)
    assert torch.allclose(ours, gradient(held, x))
    assert torch.allclose(layer_norm(x, weight, bias, (5,), 1e-5), held(x))


@pytest.mark.parametrize("activation", [nn.functional.gelu, nn.functional.silu, torch.tanh])
def test_an_activation_is_the_line_through_the_origin(x: Tensor, activation) -> None:
    x[0, 0, 0] = 0.0
    slope = torch.where(x == 0, torch.zeros_like(x), activation(x) / x)
    at_zero = torch.zeros((), dtype=x.dtype, requires_grad=True)
    slope[0, 0, 0] = torch.autograd.grad(activation(at_zero), at_zero)[0]
    assert slope[0, 0, 0] >= 0.5  # the tangent, where the line through the origin is 0/0
    assert torch.allclose(gradient(lambda v: secant(activation, v), x), gradient(lambda v: v * slope, x))


def test_a_factor_on_the_way_back_alone(x: Tensor) -> None:
    assert torch.equal(scaled(x, 0.25), x)
    assert torch.allclose(gradient(lambda v: scaled(v, 0.25), x), 0.25 * gradient(lambda v: v, x))
