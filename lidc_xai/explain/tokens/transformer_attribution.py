"""Transformer attribution (Chefer et al. CVPR 2021): attention gradients times LRP relevance, over all blocks.

LRP (``lrp_rules``) runs from the output to every block's attention matrix; its residual sums split R by their
terms and then rescale both parts by their total masses, image by image, as the authors do. Then

    Ā_l = mean_h (∇A_l ⊙ R_A,l)⁺,      r ← r + r·Ā_l  from the last block to ``start_layer``, from the CLS row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.networks.parts import Block, Parts
from lidc_xai.explain.tokens.lrp_rules import (
    Chain,
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
        seen, z = _run_blocks(context, parts)
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


@dataclass(frozen=True)
class _Seen:
    """What one block computed on the way forward, and the rules of its linear layers there."""

    z: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    branch: Tensor
    middle: Tensor
    grown: Tensor
    qkv: LinearRule
    proj: LinearRule
    mlp: Chain


def _run_blocks(context: Context, parts: Parts) -> tuple[list[_Seen], Tensor]:
    """(every block's computation, the tokens that leave the last)."""
    z = parts.embed(context.images)
    seen = []
    for block in parts.blocks:
        seen.append(_run_block(block, z))
        z = seen[-1].middle + seen[-1].grown
    return seen, z


def _run_block(block: Block, z: Tensor) -> _Seen:
    attention = block.softmax
    assert attention.weight is not None
    t = block.norm1(z)
    q, k, v = attention.project(t)
    a = attention.matrix(q, k)
    joined = attention.out_norm((a @ v).transpose(1, 2).flatten(2))
    branch = block.scale1(attention.proj(joined))
    middle = z + branch
    mlp = run_chain(block.mlp, block.norm2(middle), scale=block.scale2)
    return _Seen(
        z=z,
        q=attention.q_norm(q),
        k=attention.k_norm(k),
        v=v,
        a=a,
        branch=branch,
        middle=middle,
        grown=mlp.output,
        qkv=LinearRule(attention.weight, t),
        proj=LinearRule(attention.proj.weight, joined, scale=block.scale1),
        mlp=mlp,
    )


def _block_rule(block: Block, seen: _Seen, r: Tensor, stabiliser: float) -> tuple[Tensor, Tensor]:
    """(R at the block's input, R at its attention matrix) from R at its output (B, T, D)."""
    attention = block.softmax
    r_middle, r_grown = _balanced_sum_rule(seen.middle, seen.grown, r, stabiliser)
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
