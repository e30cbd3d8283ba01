"""Relevance maps as metrics read them: on the pixel grid, in one order, with ties broken the same way for everybody.

A token map becomes pixels by nearest neighbour. Equal scores (all pixels of a token have one) are ordered by one seeded
permutation that every method shares, so that no method gains by the order in which pixels are stored.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lidc_xai.errors import DataError
from lidc_xai.explain.explanation import Explanation

MapLike: TypeAlias = Tensor | NDArray[np.floating]

NOT_FINITE = "the map is not finite"
CONSTANT = "the map is constant"


def as_map(relevance: MapLike, batch: int, device: torch.device | None = None) -> Tensor:
    """(B,h,w) float64 map on ``device``; (B,1,h,w) is accepted. ``DataError`` for any other shape or batch."""
    tensor = torch.as_tensor(relevance).detach()
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 3 or len(tensor) != batch or 0 in tensor.shape:
        raise DataError(f"relevance is (B, h, w) with one map for each of {batch} images, got {tuple(tensor.shape)}")
    return tensor.to(device=device, dtype=torch.float64)


def as_pixels(relevance: MapLike, batch: int, size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(B,H,W) float64: pixel maps as they are, token maps (whose grid divides the image) by nearest neighbour."""
    tensor = as_map(relevance, batch, device)
    grid = (tensor.shape[-2], tensor.shape[-1])
    if grid == size:
        return tensor
    if size[0] % grid[0] or size[1] % grid[1]:
        raise DataError(
            f"a map of {grid[0]}×{grid[1]} fits no image of {size[0]}×{size[1]} pixels; give one of the image's size "
            "or on its token grid (Explanation.to_pixels() makes pixels)"
        )
    return tensor.repeat_interleave(size[0] // grid[0], 1).repeat_interleave(size[1] // grid[1], 2)


def resampled(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) → (..., H, W): each pixel centre reads the cell that it lies in (any ratio)."""
    lead = relevance.shape[:-2]
    full = nn.functional.interpolate(relevance.reshape(-1, 1, *relevance.shape[-2:]), size=size, mode="nearest-exact")
    return full.reshape(*lead, *size)


def patch_means(relevance: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,H,W) → (B,gh,gw): how a pixel map reads as tokens. ``DataError`` where the grid does not divide it."""
    height, width = relevance.shape[-2:]
    if height % grid[0] or width % grid[1]:
        raise DataError(f"a grid of {grid[0]}×{grid[1]} does not divide a map of {height}×{width}")
    patches: Tensor = relevance.unflatten(-2, (grid[0], -1)).unflatten(-1, (grid[1], -1))
    return patches.mean((-3, -1))


def spanning(explanation: Explanation) -> Tensor:
    """(B,T,h,w) relevance whose grid spans exactly the image: a map of a padded image is cut to it, on its pixels."""
    if explanation.covered == explanation.image_size:
        return explanation.relevance
    return explanation.to_pixels()


def broken(maps: Tensor) -> Tensor:
    """(...) bool: which of (..., h, w) maps hold a value that is not finite."""
    return ~maps.isfinite().flatten(-2).all(-1)


def constant(maps: Tensor) -> Tensor:
    """(...) bool: which of (..., h, w) maps have no two different values."""
    flat = maps.flatten(-2)
    return flat.amax(-1) == flat.amin(-1)


def tie_permutation(count: int, seed: int, device: torch.device | None = None) -> Tensor:
    """The permutation (count,) of pixels that breaks ties: a matter of the number of pixels and the seed alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """(..., H, W) → ranks 0 (lowest) to H·W − 1 of one ascending sort, int32. Not-finite values count as 0."""
    flat = torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0).flatten(-2)
    permutation = tie_permutation(flat.shape[-1], seed, flat.device)
    order = permutation[flat[..., permutation].argsort(dim=-1, stable=True)]
    steps = torch.arange(flat.shape[-1], device=flat.device, dtype=torch.int32).expand_as(order)
    ranks = torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, steps)
    return ranks.view(maps.shape)


def distinct(maps: Tensor) -> tuple[Tensor, list[int]]:
    """(B,M,H,W) → the different ones among the M along the batch, and for each of the M which it is.

    A method that does not look at the target has M equal maps: they are perturbed once, and score exactly alike.
    """
    kept: list[int] = []
    which: list[int] = []
    for m in range(maps.shape[1]):
        same = next((n for n, k in enumerate(kept) if torch.equal(maps[:, m], maps[:, k])), None)
        if same is None:
            same = len(kept)
            kept.append(m)
        which.append(same)
    return maps[:, kept], which
