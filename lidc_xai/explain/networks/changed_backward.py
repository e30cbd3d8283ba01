"""Run a network with its own forward pass and another backward pass: AttnLRP and LibraGrad, for any architecture.

The operations that a module calls are caught where they are called, so that the modules stay the caller's own, nothing
of theirs is replaced, and it does not matter who wrote them. What changes (METHODS: Achtibat et al. 2024, Mehri et al.
2025), on tensors that depend on the image:

| operation                              | "attn_lrp"                                    | "libra"             |
|----------------------------------------|-----------------------------------------------|---------------------|
| layer, RMS, group norm; √, 1/√, σ, ‖·‖ | the standard deviation is a constant          | the same            |
| activation φ, φ(0) = 0 (GELU, SiLU …)  | φ(x) = x·g, g = φ(x)/x a constant             | the same            |
| softmax(s q kᵀ) V                      | ½ to A, ½ to V; own gradient; ½ to q, ½ to k  | A is a constant     |
| product of two paths (gates)           | ½ to each                                     | the gate is constant|
| linear, convolution                    | plain, or the γ rule                          | plain               |

Everything else that is linear (sums, means, batch norm in eval mode, pooling, rotary positions, layer scale) keeps its
gradient; softmax and sigmoid, where they stay differentiable, too: the sigmoid is a softmax of two. After the pass the
recorded graph is read (``recorded_graph``): an operation without a rule is an error that names it, never a wrong map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.backward_rules import (
    centred_norm,
    gamma_conv2d,
    gamma_linear,
    layer_norm,
    scaled,
    secant,
)
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.recorded_graph import mark_product, refuse_unknown


@dataclass(frozen=True)
class Rules:
    """Which backward pass. ``detach``: the right column of the table; γ of linear layers and of convolutions."""

    detach: bool
    gamma_linear: float = 0.0
    gamma_conv: float = 0.0


LIBRA = Rules(detach=True)


class ChangedBackward(TorchFunctionMode):
    """Inside ``with ChangedBackward(rules):`` every operation of the network gets its rule."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None and torch.is_grad_enabled() and any(map(_moves, (*args, *kwargs.values()))):
            return rule(self.rules, func, args, kwargs)
        return func(*args, **kwargs)


def with_backward(rules: Rules | None, forward: Callable[[], Outputs]) -> Outputs:
    """``forward()``'s outputs, to be differentiated by ``rules`` (None: as they are).

    ``ModelError`` where an operation on the way has no rule.
    """
    if rules is None:
        return forward()
    with ChangedBackward(rules):
        outputs = forward()
    if outputs.values.requires_grad:
        refuse_unknown(outputs.values)
    return outputs


def _moves(x: Any) -> bool:
    """Whether a value depends on the image (the model's parameters ask for no gradient)."""
    if isinstance(x, list | tuple):
        return any(_moves(part) for part in x)
    return isinstance(x, Tensor) and x.requires_grad


