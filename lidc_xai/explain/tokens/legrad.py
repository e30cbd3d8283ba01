"""LeGrad (Bousselham et al., ICCV 2025): how the score that every block already gives depends on its attention.

With z_l the output of block l and f_l the target read from it by the model's own final norm, pooling and head:

    S_i = mean_l mean_{h, rows} (∂f_l/∂A_l^h[row, i])⁺

The attention itself is not multiplied in, and nothing is scaled. Only the block's own attention is differentiated, so
that a block costs its own backward pass; for a head that reads CLS that is one row, through one token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidc_xai.explain.networks.attention_probe import AttentionProbe
from lidc_xai.explain.networks.context import Context, Result, gradients


def legrad(context: Context) -> Result:
    """(B, T, gh, gw), never negative. Any target: a contrast or a concept is read from every block in the same way."""
    vit = context.anatomy
    total: Tensor | None = None
    context.run.keep_all_tokens()
    block = _block if context.run.parts is not None else _own_block
    for number in range(vit.depth):
        part = block(context, number)
        total = part if total is None else total + part
    assert total is not None
    return Result(vit.to_grid(total / vit.depth, context.images), "autograd")


def _block(context: Context, number: int) -> Tensor:
    """mean_{h, rows} (∂f_l/∂A_l)⁺ of one block: (B, T, tokens)."""
    parts = context.run.parts
    assert parts is not None
    block = parts.blocks[number]
    z, t = context.run.tokens(number), context.run.normed(number)
    rows = slice(0, 1 if parts.cls_head is not None else None)
    with torch.no_grad():
        q, k, v = block.softmax.project(t)
        a = block.softmax.matrix(q[..., rows, :], k)
        del q, k
    a.requires_grad_()
    mixed = block.softmax.mix(a @ v, t[:, rows])
    out = block.finish(z[:, rows], mixed)
    outputs = parts.head(out) if parts.cls_head is None else parts.cls_head(out[:, 0])
    slopes = gradients(context.targets.scores(outputs), a).clamp_(min=0)  # (T, B, H, rows, tokens)
    return (slopes.mean(2).sum(2) / z.shape[1]).transpose(0, 1)


def _own_block(context: Context, number: int) -> Tensor:
    """The same through the model's own modules: the blocks behind this one pass its output on to the head."""
    vit, run = context.anatomy, context.run
    z, t = run.tokens(number), run.normed(number)
    probe = AttentionProbe(len(z), z.shape[1], differentiable=True)
    outputs = run.read_block(number, z, t, probe)
    a = probe.matrix(number, type(vit.blocks[number]).__name__)
    slopes = gradients(context.targets.scores(outputs), a, unused=True).clamp_(min=0)
    return slopes.mean((2, 3)).transpose(0, 1)
