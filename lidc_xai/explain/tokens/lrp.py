"""LRP on a ViT (rules: ``lrp_rules``), from the output to attention matrices.

transformer_attribution (Chefer et al. CVPR 2021): attention gradients times relevance, over all blocks. Residual sums
split R by their terms and then rescale both parts by their total masses, image by image, as the authors do. Then

    Ā_l = mean_h (∇A_l ⊙ R_A,l)⁺,      r ← r + r·Ā_l  from the last block to ``start_layer``, from the CLS row.

partial_lrp (Voita et al. 2019, as in Chefer's "last layer" baseline): relevance of the last attention matrix. R starts
as 1 at the asked output (for a contrast of logits, as its gradient in the logits) and goes back through head, final
norm, MLP, residual sums and projection of the last block; only the CLS token carries any. At the attention
R_A = ½ A ⊙ (S Vᵀ) with S = R_o / o, and S_i = mean_h max(R_A^h[CLS, i], 0).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.networks.parts import Block
from lidc_xai.explain.tokens.lrp_rules import (
    LinearRule,
    head_rule,
    product_rule,
    quotient,
    run_chain,
    start_at_outputs,
    sum_rule,
)
from lidc_xai.explain.tokens.recorded import attention_gradients, attention_pass, first_row, row_times


def transformer_attribution(context: Context, *, start_layer: int = 0, stabiliser: float = 0.1) -> Result:
    """The rollout product is not normalised by rows. Target after target: only one has its matrices in memory."""
    vit, parts = context.anatomy, context.run.parts
    assert parts is not None
    start = vit.layer(start_layer)
    matrices, outputs = attention_pass(context, differentiable=True, all_rows=True)
    scores = context.targets.scores(outputs)
    with torch.no_grad():
        at_outputs = start_at_outputs(context.targets, context.run.outputs.values)
        z, seen = parts.embed(context.images), []
        for block in parts.blocks:
            seen.append(_Seen(block, z))
            z = seen[-1].output
        at_cls = head_rule(parts.readout, parts.final_norm(z)[:, 0], at_outputs)
    maps = []
    for t in range(scores.shape[-1]):
        weights = attention_gradients(matrices, scores[..., t], keep=t < scores.shape[-1] - 1)
        with torch.no_grad():
            r, row = torch.zeros_like(z), first_row(context, matrices)
            r[:, 0] = at_cls[t]
            for number in reversed(range(start, len(matrices))):
                r, r_a = _block_rule(parts.blocks[number], seen[number], r, stabiliser)
                row = row + row_times(row, (weights[number] * r_a).clamp(min=0).mean(1))
        maps.append(vit.to_grid(row, context.images))
    return Result(torch.stack(maps, dim=1), "autograd")


def partial_lrp(context: Context, *, rule: str = "joint", stabiliser: float = 0.1) -> Result:
    """extras, each (B, T): ``start``, R at the outputs, and ``conserved``, what arrives at the last block's attention
    matrix, values and residual together. With ``rule="joint"`` they are equal; with "separate" they are not."""
    vit, parts = context.anatomy, context.run.parts
    assert parts is not None
    joint, attention = rule == "joint", parts.blocks[-1].softmax
    with torch.no_grad():
        seen = _Seen(parts.blocks[-1], context.run.tokens(-1), slice(1), joint)
        features = parts.final_norm(seen.output)[:, 0]
        start = start_at_outputs(context.targets, context.run.outputs.values)
        r = head_rule(parts.readout, features, start, joint=joint).unsqueeze(-2)
        r_middle, r_grown = sum_rule(seen.middle, seen.mlp.output, r, stabiliser)
        r_middle = r_middle + seen.mlp.relevance(r_grown)
        r_residual, r_branch = sum_rule(seen.z, seen.branch, r_middle, stabiliser)
        r_joined = seen.proj.relevance(r_branch).unflatten(-1, (attention.heads, attention.head_dim))
        r_a, r_v = product_rule(seen.a, seen.v, r_joined.transpose(-2, -3))
    arrived = r_a.flatten(2).sum(-1) + r_v.flatten(2).sum(-1) + r_residual.flatten(2).sum(-1)
    relevance = r_a.clamp(min=0).mean(2).squeeze(-2).movedim(0, 1)
    extras = {"start": start.sum(-1).T, "conserved": arrived.T}
    return Result(vit.to_grid(relevance, context.images), "exact", extras)


class _Seen:
    """What one block computed on the way forward from tokens z (B, T, D), and the rules of its linear layers there.

    ``rows``: the tokens that go on behind the attention (CLS alone, for R of the last attention matrix).
    """

    def __init__(self, block: Block, z: Tensor, rows: slice = slice(None), joint: bool = True) -> None:
        attention, self.t = block.softmax, block.norm1(z)
        self.weight = attention.weight
        q, k, self.v = attention.project(self.t)
        q = q[..., rows, :]
        self.q, self.k, self.a, self.z = attention.q_norm(q), attention.k_norm(k), attention.matrix(q, k), z[:, rows]
        joined = attention.out_norm((self.a @ self.v).transpose(1, 2).flatten(2))
        self.branch = block.scale1(attention.proj(joined))
        self.middle = self.z + self.branch
        self.proj = LinearRule(attention.proj.weight, joined, scale=block.scale1, joint=joint)
        self.mlp = run_chain(block.mlp, block.norm2(self.middle), scale=block.scale2, joint=joint)
        self.output = self.middle + self.mlp.output

    @cached_property
    def qkv(self) -> LinearRule:
        assert self.weight is not None
        return LinearRule(self.weight, self.t)


def _block_rule(block: Block, seen: _Seen, r: Tensor, stabiliser: float) -> tuple[Tensor, Tensor]:
    """(R at the block's input, R at its attention matrix) from R at its output (B, T, D)."""
    attention = block.softmax
    r_middle, r_grown = _balanced_sum_rule(seen.middle, seen.mlp.output, r, stabiliser)
    r_middle = r_middle + seen.mlp.relevance(r_grown)
    r_z, r_branch = _balanced_sum_rule(seen.z, seen.branch, r_middle, stabiliser)
    r_o = seen.proj.relevance(r_branch).unflatten(-1, (attention.heads, attention.head_dim)).transpose(-2, -3)
    r_a, r_v = product_rule(seen.a, seen.v, r_o)
    r_q, r_k = product_rule(seen.q, seen.k.transpose(-1, -2), r_a)
    r_qkv = torch.stack([r_q, r_k.transpose(-1, -2), r_v]).transpose(-2, -3).movedim(0, -3).flatten(-3)
    return r_z + seen.qkv.relevance(r_qkv), r_a


def _balanced_sum_rule(a: Tensor, b: Tensor, r: Tensor, stabiliser: float) -> tuple[Tensor, Tensor]:
    """The sum rule, then both parts rescaled so that image by image each holds the share of the total that its
    absolute mass has: Σ R_a = |Σ R_a| / (|Σ R_a| + |Σ R_b|) Σ R."""

    def total(x: Tensor) -> Tensor:
        return x.sum((-2, -1), keepdim=True)

    r_a, r_b = sum_rule(a, b, r, stabiliser)
    mass_a, mass_b, mass = total(r_a).abs(), total(r_b).abs(), total(r)
    share_a, share_b = quotient(mass_a, mass_a + mass_b) * mass, quotient(mass_b, mass_a + mass_b) * mass
    return r_a * quotient(share_a, total(r_a)), r_b * quotient(share_b, total(r_b))