def argument(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call that may be given by position or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


# --- norms -----------------------------------------------------------------------------------------------------------


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _layer_norm(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    get = partial(argument, args, kwargs)
    return layer_norm(
        get(0, "input"), get(2, "weight"), get(3, "bias"), tuple(get(1, "normalized_shape")), get(4, "eps", 1e-5)
    )


def _rms_norm(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    get = partial(argument, args, kwargs)
    x, shape, eps = get(0, "input"), tuple(get(1, "normalized_shape")), get(3, "eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = centred_norm(x, tuple(range(-len(shape), 0)), eps, centred=False)
    return _affine(y, get(2, "weight"), None, shape)


def _group_norm(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    get = partial(argument, args, kwargs)
    x, groups = get(0, "input"), get(1, "num_groups")
    y = centred_norm(x.unflatten(1, (groups, -1)), tuple(range(2, x.ndim + 1)), get(4, "eps", 1e-5))
    return _affine(y.flatten(1, 2), get(2, "weight"), get(3, "bias"), (-1, *[1] * (x.ndim - 2)))


def _unit_length(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    """F.normalize: x over a length that is a constant."""
    x = argument(args, kwargs, 0, "input")
    with torch.no_grad():
        y = func(*args, **kwargs)
    still = x.detach()
    return x * torch.where(still == 0, torch.zeros_like(y), y / still)


def _constant(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return func(*args, **kwargs)


def _power(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    """x ** −½ and √x are denominators of norms; other powers keep their gradient, and are refused if it is used."""
    exponent = argument(args, kwargs, 1, "exponent")
    return _constant(rules, func, args, kwargs) if exponent in (0.5, -0.5) else func(*args, **kwargs)


# --- activations -----------------------------------------------------------------------------------------------------


def _activation(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    """φ(x) = x·g. A function that changes its input in place gets a copy: the gradient needs the input."""
    x = argument(args, kwargs, 0, "input")
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    in_place = func.__name__.endswith("_") or rest.get("inplace", False) or any(arg is True for arg in args[1:])

    def phi(value: Tensor) -> Tensor:
        return func(value.clone() if in_place else value, *args[1:], **rest)

    y = secant(phi, x)
    y._gate = x  # type: ignore[attr-defined]
    return y


def _own_gradient(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Sigmoids: the gradient stays, and a product with the result knows it for a gate."""
    x = argument(args, kwargs, 0, "input")
    y = func(x.clone(), *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    y._gate = getattr(x, "_multiple_of", x)
    return y


def _same_gate(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    """A gate that is reshaped is a gate."""
    y = func(*args, **kwargs)
    source = getattr(args[0], "_gate", None) if args and isinstance(args[0], Tensor) else None
    if source is not None and isinstance(y, Tensor):
        y._gate = source  # type: ignore[attr-defined]
    return y


# --- products --------------------------------------------------------------------------------------------------------


def _product(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    """a ⊙ b, where both depend on the image."""
    if len(args) < 2 or not (_moves(args[0]) and _moves(args[1])) or args[0] is args[1]:
        y = func(*args, **kwargs)
        if len(args) == 2 and any(isinstance(arg, int | float) for arg in args):
            y._multiple_of = next(arg for arg in args if isinstance(arg, Tensor))  # as in x·σ(1.702 x)
        return y
    a, b = args[:2]
    if getattr(a, "_gate", None) is b:
        return a.detach() * b  # x·σ(x): an activation, spelled out
    if getattr(b, "_gate", None) is a:
        return a * b.detach()
    if not rules.detach:
        return mark_product(scaled(a, 0.5) * scaled(b, 0.5))
    gates = [getattr(x, "_gate", None) is not None for x in (a, b)]
    if gates[0] == gates[1]:
        gates = [a.numel() < b.numel(), b.numel() < a.numel()]
    if gates[0] == gates[1]:
        raise ModelError("it multiplies two paths of which neither is a gate (an activation's output, or a scale)")
    return a.detach() * b if gates[0] else a * b.detach()


def _matrix_product(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    """A V or q kᵀ written out, or an einsum of two tensors."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    if rules.detach or sum(map(_moves, tensors)) < 2:
        return func(*args, **kwargs)
    return mark_product(func(*(scaled(x, 0.5) if isinstance(x, Tensor) else x for x in args), **kwargs))


def _einsum(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    return _matrix_product(rules, func, (args[0], *operands), kwargs)


def _softmax(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    return _constant(rules, func, args, kwargs) if rules.detach else func(*args, **kwargs)


def _attention(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    q, k, v = (argument(args, kwargs, place, name) for place, name in enumerate(("query", "key", "value")))
    mask = argument(args, kwargs, 3, "attn_mask")
    rest = {key: value for key, value in kwargs.items() if key not in ("query", "key", "value", "attn_mask")}
    rest |= dict(zip(("dropout_p", "is_causal"), args[4:], strict=False))
    if rules.detach:
        mask = None if mask is None else mask.detach()
        return F.scaled_dot_product_attention(q.detach(), k.detach(), v, attn_mask=mask, **rest)
    mask = None if mask is None else scaled(mask, 0.5)
    q, k, v = scaled(q, 0.25), scaled(k, 0.25), scaled(v, 0.5)
    return mark_product(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **rest))


def _multi_head(rules: Rules, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """F.multi_head_attention_forward (torch's own layer, tokens first) from its parts."""
    names = (
        "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k",
        "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias",
    )  # fmt: skip
    given = {**kwargs, **dict(zip(names, args, strict=False))}
    unusual = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "use_separate_proj_weight")
    if any(given.get(name) is not None and given.get(name) is not False for name in unusual):
        raise ModelError("its MultiheadAttention has masks, extra keys or separate projections")
    weights = given["in_proj_weight"].chunk(3)
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    heads = given["num_heads"]
    q, k, v = (
        _linear(rules, F.linear, (given[name], weight, bias), {}).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
    )
    mixed = _attention(rules, None, (q, k, v), {}).permute(2, 0, 1, 3).flatten(-2)
    return _linear(rules, F.linear, (mixed, given["out_proj_weight"], given["out_proj_bias"]), {}), None


# --- linear operations -----------------------------------------------------------------------------------------------


def _linear(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    if not rules.gamma_linear:
        return func(*args, **kwargs)
    x, weight, bias = (argument(args, kwargs, place, name) for place, name in enumerate(("input", "weight", "bias")))
    return gamma_linear(x, weight, bias, rules.gamma_linear)


def _conv2d(rules: Rules, func: Any, args: Any, kwargs: Any) -> Tensor:
    if not rules.gamma_conv:
        return func(*args, **kwargs)
    get = partial(argument, args, kwargs)
    x, weight, padding, dilation = get(0, "input"), get(1, "weight"), get(4, "padding", 0), get(5, "dilation", 1)
    if padding == "same":
        dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
        total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    how = {"stride": get(3, "stride", 1), "padding": 0 if isinstance(padding, str) else padding}
    how |= {"dilation": dilation, "groups": get(6, "groups", 1)}
    return gamma_conv2d(x, weight, get(2, "bias"), rules.gamma_conv, **how)


def _no_gamma(rules: Rules, func: Any, args: Any, kwargs: Any) -> Any:
    if rules.gamma_conv:
        raise ModelError(f"there is no γ rule for {func.__name__}; use gamma_conv=0")
    return func(*args, **kwargs)


Rule = Callable[[Rules, Any, Any, Any], Any]


def _table() -> dict[Any, Rule]:
    functions: dict[Rule, list[Any]] = {
        _layer_norm: [F.layer_norm, torch.layer_norm],
        _rms_norm: [F.rms_norm, torch.rms_norm],
        _group_norm: [F.group_norm, torch.group_norm],
        _unit_length: [F.normalize],
        _constant: [
            *(getattr(place, name) for place in (torch, Tensor) for name in ("rsqrt", "sqrt", "std", "var", "norm")),
            torch.var_mean, torch.std_mean, torch.linalg.vector_norm, torch.linalg.norm,
        ],
        _power: [torch.pow, Tensor.pow, Tensor.__pow__],
        _activation: [
            F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.relu6, F.hardswish, F.hardtanh, F.tanh, F.softsign,
            F.tanhshrink, torch.tanh, Tensor.tanh, torch.tanh_, Tensor.tanh_, torch.selu, torch.celu,
        ],
        _own_gradient: [
            F.sigmoid, torch.sigmoid, Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_, F.hardsigmoid,
        ],
        _same_gate: [
            Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand, Tensor.expand_as, Tensor.unsqueeze,
            torch.unsqueeze, Tensor.flatten, torch.flatten, Tensor.transpose, torch.transpose, Tensor.permute,
            torch.permute, F.interpolate, Tensor.contiguous, F.dropout, Tensor.unflatten,
        ],
        _product: [torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__,
                   Tensor.__imul__],
        _matrix_product: [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm],
        _einsum: [torch.einsum],
        _softmax: [F.softmax, torch.softmax, Tensor.softmax],
        _attention: [F.scaled_dot_product_attention],
        _multi_head: [F.multi_head_attention_forward],
        _linear: [F.linear],
        _conv2d: [F.conv2d, torch.conv2d],
        _no_gamma: [F.conv1d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d],
    }  # fmt: skip
    return {function: rule for rule, several in functions.items() for function in several}


_RULES = _table()
