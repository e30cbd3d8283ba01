"""The eight symmetries of a square plane: exact, no pixel is interpolated."""

from __future__ import annotations

import torch
from torch import Tensor

TURNS = 8
"""The symmetries of a square: four quarter turns, and the same mirrored."""


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
