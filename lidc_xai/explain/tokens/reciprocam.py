"""ViT-ReciproCAM (Byun & Lee 2023, arXiv 2310.02588): which class does the model see in one token's neighbourhood?

For patch i the normalised tokens of a block are masked, t_j ← m_ij t_j, with m_i the 3×3 kernel [1 2 1]ᵀ[1 2 1]/16
around i (not renormalised at the border), or i alone ("dirac"), and 0 elsewhere; CLS is kept or zeroed, other prefix
tokens are kept; the residual stream is not masked. S_i is the score of the masked model: the class probability by
default. ``tokens="block_input"`` masks what enters the block instead (the output of the block before), and with it the
residual stream; behind norm1 a masked token is then the norm's bias.

In the last block a masked token's logit is m_ij l_j and its value m_ij v⁰_j + b_V, so that all N masks are one
(N, T)·(T, d) product per head, without an N-fold batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.explain.networks.anatomy import Anatomy
from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.networks.outputs import Outputs


def reciprocam(
    context: Context, *, kernel: str = "gaussian", cls: bool = True, layer: int = -1, tokens: str = "norm1"
) -> Result:
    """Scores of the model with all patches but one neighbourhood masked, raw."""
    vit = context.anatomy
    index = vit.layer(layer)
    no_closed_form = context.run.no_closed_form if index == vit.depth - 1 else "it holds in the last block only"
    if tokens == "block_input":
        no_closed_form = "it holds for masked norm1 tokens only"
    exact = context.use_exact(no_closed_form)
    masks = _masks(vit, context.images, kernel, cls)
    with torch.no_grad():
        if exact:
            outputs = _exact(context, cls)
        else:
            z = context.run.tokens(index)
            t = context.run.normed(index)

            def outputs(mask: Tensor) -> Outputs:
                if tokens == "block_input":
                    return context.run.finish(index, z.unsqueeze(1) * mask.unsqueeze(-1))
                masked = t.unsqueeze(1) * mask.unsqueeze(-1)
                return context.run.finish(index, z.unsqueeze(1).expand_as(masked), masked)

        # with the closed form, as many masks as keep (heads, masks, T) near the size of the MLP's hidden layer
        size = 2 * context.run.last.w_v.shape[1] if exact else context.copies
        scores = [context.targets.scores(outputs(part)) for part in masks.split(size)]
    scores_by_target = torch.cat(scores, dim=1).transpose(1, 2)
    return Result(vit.to_grid(scores_by_target, context.images), "exact" if exact else "forward")


def _exact(context: Context, cls: bool) -> Callable[[Tensor], Outputs]:
    """masks (n, T) → outputs (B, n, C)."""
    block, t = context.run.last, context.run.last.t
    seen = t if cls else torch.cat([torch.zeros_like(t[:, :1]), t[:, 1:]], dim=1)
    logits, v0 = block.row_of(seen).logits, block.values(seen)

    def outputs(mask: Tensor) -> Outputs:
        attention = (mask * logits.unsqueeze(-2)).softmax(-1)
        mixed = (attention * mask) @ v0 + block.b_v.unsqueeze(-2)
        return block.tail(mixed.transpose(1, 2))

    return outputs


def _masks(vit: Anatomy, images: Tensor, kernel: str, cls: bool) -> Tensor:
    """(N, T): row i multiplies the tokens when patch i is asked about."""
    rows, columns = vit.grid(images)

    def near(count: int) -> Tensor:
        offset = (torch.arange(count).unsqueeze(0) - torch.arange(count).unsqueeze(1)).abs()
        weight = torch.tensor([0.5, 0.25] if kernel == "gaussian" else [1.0, 0.0])
        return torch.where(offset < 2, weight[offset.clamp(max=1)], torch.zeros(()))

    patches = torch.kron(near(rows), near(columns))
    prefix = torch.ones(len(patches), vit.prefix)
    if not cls:
        if vit.prefix == 0:
            raise UsageError("cls=False: this model has no CLS token")
        prefix[:, 0] = 0
    return torch.cat([prefix, patches], dim=1).to(images)
