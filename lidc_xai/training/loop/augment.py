"""Augmentation of planes as one batched resampling, with every number drawn beforehand.

The draws of an epoch depend on seed and epoch alone, one row per nodule, so that the order of nodules, the batch size,
a restart and the number of processes change nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lidc_xai.training.options import AugmentOptions


@dataclass
class Draws:
    """Random choices for n nodules: view and slice (n,), affine (n, 2, 3) in normalised coordinates, zoom, HU
    change.
    """

    view: Tensor
    slice: Tensor
    affine: Tensor
    zoom: Tensor
    shift_hu: Tensor
    scale_hu: Tensor


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, the same everywhere."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def draw(options: AugmentOptions, count: int, pixels: int, views: int, slices: int, seed: int, epoch: int) -> Draws:
    """Choices for ``count`` nodules in one epoch; ``pixels`` is the side of a plane."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))

    def symmetric(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    view = torch.randint(views, (count,), generator=generator)
    index = torch.randint(slices, (count,), generator=generator)
    quarter = torch.randint(4, (count,), generator=generator) * float(options.rotate90)
    mirror = 1 - 2 * torch.randint(2, (count,), generator=generator) * float(options.flip)
    angle = quarter * (math.pi / 2) + symmetric(math.radians(options.rotate_degrees))
    zoom = 1 + symmetric(options.scale)
    shift = torch.stack([symmetric(options.shift_pixels), symmetric(options.shift_pixels)], dim=1) * (2 / pixels)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rotation = torch.stack([torch.stack([cosine * mirror, -sine], 1), torch.stack([sine * mirror, cosine], 1)], dim=1)
    affine = torch.cat([rotation, shift[:, :, None]], dim=2)
    return Draws(view, index, affine, zoom, symmetric(options.shift_hu), 1 + symmetric(options.scale_hu))


def augmented(planes: Tensor, draws: Draws, rows: Tensor, centre_hu: float) -> Tensor:
    """(B, h, w) HU -> the same shape: plane b changed by row ``rows[b]`` of the draws; beyond the edge, the edge."""
    changed = moved(planes, draws, rows)
    stretch = draws.scale_hu[rows].to(planes.device)[:, None, None]
    return (changed - centre_hu) * stretch + centre_hu + draws.shift_hu[rows].to(planes.device)[:, None, None]


def moved(planes: Tensor, draws: Draws, rows: Tensor) -> Tensor:
    """(B, h, w) -> the same shape: turned, mirrored, shifted and zoomed as the draws say, values left alone."""
    affine = draws.affine[rows].to(planes.device)
    grid = functional.affine_grid(affine, [len(planes), 1, *planes.shape[-2:]], False)
    return functional.grid_sample(
        planes[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0]  # fmt: skip
