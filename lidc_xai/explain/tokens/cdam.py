"""The CDAM family: Brocki et al. 2023, arXiv 2312.02364.

    cdam             S_i = Σ_j t_ij ∂f/∂t_ij                              t = norm1(z) in the last block
    smooth_cdam      S_i = mean_k Σ_j t′_ij ∂f(t′)/∂t′_ij                 t′ = t + N(0, σ²), CLS included
    integrated_cdam  S_i = Σ_j t_ij ∫₀¹ ∂f(α t)/∂t_ij dα                  baseline 0, residual stream fixed

Exact engine (CLS-pooled head, plain softmax attention; u = ∂f/∂o, v⁰ and k⁰ without bias, o = Σ A_m V_m):

    S_i = Σ_h A_i [ v⁰_i·u  +  l_i (V_i − o)·u ]      value path + key path, l_i = s q·k⁰_i

so that S_i is proportional to A_i in every head: a token without attention has no relevance. Elsewhere, automatic
differentiation of the blocks from ``layer`` on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.explain.checks import check_gradient
from lidc_xai.explain.networks.context import Context, Result, gradients
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.quadrature import quadrature
from lidc_xai.explain.tokens.last_block import even_parts

PARTS = ("value", "key", "query")


def cdam(
    context: Context,
    *,
    parts: str | tuple[str, ...] | None = None,
    per_head: bool = False,
    tokens: str = "norm1",
    layer: int = -1,
) -> Result:
    """Tokens times gradient. ``parts`` keeps some of the paths through attention: the token as value, as key, as query
    (for a head that reads CLS, patches have no query path); the paper's equations 15 and 17 are ``parts="value"``.

    extras: ``per_head`` (B, T, H, gh, gw), if asked for; its sum over H is the relevance.
    """
    vit = context.anatomy
    wanted = _parts(parts)
    if context.use_exact(_no_closed_form(context, layer, tokens)):
        by_path, engine = _exact_paths(context), "exact"
    elif wanted is None and not per_head:
        x, f = _function(context, layer, tokens)
        x = x.requires_grad_()
        g = check_gradient(gradients(context.targets.scores(f(x)), x)).movedim(0, 1)
        return Result(vit.to_grid((x.detach().unsqueeze(1) * g).sum(-1), context.images), "autograd")
    else:
        by_path, engine = _autograd_paths(context, layer, tokens), "autograd"
    heads = reduce(torch.add, [path for name, path in by_path.items() if wanted is None or name in wanted])
    heads = vit.to_grid(heads, context.images)
    return Result(heads.sum(2), engine, {"per_head": heads} if per_head else {})


def _exact_paths(context: Context) -> dict[str, Tensor]:
    """S by path and head, (B, C, H, T), from the closed form. A patch is no query: that path is zero."""
    block = context.run.last
    row = block.row
    u = block.pull(context.targets)
    with torch.no_grad():
        value = block.value_scores(row.t, u)
        attention, logits = row.attention.unsqueeze(1), row.logits.unsqueeze(1)
        key = attention * logits * (value + block.bias_score(row, u))
        return {"value": attention * value, "key": key, "query": key.new_zeros(()).expand_as(key)}


def _autograd_paths(context: Context, layer: int, tokens: str) -> dict[str, Tensor]:
    """The same by automatic differentiation: t enters by its bias-free projections q⁰, k⁰, v⁰, in which it is linear,
    so that Σ_j t_ij ∂f/∂t_ij splits into ⟨q⁰_i, ∂f/∂q_i⟩ + ⟨k⁰_i, ∂f/∂k_i⟩ + ⟨v⁰_i, ∂f/∂v_i⟩ per head."""
    parts = context.run.parts
    if tokens != "norm1":
        raise UsageError("parts and per_head split the normalised tokens; they do not go with tokens='block_input'")
    if parts is None:
        raise UsageError(f"parts and per_head need queries, keys and values one by one: {context.run.no_parts}")
    index = parts.layer(layer)
    attention = parts.blocks[index].softmax
    if attention.gate is not None:
        raise UsageError("parts and per_head: this model's attention is gated by its tokens, a fourth path")
    z = context.run.tokens(layer)
    t = context.run.normed(layer)
    joined = [x.detach().requires_grad_() for x in attention.project(t)]
    zero = attention.project(torch.zeros_like(t[:1, :1]))
    outputs = context.network(lambda: parts.finish_projected(index, z, t, *joined))
    scores = context.targets.scores(outputs)
    paths = {}
    for name, x, bias in zip(("query", "key", "value"), joined, zero, strict=True):
        g = gradients(scores, x, keep=True, unused=True).movedim(0, 1)
        paths[name] = ((x.detach() - bias).unsqueeze(1) * g).sum(-1)
    check_gradient(paths["value"] + paths["key"])
    return paths


def smooth_cdam(
    context: Context,
    *,
    samples: int = 50,
    sigma: float = 0.15,
    relative: bool = True,
    alteration: str = "gaussian",
    tokens: str = "norm1",
    layer: int = -1,
) -> Result:
    """Mean over ``samples`` altered copies of the tokens of (altered tokens) × (gradient there).

    ``alteration``, with n standard normal: "gaussian" (the paper's), t + σ n, where with ``relative`` σ = ``sigma`` ×
    the standard deviation of the image's tokens; "mask", each patch token is 0 with probability ``sigma``; "feature",
    t (1 + ``sigma`` n) with one n for a channel. extras: ``sigma`` (B,), the absolute σ of "gaussian".
    """
    if alteration == "mask" and not 0 < sigma < 1:
        raise UsageError(f"sigma is the share of tokens that alteration='mask' removes, between 0 and 1, not {sigma}")
    vit = context.anatomy
    exact = context.use_exact(_no_closed_form(context, layer, tokens))
    x, f = (context.run.last.t, None) if exact else _function(context, layer, tokens)
    noise_scale = sigma * x.flatten(1).std(1) if relative else x.new_full((len(x),), sigma)
    total = x.new_zeros(())
    # the closed form holds two buffers of a copy, and a copy is a quarter of an MLP's hidden layer
    at_once = max(1, context.copies // 2) if exact else context.copies
    generator = context.generator()
    for start in range(0, samples, at_once):
        noise = context.noise(min(at_once, samples - start), tuple(x.shape[1:]), generator)
        if alteration == "mask":
            kept = noise[..., :1] > NormalDist().inv_cdf(sigma)
            kept[..., : vit.prefix, :] = True
            noisy = x.unsqueeze(1) * kept
        elif alteration == "feature":
            noisy = x.unsqueeze(1) * (1 + sigma * noise[..., :1, :])
        else:
            noisy = torch.addcmul(x.unsqueeze(1), noise, noise_scale.view(-1, 1, 1, 1))
        del noise
        total = total + (_exact_scores(context, noisy) if f is None else _autograd_scores(context, noisy, f))
    scores = vit.to_grid(total / samples, context.images)
    return Result(scores, "exact" if exact else "autograd", {"sigma": noise_scale})


def _autograd_scores(context: Context, x: Tensor, f: Callable[[Tensor], Outputs]) -> Tensor:
    """Σ over copies of S: (B, C, T) from tokens x (B, k, T, D)."""
    x.requires_grad_()
    g = check_gradient(gradients(context.targets.scores(f(x)), x))
    return torch.einsum("bktd,cbktd->bct", x.detach(), g)


def _exact_scores(context: Context, t: Tensor) -> Tensor:
    """The same from the closed form."""
    block = context.run.last
    with torch.no_grad():
        row = block.row_of(t)
    u = block.pull(context.targets, row.mixed)
    with torch.no_grad():
        value = block.value_scores(t, u)
        score = value + row.logits.unsqueeze(-3) * (value + block.bias_score(row, u))
        return torch.einsum("bkht,bkcht->bct", row.attention, score)


def integrated_cdam(
    context: Context, *, steps: int = 50, rule: str = "right", tokens: str = "norm1", layer: int = -1
) -> Result:
    """Tokens times their mean gradient between zero and themselves. The sum over all tokens approaches f(t) − f(0).

    extras, each (B, T): ``residual`` = Σ over all tokens − (f(t) − f(0)), what the quadrature misses, and
    ``residual_patches``, the same with the patches' sum alone (what the prefix tokens hold is missing there as well).
    """
    vit = context.anatomy
    nodes, weights = quadrature(rule, steps)
    exact = context.use_exact(_no_closed_form(context, layer, tokens))
    compute = _integrate_exact if exact else _integrate_autograd
    scores, change = compute(context, nodes, weights, *(() if exact else (layer, tokens)))
    patches = scores[..., vit.prefix :]
    extras = {"residual": scores.sum(-1) - change, "residual_patches": patches.sum(-1) - change}
    return Result(vit.to_grid(scores, context.images), "exact" if exact else "autograd", extras)


def _integrate_exact(context: Context, nodes: list[float], weights: list[float]) -> tuple[Tensor, Tensor]:
    """Scores (B, C, T) and f(t) − f(0) (B, C). With a zero baseline q, k and v only scale, x(α) = α x⁰ + b:

        λ_i = α² a_i + α b_i      the logits, a_i = s q⁰·k⁰_i and b_i = s b_Q·k⁰_i
        S_i = Σ_h ∫ A_i [(1 + λ_i) v⁰_i·u − λ_i m·u] dα,      m = Σ_i A_i v⁰_i
        S_cls also has the query's ∫ Σ_i α² a_i A_i (v⁰_i − m)·u dα

    A step needs (C, H, T) numbers; as many steps go at once as fill half a hidden layer (T, 4D) of the MLP.
    """
    block, t = context.run.last, context.run.last.t
    with torch.no_grad():
        v0 = block.values(t)
        q0 = torch.einsum("hed,bd->bhe", block.w_q, t[:, 0])
        a, b = (
            block.scale * torch.einsum("hed,...he->...hd", block.w_k, q) @ t.transpose(-1, -2) for q in (q0, block.b_q)
        )
        a, b = a.unsqueeze(2), b.unsqueeze(2)
    size = even_parts(len(nodes), max(1, 2 * t.shape[-1] // (len(context.targets) * v0.shape[1])))
    total = t.new_zeros(())
    for start in range(0, len(nodes), size):
        alpha = t.new_tensor(nodes[start : start + size]).view(1, 1, -1, 1)
        weight = t.new_tensor(weights[start : start + size]).view(1, 1, -1, 1)
        logits = alpha.square() * a + alpha * b
        attention = logits.softmax(-1)
        m = attention @ v0
        u = block.pull(context.targets, (alpha * m).transpose(1, 2) + block.b_v).movedim(-2, 1)
        with torch.no_grad():
            weighted = weight * attention
            value = torch.einsum("bhte,bhkce->bhkct", v0, u)
            value.mul_((weighted * (1 + logits)).unsqueeze(3))
            mean = (u @ m.unsqueeze(-1)).squeeze(-1)
            score = value.sum((1, 2)) - torch.einsum("bhkt,bhkc->bct", weighted * logits, mean)
            r = weighted * alpha.square() * a
            query = (u @ (r @ v0).unsqueeze(-1)).squeeze(-1) - r.sum(-1, keepdim=True) * mean
            score[..., 0] += query.sum((1, 2))
            total = total + score
    with torch.no_grad():
        zero = context.targets.scores(block.tail(block.b_v.expand(len(t), -1, -1)))
    return total, context.values - zero


def _integrate_autograd(
    context: Context, nodes: list[float], weights: list[float], layer: int, tokens: str
) -> tuple[Tensor, Tensor]:
    """The same by automatic differentiation from block ``layer`` on."""
    x, f = _function(context, layer, tokens)
    total = x.new_zeros(())
    for start in range(0, len(nodes), context.copies):
        alpha = x.new_tensor(nodes[start : start + context.copies]).view(1, -1, 1, 1)
        weight = x.new_tensor(weights[start : start + context.copies])
        scaled = (alpha * x.unsqueeze(1)).requires_grad_()
        g = check_gradient(gradients(context.targets.scores(f(scaled)), scaled))
        total = total + torch.einsum("k,btd,cbktd->bct", weight, x, g)
    with torch.no_grad():
        zero = context.targets.scores(f(torch.zeros_like(x)))
    return total, context.values - zero


def _parts(parts: Any) -> tuple[str, ...] | None:
    if parts is None:
        return None
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    if not parts or any(part not in PARTS for part in parts):
        raise UsageError(f"parts are some of {', '.join(map(repr, PARTS))}, not {parts}")
    return parts


def _no_closed_form(context: Context, layer: int, tokens: str) -> str | None:
    vit = context.anatomy
    if vit.layer(layer) != vit.depth - 1:
        return "it holds in the last block only"
    if tokens != "norm1":
        return "it holds for the normalised tokens"
    return context.run.no_closed_form


def _function(context: Context, layer: int, tokens: str) -> tuple[Tensor, Callable[[Tensor], Outputs]]:
    """(x, f): the tokens x (B, T, D) to explain, and the outputs as a function of (B, ..., T, D) in their place.

    "norm1": x = norm1(z), which the attention reads while the residual stream keeps z. "block_input": x = z.
    """
    run = context.run
    z = run.tokens(layer)
    if tokens == "block_input":
        return z.clone(), lambda x: context.network(lambda: run.finish(layer, x))
    t = run.normed(layer)

    def finish(x: Tensor) -> Outputs:
        copies = x.shape[1:-2]
        same = z.view(len(z), *[1] * len(copies), *z.shape[1:]).expand(*x.shape[:-2], *z.shape[1:])
        return context.network(lambda: run.finish(layer, same, x))

    return t, finish
