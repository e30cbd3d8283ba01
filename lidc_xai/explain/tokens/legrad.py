"""LeGrad (Bousselham et al., ICCV 2025): how the score that every block already gives depends on its attention.

With z_l the output of block l and f_l the target read from it by the model's own final norm, pooling and head:

    S_i = mean_l mean_{h, rows} (∂f_l/∂A_l^h[row, i])⁺

The attention itself is not multiplied in, and nothing is scaled. Only the block's own attention is differentiated, so
that a block costs its own backward pass; for a head that reads CLS that is one row, through one token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result, gradients


def legrad(context: Context) -> Result:
    """(B, T, gh, gw), never negative. Any target: a contrast or a concept is read from every block in the same way."""
    vit = context.vit
    assert vit is not None
    total: Tensor | None = None
    for number in range(len(vit.blocks)):
        found = _block(context, number)
        total = found if total is None else total + found
    assert total is not None
    return Result(vit.to_grid(total / len(vit.blocks), context.images), "autograd")


def _block(context: Context, number: int) -> Tensor:
    """mean_{h, rows} (∂f_l/∂A_l)⁺ of one block: (B, T, tokens)."""
    vit = context.vit
    assert vit is not None
    block = vit.blocks[number]
    z = context.run.tokens(number)
    rows = slice(0, 1 if vit.cls_head is not None else None)
    with torch.no_grad():
        t = block.norm1(z)
        q, k, v = block.softmax.project(t)
        a = block.softmax.matrix(q[..., rows, :], k)
    a.requires_grad_()
    mixed = block.softmax.mix(a @ v, t[:, rows])
    out = block.finish(z[:, rows], mixed)
    outputs = vit.head(out) if vit.cls_head is None else vit.cls_head(out[:, 0])
    slopes = gradients(context.targets.scores(outputs), a).clamp_(min=0)  # (T, B, H, rows, tokens)
    return (slopes.mean(2).sum(2) / z.shape[1]).transpose(0, 1)
