"""The attention of the CLS token to the patches: in one block, and as products of matrices over the blocks.

    attention              S_i = mean_h A^h[CLS, i]
    attention_rollout      r ← r·Â_l,        Â = rownorm(fuse_h(A^h) + I)                   Abnar & Zuidema 2020
    gradient_rollout       r ← r·Â_l,        Â = rownorm((mean_h A^h ⊙ ∇A^h)⁺ + I)          Gildenblat
                           or, contrastive,  Â = (mean_h(A^h ⊙ ∇A^h) + I)/2
    relevance_propagation  r ← r + r·Ā_l,    Ā = mean_h (A^h ⊙ ∇A^h)⁺                       Chefer et al. ICCV 2021

For a head that does not read CLS: the mean over the rows of the tokens that it reads. Nothing is normalised anew after
the prefix tokens are dropped. r starts at CLS and runs from the last block to the first. That is the CLS row of the
full product, exactly, at O(T²) per block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.tokens.recorded import attention_gradients, attention_pass, block_matrix, first_row, row_times

_FUSE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "max": lambda a: a.amax(1),
    "min": lambda a: a.amin(1),
}


def attention(context: Context, *, per_head: bool = False, layer: int = -1) -> Result:
    """Attention in block ``layer``, computed from its queries and keys. extras: ``per_head`` (B, 1, H, gh, gw)."""
    vit, run = context.anatomy, context.run
    with torch.no_grad():
        t, weights, parts = run.normed(layer), run.rows_read(), run.parts
        if parts is None:
            rows = weights @ block_matrix(context, layer)
        else:
            softmax = parts.blocks[vit.layer(layer)].softmax
            q, k, _ = softmax.project(t)
            if weights[0] == 1:
                rows = softmax.matrix(q[..., :1, :], k).squeeze(-2)
            else:
                rows = weights @ softmax.matrix(q, k)
        heads = vit.to_grid(rows, context.images).unsqueeze(1)
    return Result(heads.mean(2), "exact", {"per_head": heads} if per_head else {})


def attention_rollout(
    context: Context, *, discard_ratio: float = 0.0, fusion: str = "mean", start_layer: int = 0
) -> Result:
    """Rollout with rows normalised after the identity is added. ``discard_ratio`` drops the lowest entries of each
    image's fused matrix. Does not look at the target."""
    vit = context.anatomy
    start = vit.layer(start_layer)
    fused, _ = attention_pass(context, differentiable=False, all_rows=discard_ratio > 0, keep=_FUSE[fusion])
    row = first_row(context, fused)
    for a in reversed(fused[start:]):
        row = _through(row, _discard(a, discard_ratio), normalise=True)
    return Result(vit.to_grid(row, context.images).unsqueeze(1), "forward")


def gradient_rollout(
    context: Context, *, discard_ratio: float = 0.0, clamp: bool = True, start_layer: int = 0
) -> Result:
    """Each block's attention weighted by its own gradient: mean over heads, then the clamp. ``clamp=False``, the
    contrastive form, keeps signs and does not normalise: the sum of a signed row can be anywhere near zero."""
    vit = context.anatomy
    start = vit.layer(start_layer)
    matrices, outputs = attention_pass(context, differentiable=True, all_rows=discard_ratio > 0)
    scores = context.targets.scores(outputs)
    maps = []
    for t in range(scores.shape[-1]):
        row = first_row(context, matrices)
        weights = attention_gradients(matrices, scores[..., t], keep=t < scores.shape[-1] - 1)
        for a, g in zip(reversed(matrices[start:]), reversed(weights[start:]), strict=True):
            weighted = (a.detach() * g).mean(1)
            weighted = _discard(weighted.clamp(min=0) if clamp else weighted, discard_ratio)
            row = _through(row, weighted, normalise=clamp)
        maps.append(vit.to_grid(row, context.images))
    return Result(torch.stack(maps, dim=1), "autograd")


def relevance_propagation(context: Context) -> Result:
    """Clamp in each head, then the mean over heads; no normalisation of rows."""
    vit = context.anatomy
    matrices, outputs = attention_pass(context, differentiable=True)
    scores = context.targets.scores(outputs)
    maps = []
    for t in range(scores.shape[-1]):
        row = first_row(context, matrices)
        weights = attention_gradients(matrices, scores[..., t], keep=t < scores.shape[-1] - 1)
        for a, g in zip(reversed(matrices), reversed(weights), strict=True):
            row = row + row_times(row, g.mul_(a.detach()).clamp_(min=0).mean(1))
        maps.append(vit.to_grid(row, context.images))
    return Result(torch.stack(maps, dim=1), "autograd")


def _through(row: Tensor, matrix: Tensor, *, normalise: bool) -> Tensor:
    """row·rownorm(matrix + I), or row·(matrix + I)/2."""
    if not normalise:
        return (row + row_times(row, matrix)) / 2
    sums = matrix.sum(-1) + 1
    scaled = row / sums if matrix.shape[-2] > 1 else torch.cat([row[:, :1] / sums, row[:, 1:]], dim=1)
    return scaled + row_times(scaled, matrix)


def _discard(matrix: Tensor, ratio: float) -> Tensor:
    """The lowest ``ratio`` of each image's entries set to 0, the entry of CLS to CLS kept."""
    if ratio == 0:
        return matrix
    if not 0 < ratio < 1:
        raise UsageError(f"discard_ratio lies in [0, 1), not {ratio}")
    flat = matrix.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * ratio), dim=1, largest=False).indices
    kept = flat.scatter(1, lowest, 0.0)
    kept[:, 0] = flat[:, 0]
    return kept.view_as(matrix)
