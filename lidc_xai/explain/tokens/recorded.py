"""A forward pass of a ViT that keeps the attention matrix of every block, for the methods that multiply them.

The matrices are computed from the blocks' own queries and keys (or seen on their way through the model's own modules),
so that neither a fused kernel nor a global switch stands in the way. Gradients, if wanted, begin at the first block's
matrix: nothing before it is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lidc_xai.explain.networks.attention_probe import AttentionProbe
from lidc_xai.explain.networks.context import Context, Pass
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.own_modules import look


def attention_pass(
    context: Context, *, differentiable: bool, all_rows: bool = False, keep: Callable[[Tensor], Tensor] = lambda a: a
) -> tuple[list[Tensor], Outputs]:
    """([A_l (B, H, T, T)] from first to last block, outputs). The last block of a CLS-pooled model keeps the CLS row
    alone, (B, H, 1, T), unless ``all_rows`` are wanted. ``keep``: what is kept of each matrix."""
    parts = context.run.parts
    if parts is None:
        return _own_pass(context, differentiable, keep)
    with torch.no_grad():
        z = parts.embed(context.images)
    matrices: list[Tensor] = []
    with torch.set_grad_enabled(differentiable):
        for number, block in enumerate(parts.blocks):
            t = block.norm1(z)
            q, k, v = block.softmax.project(t)
            only_cls = number == len(parts.blocks) - 1 and parts.cls_head is not None and not all_rows
            rows = slice(0, 1 if only_cls else None)
            a = block.softmax.matrix(q[..., rows, :], k)
            if differentiable and not a.requires_grad:
                a.requires_grad_()
            matrices.append(keep(a))
            z = block.finish(z[:, rows], block.softmax.mix(a @ v, t[:, rows]))
        outputs = parts.head(z) if parts.cls_head is None else parts.cls_head(z[:, 0])
    context.run.record(outputs)
    return matrices, outputs


def _own_pass(context: Context, differentiable: bool, keep: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Outputs]:
    """The same from the model's own modules, every row of every matrix."""
    vit = context.anatomy
    probe = AttentionProbe(len(context.images), vit.tokens(context.images), differentiable=differentiable)
    with torch.set_grad_enabled(differentiable):
        outputs = look(vit, context.images, (), probe).outputs
        matrices = [keep(probe.matrix(number, type(block).__name__)) for number, block in enumerate(vit.blocks)]
    context.run.record(outputs)
    return matrices, outputs


def block_matrix(context: Context, layer: int) -> Tensor:
    """A (B, H, T, T) of one block, from the model's own modules, without gradients."""
    vit, run = context.anatomy, context.run
    layer = vit.layer(layer)
    probe = AttentionProbe(len(context.images), vit.tokens(context.images))
    with torch.no_grad():
        run.finish(layer, run.tokens(layer), run.normed(layer), probe)
    return probe.matrix(layer, type(vit.blocks[layer]).__name__)


def why_no_matrix(run: Pass, layer: int) -> str | None:
    """Why block ``layer``'s attention matrix cannot be read, or None where it can: tried once, on one image."""
    vit, parts = run.anatomy, run.parts
    if parts is not None:
        attention = parts.blocks[layer].attention
        return attention if isinstance(attention, str) else None
    if layer not in run.facts.attention:
        probe = AttentionProbe(1, vit.tokens(run.images))
        with torch.no_grad():
            look(vit, run.images[:1], (), probe)
        for number, block in enumerate(vit.blocks):
            run.facts.attention[number] = probe.why_not(number, type(block).__name__) or ""
    return run.facts.attention[layer] or None


def attention_gradients(matrices: list[Tensor], score: Tensor, *, keep: bool) -> list[Tensor]:
    """∂(Σ score)/∂A_l for every block, by one backward pass; zeros where a matrix does not matter."""
    slopes = torch.autograd.grad(score.sum(), matrices, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(matrices, slopes, strict=True)]


def first_row(context: Context, matrices: list[Tensor]) -> Tensor:
    """(B, T): weights of the rows of the product that are read, CLS alone or the tokens that the head reads."""
    return context.run.rows_read().to(matrices[0]).expand(len(matrices[0]), -1)


def row_times(row: Tensor, matrix: Tensor) -> Tensor:
    """row (B, T) · matrix (B, T, T), where a matrix (B, 1, T) is the CLS row alone (and row is CLS)."""
    if matrix.shape[-2] == 1:
        return row[:, :1] * matrix.squeeze(-2)
    return (row.unsqueeze(-2) @ matrix).squeeze(-2)
