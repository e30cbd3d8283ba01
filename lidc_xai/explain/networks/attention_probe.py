"""The attention matrices that a model's own modules compute, seen on their way.

Inside ``with probe:`` every softmax over (…, T, T) and every fused attention of that size is noted for the block that
is running. A fused kernel gives its matrix up by being spelled out, A = softmax(s q kᵀ + mask) and A v, which is the
same function: no switch of the model or of the process is touched. What the modules do with A afterwards (gates, heads
switched off by a patched ``forward``, head mixing) stays theirs, and a gradient towards A goes through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lidc_xai.errors import ModelError

SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


class AttentionProbe(TorchFunctionMode):
    """Notes matrices (B, H, T, T) of the block whose number is ``block``; −1 notes none.

    ``differentiable``: gradients begin at the first matrix. ``hidden`` (B, T): keys that no query may see.
    """

    def __init__(self, batch: int, tokens: int, *, differentiable: bool = False, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.batch, self.tokens = batch, tokens
        self.differentiable, self.hidden = differentiable, hidden
        self.block = -1
        self._noted: dict[int, list[Tensor]] = {}

    def matrix(self, block: int, name: str) -> Tensor:
        """The one matrix of a block (B, H, T, T), as it stands in the graph; ``ModelError`` where there is not one."""
        reason = self.why_not(block, name)
        if reason is not None:
            raise ModelError(reason)
        return self._noted[block][0]

    def why_not(self, block: int, name: str) -> str | None:
        """Why the block has no one matrix, or None."""
        count = len(self._noted.get(block, []))
        if count == 1:
            return None
        matrices = "no softmax" if count == 0 else f"{count} softmax matrices"
        return (
            f"block {block} ({name}) computes {matrices} over all {self.tokens} tokens (windows, pooled keys and "
            "kernels without a softmax are none), so that there is no one attention matrix to read"
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.block < 0:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        if func in SOFTMAX and self._is_matrix(args[0]):
            return self._note(func(self._hide(args[0]), *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _is_matrix(self, x: Tensor) -> bool:
        square = x.ndim in (3, 4) and x.shape[-2:] == (self.tokens, self.tokens)
        return square and (len(x) == self.batch if x.ndim == 4 else len(x) % self.batch == 0)

    def _hide(self, logits: Tensor) -> Tensor:
        if self.hidden is None:
            return logits
        hidden = self.hidden.repeat_interleave(len(logits) // self.batch, 0)
        return logits.masked_fill(hidden.view(len(logits), *[1] * (logits.ndim - 2), -1), -torch.inf)

    def _note(self, a: Tensor) -> Tensor:
        if a.ndim == 3:
            a = a.unflatten(0, (self.batch, -1))
            return self._note(a).flatten(0, 1)
        if self.differentiable and not a.requires_grad:
            a = a.detach().requires_grad_()
        self._noted.setdefault(self.block, []).append(a)
        return a

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        shape = (*query.shape[:-1], key.shape[-2])
        if len(shape) not in (3, 4) or shape[-2:] != (self.tokens, self.tokens):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
            )
        logits = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-1, -2)
        if is_causal:
            logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else logits + attn_mask
        return self._note(self._hide(logits).softmax(-1)) @ value

    def _multi_head(
        self, query: Tensor, key: Tensor, value: Tensor, embed: int, heads: int, weight: Tensor, bias: Tensor,
        bias_k: Any, bias_v: Any, zero: bool, dropout: float, out_weight: Tensor, out_bias: Tensor, **others: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """torch's MultiheadAttention, (T, B, D) inside, of self-attention with joint projections."""
        if weight is None or bias_k is not None or zero or others.get("attn_mask") is not None:
            raise ModelError("its MultiheadAttention has separate projections, extra keys or a mask")
        weights = weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        o = self._fused(q, k, v)
        return F.linear(o.permute(2, 0, 1, 3).flatten(-2), out_weight, out_bias), None
