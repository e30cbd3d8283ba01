"""The loss: BCE on binary outputs, MSE or Huber on standardised regression outputs, absent targets left out.

L = Σ_binary BCE + weight · mean over regression outputs; each output's loss is the mean over the nodules that have it.
``MaskHead`` is a helper task: from every patch token, how much of the patch the readers outlined. It shapes the tokens
and is thrown away with the optimiser; no mask is needed to predict or to explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lidc_xai.errors import UsageError
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.training.options import LossOptions


def masked_loss(
    outputs: Tensor, targets: Tensor, kinds: Sequence[str], options: LossOptions, positive_weight: float = 1.0
) -> Tensor:
    """Scalar loss of (B, outputs) raw outputs against targets (0/1 or standardised; NaN where there is none)."""
    binary, regression = [], []
    for column, kind in enumerate(kinds):
        present = torch.isfinite(targets[:, column])
        given = outputs[:, column]
        wanted = torch.where(present, targets[:, column], torch.zeros_like(given))
        if kind == "binary":
            smoothed = wanted * (1 - 2 * options.label_smoothing) + options.label_smoothing
            weight = torch.tensor(positive_weight, dtype=given.dtype, device=given.device)
            each = functional.binary_cross_entropy_with_logits(given, smoothed, pos_weight=weight, reduction="none")
            binary.append(_mean_of(each, present))
        else:
            measure = functional.mse_loss if options.regression == "mse" else functional.huber_loss
            regression.append(_mean_of(measure(given, wanted, reduction="none"), present))
    total = outputs.sum() * 0.0
    if binary:
        total = total + torch.stack(binary).sum()
    if regression:
        total = total + options.regression_weight * torch.stack(regression).mean()
    return total


def _mean_of(each: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, each, torch.zeros_like(each)).sum() / present.sum().clamp(min=1)


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
