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
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from lidc_xai.explain.checks import check_gradient
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.parts import Parts
from lidc_xai.explain.targets import TargetSet

_ROWS_AT_ONCE = 200
"""Rows (copies × targets) of one backward pass through the tail: enough to fill a matrix product, small in memory."""


@dataclass(frozen=True)
class Row:
    """The CLS row for tokens t (..., T, D).

    ``key`` κ (..., H, D), ``logits`` l and ``attention`` A (..., H, T), ``mixed`` o (..., H, d).
    """

    t: Tensor
    key: Tensor
    logits: Tensor
    attention: Tensor
    mixed: Tensor


def even_parts(count: int, most: int) -> int:
    """The size of the fewest equal parts of ``count`` things that hold at most ``most``."""
    return ceil(count / ceil(count / most))


class LastBlock:
    """Closed forms on the last block of ``vit`` (whose ``no_closed_form`` is None) for the tokens z that enter it.

    ``t``: norm1(z); ``row``: the CLS row there. CLS keeps its residual z_cls under every change of t.
    """

    def __init__(self, vit: Parts, z: Tensor) -> None:
        self.block = vit.blocks[-1]
        layer = self.block.softmax
        (self.w_q, self.w_k, self.w_v), (self.b_q, self.b_k, self.b_v) = layer.split()
        self.scale, self.mix, self.prefix = layer.scale, layer.mix, vit.prefix
        self.head = vit.cls_head
        self.z_cls = z[:, 0]
        with torch.no_grad():
            self.t = self.block.norm1(z)
            self.row = self.row_of(self.t)

    def row_of(self, t: Tensor) -> Row:
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

    @cached_property
    def here(self) -> tuple[Tensor, Outputs]:
        """(o, outputs) at t itself, with the graph between them: the model's own outputs."""
        return self._graph(self.row.mixed)

    def _graph(self, mixed: Tensor) -> tuple[Tensor, Outputs]:
        with torch.enable_grad():
            mixed = mixed.detach().requires_grad_()
            return mixed, self.tail(mixed)

    def pull(self, targets: TargetSet, mixed: Tensor | None = None) -> Tensor:
        """u = ∂f/∂o for every target, (B, ..., C, H, d), at t or at other ``mixed`` o: backward passes through one
        token per row."""
        mixed, outputs = self.here if mixed is None else self._graph(mixed)
        with torch.enable_grad():
            scores = targets.scores(outputs)
        count = scores.shape[-1]
        size = even_parts(count, max(1, _ROWS_AT_ONCE * count // scores.numel()))
        one = torch.eye(count, dtype=scores.dtype, device=scores.device).view(count, *[1] * (scores.ndim - 1), count)
        parts = [
            torch.autograd.grad(
                scores, mixed, some.expand(-1, *scores.shape), retain_graph=True, is_grads_batched=True
            )[0]
            for some in one.split(size)
        ]
        u = torch.cat(parts).movedim(0, -3)
        return check_gradient(u)

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

    def bias_score(self, row: Row, u: Tensor) -> Tensor:
        """(b_V − o)·u: (..., C, H, 1)."""
        return ((self.b_v - row.mixed).unsqueeze(-3) * u).sum(-1, keepdim=True)

    def patches(self, scores: Tensor) -> Tensor:
        """(..., T) → (..., N): without the prefix tokens."""
        return scores[..., self.prefix :]
