"""Partial LRP (Voita et al. 2019, as in Chefer's "last layer" baseline): relevance of the last attention matrix.

R starts as 1 at the asked output (for a contrast of logits, as its gradient in the logits) and goes back through head,
final norm, MLP, residual sums and projection of the last block by the rules of ``lrp_rules``; only the CLS token
carries any. At the attention, R_A = ½ A ⊙ (S Vᵀ) with S = R_o / o, and

    S_i = mean_h max(R_A^h[CLS, i], 0).
"""

from __future__ import annotations

import torch

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.tokens.lrp_rules import (
    LinearRule,
    head_rule,
    product_rule,
    run_chain,
    start_at_outputs,
    sum_rule,
)


def partial_lrp(context: Context, *, rule: str = "joint", stabiliser: float = 0.1) -> Result:
    """extras, each (B, T): ``start``, R at the outputs, and ``conserved``, what arrives at the last block's attention
    matrix, values and residual together. With ``rule="joint"`` they are equal; with "separate" they are not."""
    vit, parts = context.anatomy, context.run.parts
    assert parts is not None
    joint = rule == "joint"
    block, attention = parts.blocks[-1], parts.blocks[-1].softmax
    with torch.no_grad():
        z = context.run.tokens(-1)
        t = block.norm1(z)
        q, k, v = attention.project(t)
        a = attention.matrix(q[..., :1, :], k)
        o = a @ v
        joined = attention.out_norm(o.transpose(1, 2).flatten(2))
        branch = block.scale1(attention.proj(joined))
        middle = z[:, :1] + branch
        mlp = run_chain(block.mlp, block.norm2(middle), scale=block.scale2, joint=joint)
        grown = mlp.output
        features = parts.final_norm(middle + grown)[:, 0]
        start = start_at_outputs(context.targets, context.run.outputs.values)
        r = head_rule(parts.readout, features, start, joint=joint).unsqueeze(-2)
        r_middle, r_grown = sum_rule(middle, grown, r, stabiliser)
        r_middle = r_middle + mlp.relevance(r_grown)
        r_residual, r_branch = sum_rule(z[:, :1], branch, r_middle, stabiliser)
        r_joined = LinearRule(attention.proj.weight, joined, scale=block.scale1, joint=joint).relevance(r_branch)
        r_a, r_v = product_rule(a, v, r_joined.unflatten(-1, o.shape[1:2] + o.shape[3:]).transpose(-2, -3))
    arrived = r_a.flatten(2).sum(-1) + r_v.flatten(2).sum(-1) + r_residual.flatten(2).sum(-1)
    relevance = r_a.clamp(min=0).mean(2).squeeze(-2).movedim(0, 1)
    extras = {"start": start.sum(-1).T, "conserved": arrived.T}
    return Result(vit.to_grid(relevance, context.images), "exact", extras)
