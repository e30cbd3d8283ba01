"""Token ablation: S_i = f(x) − f(x without patch token i).

``at="input"``: the token is removed behind the position embedding, and the whole model runs without it. Where blocks
add positions of their own (rotary, relative), its key is hidden from every query of every block instead: for a head
that reads CLS that is the same, since nothing then reads the token.
``at="last"``: its key and value leave the last block's attention, so that the CLS row is a softmax without i:

    o₋ᵢ = Σ_{m≠i} softmax_{m≠i}(l)_m V_m          and the tail runs once per token (a closed form on the CLS row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.anatomy import Anatomy
from lidc_xai.explain.networks.attention_probe import AttentionProbe
from lidc_xai.explain.networks.context import Context, Pass, Result
from lidc_xai.explain.networks.parts import Parts
from lidc_xai.explain.tokens.recorded import why_no_matrix


def token_ablation(context: Context, *, at: str = "input") -> Result:
    """The score that each patch token holds up."""
    vit, parts = context.anatomy, context.run.parts
    if at == "last" and context.run.reads != "cls":
        reads = context.run.reads
        raise ModelError(f"token_ablation at='last' works on the CLS row; this head reads {reads}: use at='input'")
    with torch.no_grad():
        if parts is not None and at == "last":
            without = _without_at_last(context, parts)
        elif parts is None and context.run.reads == "cls":
            without = _hidden(context, vit, 0 if at == "input" else vit.depth - 1)
        else:
            without = _shortened(context, vit)
    change = context.values.unsqueeze(1) - without
    exact = at == "last" and parts is not None
    return Result(vit.to_grid(change.transpose(1, 2), context.images), "exact" if exact else "forward")


def _shortened(context: Context, vit: Anatomy) -> Tensor:
    """(B, N, C) scores without each patch token in turn; ``max_batch`` shortened images at a time."""
    z = context.run.tokens(0)
    everyone = torch.arange(z.shape[1], device=z.device)
    scores = []
    for removed in everyone[vit.prefix :].split(context.copies):
        kept = torch.stack([everyone[everyone != i] for i in removed])  # (n, T − 1)
        scores.append(context.targets.scores(context.run.finish(0, z[:, kept])))
    return torch.cat(scores, dim=1)


def why_no_ablation(run: Pass) -> str | None:
    """Why the model cannot do without a token, or None where it can."""
    vit = run.anatomy
    if run.parts is not None:
        return None
    if run.reads == "cls":
        return next(filter(None, (why_no_matrix(run, layer) for layer in range(vit.depth))), None)
    try:
        with torch.no_grad():
            run.finish(0, run.tokens(0)[:, :-1])
    except (RuntimeError, ValueError, AssertionError):
        return f"{vit.family} works on a fixed number of tokens, and its head reads {run.reads}, not CLS alone"
    return None


def _hidden(context: Context, vit: Anatomy, layer: int) -> Tensor:
    """(B, N, C) scores with each patch's key hidden from block ``layer`` on, through the model's own modules."""
    run, batch = context.run, len(context.images)
    z, t = run.tokens(layer), run.normed(layer)
    everyone = torch.arange(z.shape[1], device=z.device)
    scores = []
    for removed in everyone[vit.prefix :].split(context.copies):
        gone = (removed.unsqueeze(1) == everyone).repeat(batch, 1)
        probe = AttentionProbe(len(gone), z.shape[1], hidden=gone)
        shape = (batch, len(removed), *z.shape[1:])
        copies = [x.unsqueeze(1).expand(shape) for x in (z, t)]
        scores.append(context.targets.scores(run.finish(layer, copies[0], copies[1], probe)))
        for number in range(layer, vit.depth):
            probe.matrix(number, type(vit.blocks[number]).__name__)
    return torch.cat(scores, dim=1)


def _without_at_last(context: Context, parts: Parts) -> Tensor:
    """The same with each patch token out of the keys and values of the last block's CLS row."""
    assert parts.cls_head is not None
    block = parts.blocks[-1]
    z, t = context.run.tokens(-1), context.run.normed(-1)
    q, k, v = block.softmax.project(t)
    logits = block.softmax.logits(q[..., :1, :], k)
    everyone = torch.arange(z.shape[1], device=z.device)
    scores = []
    for removed in everyone[parts.prefix :].split(4 * block.softmax.head_dim):
        gone = removed.unsqueeze(1) == everyone
        o = logits.masked_fill(gone, -torch.inf).softmax(-1) @ v
        cls = block.finish(z[:, :1], block.softmax.mix(o, t[:, :1]))
        scores.append(context.targets.scores(parts.cls_head(cls)))
    return torch.cat(scores, dim=1)
