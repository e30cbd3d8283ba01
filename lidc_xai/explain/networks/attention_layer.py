"""One softmax self-attention, seen alike in timm and torchvision.

With q, k, v = t Wᵀ + b split into H heads of d entries: A = softmax(s · N_q(q) N_k(k)ᵀ), and the layer's output is
(gate(t) ⊙ N_o(A v)) W_Oᵀ + b_O. The norms N and the gate are the identity in a plain layer, which is what the closed
forms need. The matrices are computed here from the layer's own projections: no switch of the model is touched, and
its fused kernel need not give them up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lidc_xai.explain.networks.wrappers import is_class


@dataclass(frozen=True)
class AttentionLayer:
    """Projections of one attention layer. Shapes: tokens (B, T, D), heads (B, H, T, d)."""

    project_in: Callable[[Tensor], Tensor]
    weight: Tensor | None
    bias: Tensor | None
    heads: int
    head_dim: int
    scale: float
    q_norm: nn.Module
    k_norm: nn.Module
    out_norm: nn.Module
    gate: nn.Module | None
    proj: Any
    not_plain: str | None

    def project(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, T, d), before any norm of q and k."""
        qkv = self.project_in(t).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.movedim(-3, 0).transpose(-2, -3)
        return q, k, v

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """What the softmax of each row is taken of: (B, H, queries, keys)."""
        return self.scale * self.q_norm(q) @ self.k_norm(k).transpose(-1, -2)

    def matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """A (B, H, queries, keys), rows sum to 1."""
        return self.logits(q, k).softmax(-1)

    def mix(self, o: Tensor, t: Tensor) -> Tensor:
        """The layer's output (B, T, D) from o = A v (B, H, T, d) and the tokens t that the gate reads."""
        joined = self.out_norm(o.transpose(-2, -3).flatten(-2))
        if self.gate is not None:
            joined = joined * self.gate(t).sigmoid()
        return self.proj(joined)

    def split(self) -> tuple[Tensor, Tensor]:
        """W (3, H, d, D) and b (3, H, d) of q, k and v; for plain layers only."""
        assert self.weight is not None
        weight = self.weight.unflatten(0, (3, self.heads, self.head_dim))
        bias = weight.new_zeros(weight.shape[:3]) if self.bias is None else self.bias.view(weight.shape[:3])
        return weight, bias


_TIMM = ("timm.layers.attention", "Attention")


def as_attention(module: nn.Module) -> AttentionLayer | str:
    """The layer as softmax attention, or the reason why it cannot be read as one."""
    if is_class(module, *_TIMM):
        return _from_timm(module)
    if isinstance(module, nn.MultiheadAttention):
        return _from_torch(module)
    return f"its attention is {type(module).__name__}, whose matrix is not a plain softmax of queries and keys"


def _from_timm(module: Any) -> AttentionLayer:
    plain = {
        "q_norm": "it normalises queries",
        "k_norm": "it normalises keys",
        "norm": "it normalises the attention's output",
    }
    parts = {name: getattr(module, name, None) or nn.Identity() for name in plain}
    reasons = [reason for name, reason in plain.items() if not isinstance(parts[name], nn.Identity)]
    gate = getattr(module, "gate", None)
    if gate is not None:
        reasons.append("it gates the attention's output")
    qkv = module.qkv
    if type(qkv) is not nn.Linear:
        reasons.append(f"its projection is {type(qkv).__name__}, not a linear layer")
    return AttentionLayer(
        project_in=qkv,
        weight=getattr(qkv, "weight", None),
        bias=getattr(qkv, "bias", None),
        heads=module.num_heads,
        head_dim=module.head_dim,
        scale=module.scale,
        q_norm=parts["q_norm"],
        k_norm=parts["k_norm"],
        out_norm=parts["norm"],
        gate=gate,
        proj=module.proj,
        not_plain=" and ".join(reasons) or None,
    )


def _from_torch(module: nn.MultiheadAttention) -> AttentionLayer | str:
    if not module.batch_first or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return "its MultiheadAttention has separate projections, extra keys or the batch on the second axis"
    return AttentionLayer(
        project_in=lambda t: nn.functional.linear(t, module.in_proj_weight, module.in_proj_bias),
        weight=module.in_proj_weight,
        bias=module.in_proj_bias,
        heads=module.num_heads,
        head_dim=module.head_dim,
        scale=module.head_dim**-0.5,
        q_norm=nn.Identity(),
        k_norm=nn.Identity(),
        out_norm=nn.Identity(),
        gate=None,
        proj=module.out_proj,
        not_plain=None,
    )
