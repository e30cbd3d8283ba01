"""Operations whose value is the usual one and whose gradient is another: the building blocks of AttnLRP and LibraGrad.

    scaled(x, c)      x                       gradient c·g                (½ for each factor of a product)
    secant(φ, x)      φ(x)                    g ⊙ φ(x)/x                  (φ′(0) where x = 0)
    centred_norm      LayerNorm, RMSNorm,     the standard deviation is a constant; mean, weight, bias stay linear
                      GroupNorm
    gamma_linear,     x Wᵀ + b, conv(x, W)    the γ rule of LRP, generalised to inputs and outputs of either sign
    gamma_conv2d

γ rule. With W₊ = W + γ max(W, 0), W₋ = W + γ min(W, 0), z = Wx + b and the same for b, x⁺ and x⁻ the parts of x:

    z ≥ 0:  z_γ = x⁺W₊ᵀ + x⁻W₋ᵀ + b₊        z < 0:  z_γ = x⁺W₋ᵀ + x⁻W₊ᵀ + b₋

an output's relevance R = z g is shared out in proportion to the terms of its z_γ. Since |z_γ| ≥ |z| with the same sign,
the share ρ = z/z_γ lies in [0, 1], no stabiliser is needed, and γ = 0 is the plain gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by ``factor``."""
    return _Scaled.apply(x, factor) if x.requires_grad else x


class _Secant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        y = function(x)
        slope = (y / x).nan_to_num_(nan=_slope_at_zero(function, x), posinf=torch.inf, neginf=-torch.inf)  # 0/0 alone
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


def _slope_at_zero(function: Callable[[Tensor], Tensor], like: Tensor) -> float:
    with torch.enable_grad():
        zero = torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True)
        return float(torch.autograd.grad(function(zero), zero)[0])


def secant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """φ(x) of an element-wise φ with φ(0) = 0, read as x times the constant φ(x)/x."""
    return _Secant.apply(x, function)


class _CentredNorm(torch.autograd.Function):
    """y = (x − mean)/σ over the last dimensions or a group's, then weight and bias; RMSNorm has no mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], eps: float, centred: bool) -> Tensor:
        rest = x - x.mean(dims, keepdim=True) if centred else x
        over = (rest.square().mean(dims, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(over)
        ctx.dims, ctx.centred = dims, centred
        return rest * over

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (over,) = ctx.saved_tensors
        g = grads[0] * over
        return (g - g.mean(ctx.dims, keepdim=True) if ctx.centred else g), None, None, None


def centred_norm(x: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool = True) -> Tensor:
    """x less its mean over ``dims``, divided by its standard deviation there, which is a constant to the gradient."""
    return _CentredNorm.apply(x, dims, eps, centred)


class _LayerNorm(torch.autograd.Function):
    """The library's own kernel forth; back, the same with σ as a constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
    ) -> Tensor:
        y, _, over = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(over, weight)
        ctx.dims = tuple(range(-len(shape), 0))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        over, weight = ctx.saved_tensors
        g = grads[0] * over if weight is None else grads[0] * weight * over
        bias = grads[0].flatten(0, -1 - len(ctx.dims)).sum(0) if ctx.needs_input_grad[2] else None
        return g - g.mean(ctx.dims, keepdim=True), None, bias, None, None


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float) -> Tensor:
    """LayerNorm over the last dimensions, ``shape``; its standard deviation is a constant to the gradient."""
    return _LayerNorm.apply(x, weight, bias, shape, eps)


Product = Callable[[Tensor, Tensor], Tensor]
"""(x, W) → z without bias."""


class _Gamma(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: float, forth: Product, back: Product
    ) -> Tensor:
        more, less = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
        up, down = x.clamp(min=0), x.clamp(max=0)
        z, above, below = forth(x, weight), forth(up, more) + forth(down, less), forth(up, less) + forth(down, more)
        if bias is not None:
            z, above = z + bias, above + bias + gamma * bias.clamp(min=0)
            below = below + bias + gamma * bias.clamp(max=0)
        grown = torch.where(z >= 0, above, below)
        share = torch.where(grown == 0, torch.ones_like(z), z / grown)
        ctx.save_for_backward(x >= 0, z >= 0, share, more, less)
        ctx.back = back
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        up, above, share, more, less = ctx.saved_tensors
        s = grads[0] * share
        high, low = s.masked_fill(~above, 0), s.masked_fill(above, 0)
        back = ctx.back
        at_up, at_down = back(high, more) + back(low, less), back(high, less) + back(low, more)
        return torch.where(up, at_up, at_down), None, None, None, None, None


def gamma_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    """x Wᵀ + b with the γ rule as its gradient towards x."""
    return _Gamma.apply(x, weight, bias, gamma, F.linear, lambda g, w: g @ w)


def gamma_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: float, **how: Any) -> Tensor:
    """conv(x, W) + b with the γ rule; ``how``: stride, padding (numbers), dilation, groups."""

    def back(g: Tensor, w: Tensor) -> Tensor:
        return conv2d_input(tuple(x.shape), w, g, **how)

    column = None if bias is None else bias.view(-1, 1, 1)
    return _Gamma.apply(x, weight, column, gamma, lambda a, w: F.conv2d(a, w, **how), back)
