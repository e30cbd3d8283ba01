"""The CAM family at norm1 of the last block in closed form (see ``last_block`` for the symbols).

With g_i = ∂f/∂t_i = Σ_h A_i (ω + κ γ_i) at patch i, sums over the N patches:

    gradcam               S_i = Σ_k t_ik w_k,   w = (1/N) Σ_i g_i
    xgradcam              S_i = Σ_k t_ik w_k,   w_k = Σ_i g_ik t_ik / (Σ_i |t_ik| + 1e-7)
    linear_approximation  S_i = Σ_k t_ik g_ik,  which is CDAM

Only sums over patches of A, A γ, A t and A γ t enter: the gradients themselves, (C, N, D), are never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context


def norm1_cam(context: Context, kind: str) -> Tensor:
    """(B, C, gh, gw) of "gradcam", "xgradcam" or "linear_approximation" (summed over channels), signed."""
    vit = context.vit
    assert vit is not None
    block, row = context.run.last, context.run.last.row
    t = row.t
    u = block.pull(context.targets)
    with torch.no_grad():
        gamma = block.value_scores(t, u) + block.bias_score(row, u)
        attention = row.attention.unsqueeze(1)
        patches = t[:, block.prefix :]
        a, weighted = block.patches(attention), block.patches(attention * gamma)
        if kind == "linear_approximation":
            value = block.patches(attention * (gamma - block.bias_score(row, u)))
            key = weighted * block.patches(row.logits).unsqueeze(1)
            return vit.to_grid((value + key).sum(2), context.images)
        omega = torch.einsum("hed,bche->bchd", block.w_v, u)
        if kind == "gradcam":
            total = a.sum(-1, keepdim=True) * omega + weighted.sum(-1, keepdim=True) * row.key.unsqueeze(1)
            w = total.sum(2) / patches.shape[1]
        else:
            shared = (a.squeeze(1) @ patches).unsqueeze(1)
            by_patch = torch.einsum("bchn,bnd->bchd", weighted, patches)
            w = (shared * omega + by_patch * row.key.unsqueeze(1)).sum(2) / (patches.abs().sum(1).unsqueeze(1) + 1e-7)
        return vit.to_grid(w @ patches.transpose(1, 2), context.images)
