"""Class activation maps at one layer, A its activations (K, h, w) and g = ∂φ/∂A the target's gradient there:

gradcam               Σ_k w_k A_k with w_k = mean_ij g_k
xgradcam              w_k = Σ_ij g_k A_k / (Σ_ij |A_k| + 1e-7)
gradcam_plus_plus     w_k = Σ_ij α_k ReLU(g_k) with α = g²/(2 g² + (Σ_ij A_k) g³), 0 where the denominator is ≤ 0
linear_approximation  Σ_k g_k ⊙ A_k

Signed sums by default, in which a class's evidence and what speaks against it are both seen; ``relu=True`` is the
papers' usual form (for GradCAM++ it decides over ReLU(g) or g as well). On a ViT the layer is ``norm1`` of a block,
its patch tokens seen as (D, gh, gw). Of the last block there is a closed form (symbols as in ``last_block``):
with g_i = ∂f/∂t_i = Σ_h A_i (ω + κ γ_i) at patch i, sums over the N patches:

    gradcam               S_i = Σ_k t_ik w_k,   w = (1/N) Σ_i g_i
    xgradcam              S_i = Σ_k t_ik w_k,   w_k = Σ_i g_ik t_ik / (Σ_i |t_ik| + 1e-7)
    linear_approximation  S_i = Σ_k t_ik g_ik,  which is CDAM

Only sums over patches of A, A γ, A t and A γ t enter: the gradients themselves, (C, N, D), are never formed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.pixels.cnn import find_layer
from lidc_xai.explain.pixels.feature_layer import Features, norm1_name, read_layer, read_tokens, refuse_silence

Formula = Callable[[Tensor, Tensor], Tensor]
"""Activations (B, K, h, w) and gradients (..., B, K, h, w) → map (..., B, h, w)."""


def gradcam(context: Context, layer: Any = None, relu: bool = False) -> Result:
    """GradCAM (Selvaraju et al. 2017): (B, T, h, w) on the layer's grid. Extras: ``layer``, its name."""
    return _cam(context, layer, relu, "gradcam", lambda a, g: _weighted(g.mean((-2, -1)), a))


def xgradcam(context: Context, layer: Any = None, relu: bool = False) -> Result:
    """XGradCAM (Fu et al. 2020), whose denominator takes |A|, since activations before a ReLU can sum to 0."""

    def formula(a: Tensor, g: Tensor) -> Tensor:
        return _weighted((g * a).sum((-2, -1)) / (a.abs().sum((-2, -1)) + 1e-7), a)

    return _cam(context, layer, relu, "xgradcam", formula)


def linear_approximation(context: Context, layer: Any = None, relu: bool = False) -> Result:
    """Gradient times activation, element by element (HiResCAM): the first-order share of each position."""
    return _cam(context, layer, relu, "linear_approximation", lambda a, g: (g * a).sum(-3))


def gradcam_plus_plus(context: Context, layer: Any = None, relu: bool = False) -> Result:
    """GradCAM++ (Chattopadhay et al. 2018), for activations that are not negative.

    The default layer is therefore the ReLU behind the last convolution, where there is one. Not homogeneous in g:
    targets that differ by a factor give different maps.
    """
    formula = partial(gradcam_plus_plus_map, relu=relu)
    return _cam(context, layer, relu, "gradcam_plus_plus", formula, rectified=True)


def gradcam_plus_plus_map(a: Tensor, g: Tensor, relu: bool) -> Tensor:
    # α = g²/(2g² + ΣA g³) = 1/(2 + ΣA g): without the squares, small gradients do not drown in a denominator's epsilon
    below = 2 + a.sum((-2, -1), keepdim=True) * g
    alpha = (below > 0) / below.masked_fill(below <= 0, 1)
    return _weighted((alpha * (g.clamp_min(0) if relu else g)).sum((-2, -1)), a)


def _weighted(weights: Tensor, a: Tensor) -> Tensor:
    """Σ_k w_k A_k for weights (..., B, K)."""
    return (weights[..., None, None] * a).sum(-3)


def _cam(context: Context, layer: Any, relu: bool, name: str, formula: Formula, *, rectified: bool = False) -> Result:
    block = _block(context, layer)
    if context.use_exact(_no_closed_form(context, block)):
        maps, engine, where = _closed_form(context, name), "exact", norm1_name(context, -1)
    else:
        features = _features(context, layer, block, rectified)
        refuse_silence(features)
        maps, engine, where = (
            formula(features.activations, features.gradients).transpose(0, 1),
            "autograd",
            features.layer,
        )
    return Result(maps.clamp_min(0) if relu else maps, engine, {"layer": where})


def _block(context: Context, layer: Any) -> int | None:
    """The ViT's block that is asked for, from 0; None for any other layer."""
    vit = context.vit
    if vit is None or vit.not_plain is not None or not (layer is None or isinstance(layer, int)):
        return None
    return vit.layer(-1 if layer is None else layer)


def _no_closed_form(context: Context, block: int | None) -> str | None:
    if context.vit is None:
        return "it is that of a ViT's last block, and this model is not a ViT that is known here"
    if block != context.vit.depth - 1:
        return "it holds at norm1 of the last block only"
    return context.run.no_closed_form


def _features(context: Context, layer: Any, block: int | None, rectified: bool) -> Features:
    if block is not None:
        return read_tokens(context, block)
    name, module = find_layer(context.run, layer, rectified=rectified)
    return read_layer(context, name, module, record=True)


def _closed_form(context: Context, kind: str) -> Tensor:
    """(B, T, gh, gw) of "gradcam", "xgradcam" or "linear_approximation" at norm1 of the last block, signed."""
    vit = context.anatomy
    block, row = context.run.last, context.run.last.row
    t = row.t
    u = block.pull(context.targets)
    with torch.no_grad():
        gamma = block.value_scores(t, u) + block.bias_score(row, u)
        attention = row.attention.unsqueeze(1)
        patches = t[:, block.prefix :]
        a, weighted = block.patches(attention), block.patches(attention * gamma)
        if kind == "linear_approximation":
            value = block.patches(attention * (gamma - block.bias_score(row, u)))
            key = weighted * block.patches(row.logits).unsqueeze(1)
            return vit.to_grid((value + key).sum(2), context.images)
        omega = torch.einsum("hed,bche->bchd", block.w_v, u)
        if kind == "gradcam":
            total = a.sum(-1, keepdim=True) * omega + weighted.sum(-1, keepdim=True) * row.key.unsqueeze(1)
            w = total.sum(2) / patches.shape[1]
        else:
            shared = (a.squeeze(1) @ patches).unsqueeze(1)
            by_patch = torch.einsum("bchn,bnd->bchd", weighted, patches)
            w = (shared * omega + by_patch * row.key.unsqueeze(1)).sum(2) / (patches.abs().sum(1).unsqueeze(1) + 1e-7)
        return vit.to_grid(w @ patches.transpose(1, 2), context.images)
