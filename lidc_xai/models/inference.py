"""Planes through a model in batches: the one place where stored HU become raw outputs outside of training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel

TURNS = 8
"""The symmetries of a square plane (no pixel is interpolated): four quarter turns, and the same mirrored."""


def turned(planes: Tensor, turn: int) -> Tensor:
    """(..., h, w) turned by ``turn`` % 4 quarters, then, from 4 on, mirrored left to right; exact.

    >>> import torch
    >>> turned(torch.tensor([[1, 2], [3, 4]]), 5).tolist()
    [[4, 2], [3, 1]]
    """
    quarter = torch.rot90(planes, turn % 4, (-2, -1))
    return quarter.flip(-1) if turn >= 4 else quarter


def turned_back(planes: Tensor, turn: int) -> Tensor:
    """The inverse of ``turned``."""
    mirrored = planes.flip(-1) if turn >= 4 else planes
    return torch.rot90(mirrored, -(turn % 4), (-2, -1))


@torch.inference_mode()
def view_outputs(model: NoduleModel, inputs: Tensor, batch_size: int = 64) -> Tensor:
    """Raw outputs of every view: (N, V, h, w) HU (``preprocess.inputs``; with neighbours (N, V, 3, h, w)) -> (N, V,
    outputs) on the CPU, without changing the model's mode.

    Of a model whose ``preprocess.turns`` is 8, each is the mean over the eight turns and mirrors of its plane. Views
    are averaged by the caller with ``.mean(1)``: in logit space for a binary output, as the paper does.
    """
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    flat = inputs.flatten(0, 1)
    turns = range(TURNS) if model.preprocess.turns == TURNS else range(1)
    parts = []
    try:
        for chunk in flat.split(batch_size):
            there = chunk.to(parameter.device, parameter.dtype)
            each = [model(model.preprocess.apply(turned(there, turn))).float() for turn in turns]
            parts.append(torch.stack(each).mean(0).cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts).reshape(*inputs.shape[:2], len(model.output_names))
