"""A Vision Transformer composed anew of its parts: embedding, pre-norm blocks and head.

The closed forms, and everything that changes a path through a block, stand on this. Known: timm's
``VisionTransformer`` (registers, distillation token, no CLS token, pooled heads, q/k-norm, layer scale, non-square and
dynamic input sizes), torchvision's, and a nodule model around one. Of anything else ``parts_of`` says why not; it is
computed through its own modules (``own_modules``). Whether the composition gives the model's own outputs is checked
where it is used (``context``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.anatomy import Anatomy
from lidc_xai.explain.networks.attention_layer import AttentionLayer, as_attention
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.wrappers import base_class, is_class, unwrapped


class Block:
    """z ← z + s₁(attn(norm1(z))), then z ← z + s₂(mlp(norm2(z))); ``not_plain`` says why a block is not so."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.not_plain: str | None = None
        self.attention: AttentionLayer | str
        identity = nn.Identity()
        if is_class(module, "timm.models.vision_transformer", "Block"):
            self.norm1, self.norm2, self.mlp = module.norm1, module.norm2, module.mlp
            self.scale1 = getattr(module, "ls1", identity)
            self.scale2 = getattr(module, "ls2", identity)
            self._attend: Callable[[Tensor], Tensor] = module.attn
            self.attention = as_attention(module.attn)
        elif hasattr(module, "self_attention") and hasattr(module, "ln_1"):
            self.norm1, self.norm2, self.mlp = module.ln_1, module.ln_2, module.mlp
            self.scale1 = self.scale2 = identity
            self._attend = lambda t: module.self_attention(t, t, t, need_weights=False)[0]
            self.attention = as_attention(module.self_attention)
        else:
            self.not_plain = self.attention = f"its blocks are {type(module).__name__}, not plain pre-norm blocks"

    def __call__(self, z: Tensor) -> Tensor:
        return self.module(z)

    def attend(self, t: Tensor) -> Tensor:
        """The attention layer's output (B, T, D) for normalised tokens t, by the model's own kernel."""
        return self._attend(t)

    def finish(self, z: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input z and its attention's output, for any tokens: all is token by token."""
        x = z + self.scale1(mixed)
        return x + self.scale2(self.mlp(self.norm2(x)))

    @property
    def softmax(self) -> AttentionLayer:
        """The attention as softmax attention; ``ModelError`` where it is not."""
        if isinstance(self.attention, str):
            raise ModelError(f"attention methods need softmax attention: {self.attention}")
        return self.attention


@dataclass(frozen=True, eq=False)
class Parts:
    """embed → blocks → head.

    ``prefix``: tokens before the patches (CLS first, where there is one). ``reads``: the tokens that the head reads:
    "cls", "distilled" (CLS and distillation token), "patches" or "all". ``head``: outputs from the tokens behind the
    last block; ``cls_head``: from the CLS token alone, where the head reads no other. ``readout``: the head's layers
    behind ``final_norm``.
    """

    model: nn.Module
    blocks: tuple[Block, ...]
    prefix: int
    reads: str
    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Outputs]
    cls_head: Callable[[Tensor], Outputs] | None
    final_norm: nn.Module
    readout: nn.Module

    def layer(self, layer: int) -> int:
        """A block's number from 0, from one that may count from the end."""
        return range(len(self.blocks))[layer]

    def forward(self, images: Tensor) -> Outputs:
        """The model's outputs, differentiable."""
        return self.finish(0, self.embed(images))

    def finish(self, layer: int, z: Tensor, t: Tensor | None = None) -> Outputs:
        """Outputs from the tokens z (B, ..., T, D) that enter block ``layer``, with ``t`` in place of norm1(z) there.

        In the last block of a model whose head reads CLS, only the CLS token goes on behind the attention.
        """
        layer = self.layer(layer)
        copies = z.shape[:-2]
        z = z.flatten(0, -3)
        block = self.blocks[layer]
        last = layer == len(self.blocks) - 1
        if t is None and not (last and self.cls_head is not None and block.not_plain is None):
            z = block(z)
        else:
            t = block.norm1(z) if t is None else t.flatten(0, -3)
            if isinstance(block.attention, str):
                z = block.finish(z, block.attend(t))
            else:
                z = self._attend(layer, z, t, *block.attention.project(t))
        return self._behind(layer, z).map(lambda x: x.unflatten(0, copies))

    def finish_projected(self, layer: int, z: Tensor, t: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        """The same from block ``layer``'s queries, keys and values (B, H, T, d); t is what its gate reads, if any."""
        layer = self.layer(layer)
        return self._behind(layer, self._attend(layer, z, t, q, k, v))

    def _attend(self, layer: int, z: Tensor, t: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Block ``layer``'s output tokens; of the last block, only those that the head reads if that is CLS."""
        block = self.blocks[layer]
        attention = block.softmax
        rows = slice(0, 1 if layer == len(self.blocks) - 1 and self.cls_head is not None else None)
        q, k = attention.q_norm(q[..., rows, :]), attention.k_norm(k)
        o = nn.functional.scaled_dot_product_attention(q, k, v, scale=attention.scale)
        return block.finish(z[:, rows], attention.mix(o, t[:, rows]))

    def _behind(self, layer: int, z: Tensor) -> Outputs:
        """Outputs from the tokens (B, T, D) that leave block ``layer``."""
        if layer < len(self.blocks) - 1:
            return self.finish(layer + 1, z)
        return self.head(z) if self.cls_head is None else self.cls_head(z[:, 0])

    def tokens_read(self, tokens: int, device: torch.device) -> Tensor:
        """(T,) of bool: the tokens that the head reads."""
        read = torch.zeros(tokens, dtype=torch.bool, device=device)
        if self.reads in ("cls", "distilled"):
            read[: 1 if self.reads == "cls" else 2] = True
        else:
            read[self.prefix if self.reads == "patches" else 0 :] = True
        return read

    @cached_property
    def no_closed_form(self) -> str | None:
        """Why the last block has no closed form, or None where it has one."""
        block = self.blocks[-1]
        if self.cls_head is None:
            return "its head does not read the CLS token alone"
        if isinstance(block.attention, str):
            return block.attention
        return block.attention.not_plain


def parts_of(anatomy: Anatomy) -> Parts | str:
    """The composition of a model's parts, or the reason why it is not known, in words that name the model."""
    body: Any = anatomy.model
    head = None
    if hasattr(body, "output_names") and isinstance(getattr(body, "backbone", None), nn.Module):
        body, head = unwrapped(body.backbone), body.head
    known = base_class(body, "timm.models.vision_transformer", "VisionTransformer")
    if known is not None:
        return _from_timm(body, head, known)
    if type(body).__module__.startswith("torchvision.") and type(body).__name__ == "VisionTransformer":
        return _from_torchvision(body)
    return f"the forward pass of {type(body).__name__} is not known part by part"


def _from_timm(body: Any, own_head: nn.Module | None, known: type) -> Parts | str:
    distilled_class = base_class(body, "timm.models.deit", "VisionTransformerDistilled")
    distilled = distilled_class is not None
    known = distilled_class or known
    for name in ("forward", "forward_features", "forward_head", "pool", "_pos_embed"):
        if getattr(type(body), name, None) is not getattr(known, name, None) or name in vars(body):
            return f"{type(body).__name__} replaces VisionTransformer.{name}: its tokens are not known here"

    blocks = tuple(Block(block) for block in body.blocks)
    if (words := next((block.not_plain for block in blocks if block.not_plain), None)) is not None:
        return words

    def embed(images: Tensor) -> Tensor:
        return body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(images))))

    def head(z: Tensor) -> Outputs:
        tokens = body.norm(z)
        features = body.forward_head(tokens, pre_logits=True)
        if own_head is not None:
            return Outputs(own_head(features), features)
        return Outputs(body.forward_head(tokens) if distilled else body.head(features), features)

    def cls_head(x: Tensor) -> Outputs:
        features = body.head_drop(body.fc_norm(body.norm(x)))
        return Outputs((own_head or body.head)(features), features)

    reads = "distilled" if distilled else _timm_reads(body)
    return Parts(
        model=body,
        blocks=blocks,
        prefix=body.num_prefix_tokens,
        reads=reads,
        embed=embed,
        head=head,
        cls_head=cls_head if reads == "cls" else None,
        final_norm=nn.Sequential(body.norm, body.fc_norm),
        readout=own_head or body.head,
    )


def _timm_reads(body: Any) -> str:
    if getattr(body, "attn_pool", None) is None and body.global_pool == "token":
        return "cls"
    return "all" if getattr(body, "pool_include_prefix", False) else "patches"


def _from_torchvision(body: Any) -> Parts:
    def embed(images: Tensor) -> Tensor:
        patches = body._process_input(images)
        tokens = torch.cat([body.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return body.encoder.dropout(tokens + body.encoder.pos_embedding)

    def cls_head(x: Tensor) -> Outputs:
        features = body.encoder.ln(x)
        return Outputs(body.heads(features), features)

    return Parts(
        model=body,
        blocks=tuple(Block(block) for block in body.encoder.layers),
        prefix=1,
        reads="cls",
        embed=embed,
        head=lambda z: cls_head(z[:, 0]),
        cls_head=cls_head,
        final_norm=body.encoder.ln,
        readout=body.heads,
    )
