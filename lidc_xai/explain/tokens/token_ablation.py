"""Token ablation: S_i = f(x) − f(x without patch token i).

``at="input"``: the token is removed behind the position embedding, and the whole model runs without it.
``at="last"``: its key and value leave the last block's attention, so that the CLS row is a softmax without i:

    o₋ᵢ = Σ_{m≠i} softmax_{m≠i}(l)_m V_m          and the tail runs once per token (a closed form on the CLS row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.networks.vit import ViT


def token_ablation(context: Context, *, at: str = "input") -> Result:
    """The score that each patch token holds up."""
    vit = context.vit
    assert vit is not None
    with torch.no_grad():
        without = _without_at_input(context, vit) if at == "input" else _without_at_last(context, vit)
    change = context.values.unsqueeze(1) - without
    return Result(vit.to_grid(change.transpose(1, 2), context.images), "forward" if at == "input" else "exact")


def _without_at_input(context: Context, vit: ViT) -> Tensor:
    """(B, N, C) scores without each patch token in turn; ``max_batch`` shortened images at a time."""
    z = vit.embed(context.images)
    tokens = z.shape[1]
    everyone = torch.arange(tokens, device=z.device)
    scores = []
    for removed in everyone[vit.prefix :].split(context.copies):
        kept = torch.stack([everyone[everyone != i] for i in removed])
        scores.append(context.targets.scores(vit.finish(0, z[:, kept])))
    return torch.cat(scores, dim=1)


def _without_at_last(context: Context, vit: ViT) -> Tensor:
    """The same with each patch token out of the keys and values of the last block's CLS row."""
    if vit.cls_head is None:
        raise ModelError(f"token_ablation at='last' works on the CLS row; this head reads {vit.reads}: use at='input'")
    block = vit.blocks[-1]
    z = context.run.tokens(-1)
    t = block.norm1(z)
    q, k, v = block.softmax.project(t)
    logits = block.softmax.logits(q[..., :1, :], k)
    everyone = torch.arange(z.shape[1], device=z.device)
    scores = []
    for removed in everyone[vit.prefix :].split(4 * block.softmax.head_dim):
        gone = removed.unsqueeze(1) == everyone
        o = logits.masked_fill(gone, -torch.inf).softmax(-1) @ v
        cls = block.finish(z[:, :1], block.softmax.mix(o, t[:, :1]))
        scores.append(context.targets.scores(vit.cls_head(cls)))
    return torch.cat(scores, dim=1)
