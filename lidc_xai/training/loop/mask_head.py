"""A helper task of training: from every patch token, how much of the patch the readers outlined.

It shapes the tokens and is thrown away with the optimiser; no mask is needed to predict or to explain.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lidc_xai.errors import UsageError
from lidc_xai.models.nodule_model import NoduleModel


class MaskHead(nn.Module):
    """A linear layer on the patch tokens (B, T, width); called with masks (B, h, w) it gives the mean cross entropy
    against the share of each patch inside the mask.
    """

    def __init__(self, model: NoduleModel) -> None:
        super().__init__()
        network: Any = model.backbone
        if not hasattr(network, "patch_embed"):
            name = model.recipe["backbone"]
            raise UsageError(f"loss.mask_weight needs a ViT, whose tokens are patches; {name!r} is none")
        rows, columns = network.patch_embed.grid_size
        self.grid = (int(rows), int(columns))
        self.prefix = int(network.num_prefix_tokens)
        self.linear = nn.Linear(int(network.num_features), 1)

    def forward(self, tokens: Tensor, masks: Tensor) -> Tensor:
        share = functional.adaptive_avg_pool2d(masks[:, None], self.grid).flatten(1)
        logits = self.linear(tokens[:, self.prefix :])[..., 0]
        return functional.binary_cross_entropy_with_logits(logits, share.to(logits))
