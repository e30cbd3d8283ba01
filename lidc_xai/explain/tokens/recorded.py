"""A forward pass of a ViT that keeps the attention matrix of every block, for the methods that multiply them.

The matrices are computed from the blocks' own queries and keys, so that neither a fused kernel nor a global switch
stands in the way. Gradients, if wanted, begin at the first block's matrix: nothing before it is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.vit import ViT


def attention_pass(
    context: Context, *, differentiable: bool, all_rows: bool = False, keep: Callable[[Tensor], Tensor] = lambda a: a
) -> tuple[list[Tensor], Outputs]:
    """([A_l (B, H, T, T)] from first to last block, outputs). The last block of a CLS-pooled model keeps the CLS row
    alone, (B, H, 1, T), unless ``all_rows`` are wanted. ``keep``: what is kept of each matrix."""
    vit = context.vit
    assert vit is not None
    with torch.no_grad():
        z = vit.embed(context.images)
    matrices: list[Tensor] = []
    with torch.set_grad_enabled(differentiable):
        for number, block in enumerate(vit.blocks):
            t = block.norm1(z)
            q, k, v = block.softmax.project(t)
            only_cls = number == len(vit.blocks) - 1 and vit.cls_head is not None and not all_rows
            rows = slice(0, 1 if only_cls else None)
            a = block.softmax.matrix(q[..., rows, :], k)
            if differentiable and not a.requires_grad:
                a.requires_grad_()
            matrices.append(keep(a))
            z = block.finish(z[:, rows], block.softmax.mix(a @ v, t[:, rows]))
        outputs = vit.head(z) if vit.cls_head is None else vit.cls_head(z[:, 0])
    context.run.record(outputs)
    return matrices, outputs


def attention_gradients(matrices: list[Tensor], score: Tensor, *, keep: bool) -> list[Tensor]:
    """∂(Σ score)/∂A_l for every block, by one backward pass; zeros where a matrix does not matter."""
    found = torch.autograd.grad(score.sum(), matrices, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(matrices, found, strict=True)]


def first_row(vit: ViT, matrices: list[Tensor]) -> Tensor:
    """(B, T): weights of the rows of the product that are read, CLS alone or the tokens that the head reads."""
    like = matrices[0]
    return vit.rows_read(like.shape[-1], like).expand(len(like), -1)


def row_times(row: Tensor, matrix: Tensor) -> Tensor:
    """row (B, T) · matrix (B, T, T), where a matrix (B, 1, T) is the CLS row alone (and row is CLS)."""
    if matrix.shape[-2] == 1:
        return row[:, :1] * matrix.squeeze(-2)
    return (row.unsqueeze(-2) @ matrix).squeeze(-2)
