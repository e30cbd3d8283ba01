"""Planes through a model in batches: the one place where stored HU become raw outputs outside of training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel


@torch.inference_mode()
def view_outputs(model: NoduleModel, planes: Tensor, batch_size: int = 64) -> Tensor:
    """Raw outputs of every view: (N, V, h, w) HU -> (N, V, outputs) on the CPU, without changing the model's mode.

    Views are averaged by the caller with ``.mean(1)``: in logit space for a binary output, as the paper does.
    """
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    flat = planes.reshape(-1, *planes.shape[-2:])
    parts = []
    try:
        for chunk in flat.split(batch_size):
            images = model.preprocess.apply(chunk.to(parameter.device, parameter.dtype))
            parts.append(model(images).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts).reshape(*planes.shape[:2], len(model.output_names))
