"""The loss: BCE on binary outputs, MSE or Huber on standardised regression outputs, absent targets left out.

L = Σ_binary BCE + weight · mean over regression outputs; each output's loss is the mean over the nodules that have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

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
