"""The attention map: what share of its attention the head's token gives to each patch.

    S_i = mean_h A^h[CLS, i]

No renormalisation after dropping the prefix tokens. For a head that does not read CLS: the mean over the rows of the
tokens that it reads. The map does not look at the target.
"""

from __future__ import annotations

import torch

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.tokens.recorded import block_matrix


def attention(context: Context, *, per_head: bool = False, layer: int = -1) -> Result:
    """Attention in block ``layer``, computed from its queries and keys. extras: ``per_head`` (B, 1, H, gh, gw)."""
    vit, run = context.vit, context.run
    assert vit is not None
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
