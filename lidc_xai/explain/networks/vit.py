"""A Vision Transformer, whoever wrote it, as embedding, pre-norm blocks and head.

Known: any timm ``VisionTransformer`` (registers, distillation token, no CLS token, pooled heads, q/k-norm, layer
scale, non-square and dynamic input sizes), torchvision's, and a model that holds one as ``.backbone`` under its own
``.head``. Everything else is None here, with the reason from ``not_a_vit``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.attention_layer import AttentionLayer, as_attention
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.plain_model import unwrapped


class Block:
    """z ← z + s₁(attn(norm1(z))), then z ← z + s₂(mlp(norm2(z))); ``not_plain`` says why a block is not so."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.not_plain: str | None = None
        self.attention: AttentionLayer | str
        identity = nn.Identity()
        if type(module) is TimmBlock:
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


@dataclass(frozen=True)
class ViT:
    """embed → blocks → head.

    ``prefix``: tokens before the patches (CLS first, where there is one). ``reads``: the tokens that the head reads:
    "cls", "distilled" (CLS and distillation token), "patches" or "all".
    """

    model: nn.Module
    blocks: tuple[Block, ...]
    prefix: int
    reads: str
    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Outputs]
    cls_head: Callable[[Tensor], Outputs] | None
    grid_of: Callable[[tuple[int, int]], tuple[int, int]]
    patch: tuple[int, int] | None
    fixed_size: tuple[int, int] | None
    final_norm: nn.Module
    readout: nn.Module

    def layer(self, layer: int) -> int:
        """A block's number from 0, from one that may count from the end."""
        depth = len(self.blocks)
        if not -depth <= layer < depth:
            raise UsageError(f"layer {layer} does not exist; this model has blocks 0 to {depth - 1}, or -1 to {-depth}")
        return layer % depth

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(gh, gw): rows and columns of patches."""
        return self.grid_of((images.shape[-2], images.shape[-1]))

    def covered(self, images: Tensor) -> tuple[int, int]:
        """Pixels that the grid covers: the image, or more where the model pads it."""
        height, width = images.shape[-2:]
        if self.patch is None:
            return height, width
        rows, columns = self.grid(images)
        return max(height, rows * self.patch[0]), max(width, columns * self.patch[1])

    def to_grid(self, scores: Tensor, images: Tensor) -> Tensor:
        """(..., tokens or patches) scores → (..., gh, gw): prefix tokens dropped, rows first."""
        rows, columns = self.grid(images)
        return scores[..., -rows * columns :].unflatten(-1, (rows, columns))

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

    def rows_read(self, tokens: int, like: Tensor) -> Tensor:
        """(T,) weights of the rows that a class-blind readout averages: CLS alone, or every token the head reads."""
        weights = torch.zeros(tokens, dtype=like.dtype, device=like.device)
        if self.reads in ("cls", "distilled"):
            weights[0] = 1
        else:
            weights[self.prefix if self.reads == "patches" else 0 :] = 1
        return weights / weights.sum()

    @cached_property
    def no_closed_form(self) -> str | None:
        """Why the last block has no closed form, or None where it has one."""
        block = self.blocks[-1]
        if self.cls_head is None:
            return "its head does not read the CLS token alone"
        if isinstance(block.attention, str):
            return block.attention
        return block.attention.not_plain

    @property
    def no_attention(self) -> str | None:
        """Why the attention matrices cannot be read, or None where they can."""
        return next((block.attention for block in self.blocks if isinstance(block.attention, str)), None)


def as_vit(model: nn.Module) -> ViT | None:
    """``model`` as a ``ViT``, or None."""
    found = _find(model)
    return None if isinstance(found, str) else found


def not_a_vit(model: nn.Module) -> str:
    """Why ``as_vit`` gives None, in words that name the model."""
    found = _find(model)
    return found if isinstance(found, str) else ""


def _find(model: nn.Module) -> ViT | str:
    body: Any = unwrapped(model)
    head = None
    if hasattr(body, "output_names") and isinstance(getattr(body, "backbone", None), nn.Module):
        body, head = body.backbone, body.head
    if isinstance(body, TimmViT):
        return _from_timm(body, head)
    if type(body).__module__.startswith("torchvision.") and type(body).__name__ == "VisionTransformer":
        return _from_torchvision(body)
    name = type(body).__name__
    return f"{name} is not a timm VisionTransformer nor torchvision's: its tokens and attention are not known here"


def _from_timm(body: TimmViT, own_head: nn.Module | None) -> ViT | str:
    distilled = isinstance(body, VisionTransformerDistilled)
    known = VisionTransformerDistilled if distilled else TimmViT
    for name in ("forward", "forward_features", "forward_head", "pool", "_pos_embed"):
        if getattr(type(body), name, None) is not getattr(known, name, None) or name in vars(body):
            return f"{type(body).__name__} replaces VisionTransformer.{name}: its tokens are not known here"
    if not distilled and body.global_pool == "":
        return f"{type(body).__name__} with global_pool='' returns all tokens, not one row of outputs"

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

    def grid_of(size: tuple[int, int]) -> tuple[int, int]:
        dynamic = getattr(body.patch_embed, "dynamic_feat_size", None)
        rows, columns = dynamic(size) if dynamic is not None else body.patch_embed.grid_size
        return int(rows), int(columns)

    reads = "distilled" if distilled else _timm_reads(body)
    patch = body.patch_embed.patch_size if hasattr(body.patch_embed, "proj") else None
    return ViT(
        model=body,
        blocks=tuple(Block(block) for block in body.blocks),
        prefix=body.num_prefix_tokens,
        reads=reads,
        embed=embed,
        head=head,
        cls_head=cls_head if reads == "cls" else None,
        grid_of=grid_of,
        patch=tuple(patch) if patch is not None else None,
        fixed_size=tuple(body.patch_embed.img_size) if getattr(body.patch_embed, "strict_img_size", True) else None,
        final_norm=nn.Sequential(body.norm, body.fc_norm),
        readout=own_head or body.head,
    )


def _timm_reads(body: TimmViT) -> str:
    if getattr(body, "attn_pool", None) is None and body.global_pool == "token":
        return "cls"
    return "all" if getattr(body, "pool_include_prefix", False) else "patches"


def _from_torchvision(body: Any) -> ViT:
    def embed(images: Tensor) -> Tensor:
        patches = body._process_input(images)
        tokens = torch.cat([body.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return body.encoder.dropout(tokens + body.encoder.pos_embedding)

    def cls_head(x: Tensor) -> Outputs:
        features = body.encoder.ln(x)
        return Outputs(body.heads(features), features)

    def grid_of(size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // body.patch_size, size[1] // body.patch_size

    return ViT(
        model=body,
        blocks=tuple(Block(block) for block in body.encoder.layers),
        prefix=1,
        reads="cls",
        embed=embed,
        head=lambda z: cls_head(z[:, 0]),
        cls_head=cls_head,
        grid_of=grid_of,
        patch=(body.patch_size, body.patch_size),
        fixed_size=(body.image_size, body.image_size),
        final_norm=body.encoder.ln,
        readout=body.heads,
    )
