"""The last block of a CLS-pooled ViT in closed form: everything behind its norm1 is one row of attention per head.

With t (T, D) the normalised tokens, q = W_Q t_cls + b_Q the CLS query and s the scale, per head h:

    κ = s W_Kᵀ q                 l_i = t_i·κ          (the logits, up to a constant that the softmax drops)
    A = softmax(l)               o = W_V Σ_m A_m t_m + b_V
    y = tail(o): projection, residual, MLP, final norm and head of the CLS token alone.

With u = ∂f/∂o (one backward pass per target, through one token), ω = W_Vᵀ u and γ_i = t_i·ω + (b_V − o)·u:

    ∂f/∂t_i = Σ_h A_i (ω + κ γ_i)                     for every token i but CLS, whose query adds a term.

So keys and values need never be formed: W_K and W_V are absorbed into κ and ω, one vector per head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidc_xai.errors import ModelError
from lidc_xai.explain.context import Context, gradients
from lidc_xai.explain.targets import Outputs, TargetSet
from lidc_xai.explain.vit import ViT


@dataclass(frozen=True)
class Row:
    """The CLS row for tokens t (..., T, D). ``logits`` and ``attention`` (..., H, T), ``key`` κ (..., H, D),
    ``mixed`` o (..., H, d)."""

    t: Tensor
    key: Tensor
    logits: Tensor
    attention: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class Pull:
    """What the targets pull back to the row: ``mixed`` u = ∂f/∂o (..., C, H, d) and ``values`` the scores (..., C)."""

    mixed: Tensor
    values: Tensor


class LastBlock:
    """Closed forms on the last block of ``vit``; ``vit.no_closed_form`` must be None."""

    def __init__(self, vit: ViT, z: Tensor) -> None:
        """``z`` (B, T, D): the tokens that enter the block; CLS keeps its residual under every change of t."""
        self.block = vit.blocks[-1]
        layer = self.block.softmax
        (self.w_q, self.w_k, self.w_v), (self.b_q, self.b_k, self.b_v) = layer.split()
        self.scale, self.mix = layer.scale, layer.mix
        self.head = vit.cls_head
        self.z_cls = z[:, 0]
        self.prefix = vit.prefix

    def row(self, t: Tensor) -> Row:
        """The CLS row for tokens t (..., T, D)."""
        q = torch.einsum("hed,...d->...he", self.w_q, t[..., 0, :]) + self.b_q
        key = self.scale * torch.einsum("hed,...he->...hd", self.w_k, q)
        logits = key @ t.transpose(-1, -2)
        attention = logits.softmax(-1)
        mixed = torch.einsum("hed,...hd->...he", self.w_v, attention @ t) + self.b_v
        return Row(t, key, logits, attention, mixed)

    def tail(self, mixed: Tensor) -> Outputs:
        """Outputs (B, ..., C) from o (B, ..., H, d): the CLS token's way from the attention to the outputs."""
        assert self.head is not None
        z = self.z_cls.view(len(self.z_cls), *[1] * (mixed.ndim - 3), -1)
        joined = self.mix(mixed.unsqueeze(-2), z.unsqueeze(-2)).squeeze(-2)
        return self.head(self.block.finish(z, joined))

    def pull(self, mixed: Tensor, targets: TargetSet) -> Pull:
        """u for every target: C backward passes through one token per row."""
        mixed = mixed.detach().requires_grad_()
        scores = targets.scores(self.tail(mixed))
        u = gradients(scores, mixed).movedim(0, -3)
        if not u.any():
            raise ModelError(
                "the targets' gradient is zero at the last block: the head's weights are zero, or the score is "
                "saturated (explain LogOdds or Logit instead of Probability)"
            )
        return Pull(u, scores.detach())

    def value_scores(self, t: Tensor, u: Tensor) -> Tensor:
        """v⁰_i·u = t_i·(W_Vᵀ u): (..., C, H, T), by the cheaper of the two orders."""
        targets, heads = u.shape[-3:-1]
        if targets * heads <= t.shape[-1]:
            omega = torch.einsum("hed,...che->...chd", self.w_v, u)
            return (omega.flatten(-3, -2) @ t.transpose(-1, -2)).unflatten(-2, (targets, heads))
        return torch.einsum("...hte,...che->...cht", self.values(t), u)

    def values(self, t: Tensor) -> Tensor:
        """v⁰ = W_V t, without bias: (..., H, T, d)."""
        return (t @ self.w_v.flatten(0, 1).T).unflatten(-1, self.w_v.shape[:2]).transpose(-2, -3)

    def keys(self, t: Tensor) -> Tensor:
        """k⁰ = W_K t, without bias: (..., H, T, d)."""
        return (t @ self.w_k.flatten(0, 1).T).unflatten(-1, self.w_k.shape[:2]).transpose(-2, -3)

    def bias_score(self, row: Row, u: Tensor) -> Tensor:
        """(b_V − o)·u: (..., C, H, 1)."""
        return ((self.b_v - row.mixed).unsqueeze(-3) * u).sum(-1, keepdim=True)

    def patches(self, scores: Tensor) -> Tensor:
        """(..., T) → (..., N): without the prefix tokens."""
        return scores[..., self.prefix :]


def last_block(context: Context) -> tuple[LastBlock, Tensor]:
    """The last block of the context's model and its normalised tokens t (B, T, D), from the shared trunk."""
    vit = context.vit
    assert vit is not None
    z = context.run.tokens(-1)
    with torch.no_grad():
        return LastBlock(vit, z), vit.blocks[-1].norm1(z)
