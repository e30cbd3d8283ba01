"""FullGrad (Srinivas & Fleuret 2019): what the input and every bias add to the score.

    φ ≈ Σ x ⊙ ∂φ/∂x + Σ_l Σ b_l ⊙ ∂φ/∂(W_l h + b_l)

exact for a logit of a network of convolutions, linear layers, batch norms (effective bias β − μγ/√(σ² + ε)), ReLU and
max or average pooling. The map is the sum of both parts on the image, every bias term spread so that its sum stays.
Elsewhere (GELU, SiLU, softmax, layer norm) a gap remains, and for targets that are no linear function of the logits
the sum is that of their linearisation ⟨∂φ/∂y, y⟩: ``residual`` says how far the terms are from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.attention_layer import AttentionLayer
from lidc_xai.explain.networks.context import Context, Pass, Result
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.parts import Block, Parts
from lidc_xai.explain.networks.plain_model import plain_forward
from lidc_xai.explain.pixels.bias_terms import BiasTerms
from lidc_xai.explain.targets import Outputs


def fullgrad(context: Context, post: str | None = None) -> Result:
    """(B, T, H, W); for a ViT (B, T, gh, gw), input times gradient being summed over each patch.

    ``post``: None for signed sums; "abs_minmax" for the public code's map (absolute values, scaled to [0, 1] per image
    and layer, resized bilinearly), which is neither signed nor complete and exists for CNNs alone. Extras, (B, T):
    ``flat``, the share of biases that lie on no image position (linear layers, CLS token), and, for signed sums,
    ``residual``: map + flat − ⟨∂φ/∂y, y⟩, 0 where FullGrad is exact.
    """
    vit = context.vit
    if post is not None and vit is not None:
        raise UsageError(f"post={post!r} is defined for convolutions, not for a ViT's tokens; leave post=None")
    inputs = context.images.clone().requires_grad_()
    terms = BiasTerms(inputs, None if vit is None else vit.grid(inputs), absolute=post is not None)
    parts = None if vit is None else context.run.parts

    def forward() -> Outputs:
        with terms:
            return _own(context.run, inputs, terms) if parts is None else _by_parts(parts, inputs, terms)

    outputs = context.network(forward)
    context.run.record(outputs)
    scores = context.targets.scores(outputs)
    if not scores.requires_grad:
        raise ModelError("the target does not depend on the image; there is nothing to explain")
    maps, flats = [], []
    for t in range(scores.shape[-1]):
        (slope,) = torch.autograd.grad(scores[:, t].sum(), inputs, retain_graph=True)
        relevance, flat = terms.take()
        maps.append(relevance + terms.input_map(context.images * slope))
        flats.append(flat)
    relevance, flat = torch.stack(maps, 1), torch.stack(flats, 1)
    extras = {"flat": flat}
    if post is None:
        extras["residual"] = relevance.sum((-2, -1)) + flat - _linearised(context, outputs)
    return Result(relevance, "autograd", extras)


def _own(run: Pass, inputs: Tensor, terms: BiasTerms) -> Outputs:
    """Outputs by the model's own modules; a ViT's positions are noted where its tokens enter the first block."""
    vit = run.vit
    if vit is None or vit.patch_embed is None or vit.not_plain is not None:
        return plain_forward(run.model, inputs)
    positions = _Positions(vit.prefix, terms)

    def note(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (positions.note(args[0]), *args[1:]) if args else None

    with hooked(vit.patch_embed, positions.keep), hooked(vit.blocks[0], note, before=True):
        return plain_forward(run.model, inputs)


def why_no_fullgrad(run: Pass) -> str | None:
    """Why some bias of the model has no place on the image, or None: found by a forward pass over one image."""
    inputs = run.images[:1].clone().requires_grad_()
    vit = run.vit
    terms = BiasTerms(inputs, None if vit is None else vit.grid(inputs))
    try:
        with terms:
            _own(run, inputs, terms)
    except ModelError as error:
        return str(error)
    return None


def _by_parts(parts: Parts, inputs: Tensor, terms: BiasTerms) -> Outputs:
    """A ViT's outputs with every bias in sight: position embedding, and the input biases of fused attention layers."""
    body: Any = parts.model
    timm = hasattr(body, "patch_embed")
    positions = _Positions(parts.prefix, terms)
    patch, embedded = (body.patch_embed, body.pos_drop) if timm else (body.conv_proj, body.encoder.dropout)
    with hooked(patch, positions.keep), hooked(embedded, lambda module, args, output: positions.note(output)):
        z = parts.embed(inputs)
    for block in parts.blocks:
        z = _block(block, z)
    return parts.head(z)


class _Positions:
    """What the tokens hold beyond the patch embedding: position embedding and prefix tokens, none of it the image's."""

    def __init__(self, prefix: int, terms: BiasTerms) -> None:
        self.prefix, self.terms = prefix, terms
        self.patches: Tensor | None = None

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        tokens = output.flatten(2).transpose(1, 2) if isinstance(module, nn.Conv2d) else output
        self.patches = tokens.detach().reshape(len(tokens), -1, tokens.shape[-1])

    def note(self, z: Tensor) -> Tensor:
        assert self.patches is not None
        flat = z.detach().reshape(len(z), -1, z.shape[-1])
        if flat[:, self.prefix :].shape != self.patches.shape:
            raise ModelError(
                f"fullgrad: {tuple(z.shape)} tokens enter the first block where the patch embedding made "
                f"{tuple(self.patches.shape)}: its positions have no place on the grid"
            )
        constant = flat - torch.cat([torch.zeros_like(flat[:, : self.prefix]), self.patches], 1)
        return self.terms.note_tokens(z, constant.reshape(z.shape))


def _block(block: Block, z: Tensor) -> Tensor:
    layer = block.attention
    if not isinstance(layer, AttentionLayer):
        return block(z)
    t = block.norm1(z)
    q, k, v = layer.project(t)
    o = nn.functional.scaled_dot_product_attention(layer.q_norm(q), layer.k_norm(k), v, scale=layer.scale)
    return block.finish(z, layer.mix(o, t))


def _linearised(context: Context, outputs: Outputs) -> Tensor:
    """⟨∂φ/∂y, y⟩ (B, T); for a concept ⟨∂φ/∂l, l⟩."""
    parts = outputs.map(lambda x: x.detach().requires_grad_())
    scores = context.targets.scores(parts)
    known = [x for x in parts if x is not None]
    columns = []
    for t in range(scores.shape[-1]):
        slopes = torch.autograd.grad(scores[:, t].sum(), known, retain_graph=True, allow_unused=True)
        shares = [(g * x).flatten(1).sum(1) for g, x in zip(slopes, known, strict=True) if g is not None]
        columns.append(torch.stack(shares).sum(0))
    return torch.stack(columns, 1).detach()
