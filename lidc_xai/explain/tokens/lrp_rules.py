"""Layer-wise relevance propagation with α = 1, β = 0: how relevance R of a layer's output becomes that of its input.

    linear        R_in = x⁺ ⊙ (S W⁺) + x⁻ ⊙ (S W⁻),  S = R / (x⁺ W⁺ᵀ + x⁻ W⁻ᵀ)       one joint denominator: conserves
                  "separate": S₁ = R / x⁺W⁺ᵀ and S₂ = R / x⁻W⁻ᵀ, as Chefer's layers_lrp      does not
    a + b         R_a = a R / (a + b),  R_b = b R / (a + b)                           conserves
                  stabilised: R_a, R_b = R/2 (1 ± (a − b)(a + b) / ((a + b)² + ε² (m² − (a + b)²))),  m = |a| + |b|
    A v           S = R / (A v),  R_A = ½ A ⊙ (S vᵀ),  R_v = ½ v ⊙ (Aᵀ S)               conserves
    GELU, softmax, norms, dropout: R passes unchanged; biases take no part. A layer scale counts as part of the weights
    of the linear layer before it, so that it does not matter whether it was folded into them.

A quotient is taken with 1e-9 added to the denominator's size; 0/0 is 0. R has the shape (C, B, ..., out) for C targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.wrappers import is_class
from lidc_xai.explain.targets import TargetSet
from lidc_xai.models.heads import BottleneckHead


def quotient(r: Tensor, z: Tensor) -> Tensor:
    """r / z, stabilised; 0 where z is 0."""
    return torch.where(z == 0, torch.zeros_like(z), r / (z + 1e-9 * z.sign()).masked_fill(z == 0, 1))


class LinearRule:
    """R at the input x (B, ..., in) of y = x Wᵀ from R at y; the denominators are formed once, for any number of R."""

    def __init__(self, weight: Tensor, x: Tensor, *, scale: nn.Module | None = None, joint: bool = True) -> None:
        """``weight`` (out, in); ``scale``: the layer scale behind it. ``joint=False``: the public code's separate
        denominators."""
        if scale is not None:
            weight = weight * scale(weight.new_ones(len(weight))).unsqueeze(1)
        self.weight, self.positive, self.negative = weight, x.clamp(min=0), x.clamp(max=0)
        z_positive, z_negative = self.positive @ weight.clamp(min=0).T, self.negative @ weight.clamp(max=0).T
        self.z = (z_positive + z_negative,) if joint else (z_positive, z_negative)

    def relevance(self, r: Tensor) -> Tensor:
        """(C, B, ..., out) → (C, B, ..., in)."""
        shares = [quotient(r, z) for z in self.z]
        at_positive = self.positive * (shares[0] @ self.weight.clamp(min=0))
        return at_positive + self.negative * (shares[-1] @ self.weight.clamp(max=0))


def sum_rule(a: Tensor, b: Tensor, r: Tensor, stabiliser: float = 0.0) -> tuple[Tensor, Tensor]:
    """R of the two terms of a + b; where they cancel, ``stabiliser`` levels their shares out."""
    if stabiliser == 0:
        share = quotient(r, a + b)
        return a * share, b * share
    total, mass = (a + b).square(), (a.abs() + b.abs()).square()
    tilt = (a - b) * (a + b) / (total + stabiliser**2 * (mass - total)).masked_fill(mass == 0, 1)
    half = (r / 2).masked_fill(mass == 0, 0)
    return half * (1 + tilt), half * (1 - tilt)


def product_rule(a: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """R of the two factors of a @ v, half each."""
    share = quotient(r, a @ v)
    return a * (share @ v.transpose(-1, -2)) / 2, v * (a.transpose(-1, -2) @ share) / 2


@dataclass(frozen=True)
class Chain:
    """Linear layers and element-wise ones in a row, as they ran forward on some x."""

    rules: tuple[LinearRule, ...]
    output: Tensor

    def relevance(self, r: Tensor) -> Tensor:
        """R at the chain's input from R at its output."""
        for rule in reversed(self.rules):
            r = rule.relevance(r)
        return r


def run_chain(module: nn.Module, x: Tensor, *, scale: nn.Module | None = None, joint: bool = True) -> Chain:
    """``module`` applied to x, then its layer ``scale``; remembered. ``chain_refusal(module)`` must be None."""
    rules = []
    layers = _layers(module)
    last = max((i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), default=-1)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            rules.append(LinearRule(layer.weight, x, scale=scale if i == last else None, joint=joint))
        x = layer(x)
    return Chain(tuple(rules), x if scale is None else scale(x))


def head_rule(head: nn.Module, features: Tensor, r: Tensor, *, joint: bool = True) -> Tensor:
    """R at the vector that a head reads, from R at its outputs (C, B, outputs)."""
    if not isinstance(head, BottleneckHead):
        return run_chain(head, features, joint=joint).relevance(r)
    names = head.output_names
    verdict = LinearRule(head.verdict.weight, head.concepts(features), joint=joint)
    at_concepts = verdict.relevance(r[..., [names.index("malignancy")]])
    at_concepts = at_concepts + r[..., [names.index(name) for name in head.concept_names]]
    return LinearRule(head.concepts.weight, features, joint=joint).relevance(at_concepts)


def chain_refusal(module: nn.Module) -> str | None:
    """Why LRP has no rule for ``module``, or None."""
    if isinstance(module, BottleneckHead):
        return None
    unknown = next((layer for layer in _layers(module) if not _has_rule(layer)), None)
    return None if unknown is None else f"LRP has no rule for {type(unknown).__name__}"


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a sequence, in order; a module that is no known sequence stands for itself."""
    if isinstance(module, nn.Sequential) or is_class(module, "timm.layers.mlp", "Mlp"):
        return [layer for child in module.children() for layer in _layers(child)]
    return [module]


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear | nn.Dropout | nn.Identity | nn.LayerNorm | nn.RMSNorm):
        return True
    return type(layer).__module__ in ("torch.nn.modules.activation", "timm.layers.activations")


def start_at_outputs(targets: TargetSet, outputs: Tensor) -> Tensor:
    """R at the outputs, (C, B, outputs): the targets' gradients there, which for a logit is 1 at the asked output.

    ``ModelError`` for targets whose relevance cannot start at the outputs.
    """
    refused = {type(one).__name__ for one in targets.targets} & {"Probability", "LogProbability", "ConceptSimilarity"}
    if refused:
        raise ModelError(f"LRP starts at a logit or a contrast of logits, not at {', '.join(sorted(refused))}")
    with torch.enable_grad():
        values = outputs.detach().requires_grad_()
        scores = targets.scores(values)
        starts = [torch.autograd.grad(one.sum(), values, retain_graph=True)[0] for one in scores.unbind(1)]
    return torch.stack(starts)
