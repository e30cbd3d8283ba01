"""SaCo, the salience-guided faithfulness coefficient (Wu et al., CVPR 2024): does more relevance mean more effect?

Cells (tokens) are sorted by relevance into K groups of equal size, G_1 the highest. With s_i = Σ S over G_i of the map
scaled to [0, 1] and d_i = f(x) − f(x with G_i replaced), f the probability (the raw output of a regression):

    F = Σ_{i<j} w_ij / Σ_{i<j} |w_ij|,     w_ij = s_i − s_j where d_i ≥ d_j, else −(s_i − s_j)

F lies in [−1, 1]: 1 where every group costs at least what a less relevant one costs. Groups are of exactly equal size,
since a larger group costs more whatever it holds: larger groups first would lift a random map to +0.2. K is the divisor
of the number of cells nearest 10 (from 5 to 20); where there is none K = 10, and the last cells of a seeded order are
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, scored_for_one
from lidc_xai.evaluation.maps import (
    CONSTANT,
    NOT_FINITE,
    MapLike,
    as_map,
    as_pixels,
    broken,
    constant,
    distinct,
    patch_means,
    pixel_ranks,
    tie_permutation,
)
from lidc_xai.evaluation.metrics._deletion_insertion import read_as_probability
from lidc_xai.evaluation.replacement import Perturbing, options_as
from lidc_xai.evaluation.results import Result, finite, first_reason
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.networks.context import Pass
from lidc_xai.explain.targets import Outputs, TargetsLike

NEAREST = 10
_FEWEST, _MOST = 5, 20


@dataclass(frozen=True, eq=False, kw_only=True)
class SaCoResult(Result):
    """``saco`` (B,) in [−1, 1], NaN for a map that is constant or not finite; ``groups`` K, the same for all."""

    saco: Floats
    groups: int

    figures: ClassVar[tuple[str, ...]] = ("saco",)
    shared: ClassVar[tuple[str, ...]] = ("groups",)


@dataclass(frozen=True, kw_only=True)
class SaCoOptions(Perturbing):
    """``grid``: read pixel maps as means over this grid's patches; None: a ViT's token grid, else the map as it is."""

    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is not None and min(self.grid) < 1:
            raise UsageError(f"grid is (rows, columns) from 1, not {self.grid}")


def saco(
    model: nn.Module, images: Tensor, relevance: MapLike, target: TargetsLike = None, **options: Any
) -> SaCoResult:
    """SaCo of ``relevance`` (B,gh,gw) or (B,H,W) for one target of ``images`` (B,C,H,W), normalised.

    A bare index or name means its probability (the raw output of a regression); a Target is taken as it is. Options:
    ``grid`` and those of ``fidelity`` (replacement, sigma, sigma_mm, spacing_mm, masks, seed, max_batch, …).

    >>> import torch
    >>> from lidc_xai.evaluation import saco
    >>> from lidc_xai.models import build_model
    >>> model = build_model("vit_small64_p8", ["malignancy"], seed=0)
    >>> found = saco(model, torch.randn(2, 3, 64, 64), torch.randn(2, 8, 8), "malignancy")
    >>> found.saco.shape, found.groups
    ((2,), 8)
    """
    chosen = options_as(SaCoOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    maps = on_cells(model, asked.images, as_map(relevance, len(asked.images), asked.images.device), chosen.grid)
    outputs = group_outputs(asked.forward, asked.images, chosen.of(asked.images), maps[:, None], chosen.seed)
    plain, removed = (read_as_probability(asked, target, some) for some in (asked.outputs, outputs))
    return saco_result(maps, plain[:, None] - removed[:, 0], chosen.seed)


def on_cells(model: nn.Module, images: Tensor, maps: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Maps (..., h, w) on the cells that are ranked: pixel maps as means over ``grid`` (None: a ViT's tokens)."""
    size = (images.shape[-2], images.shape[-1])
    if tuple(maps.shape[-2:]) != size:
        return maps
    if grid is None:
        vit = Pass(model, images[:1]).vit
        grid = None if vit is None else vit.grid(images)
        if grid is None or size[0] % grid[0] or size[1] % grid[1]:
            return maps
    cells: Tensor = patch_means(maps.flatten(0, -3), grid).unflatten(0, maps.shape[:-2])
    return cells


def fits(maps: Tensor, size: tuple[int, int]) -> bool:
    """Whether cells of maps (..., h, w) are whole pixels of an image of ``size``."""
    return size[0] % maps.shape[-2] == 0 and size[1] % maps.shape[-1] == 0


def group_count(cells: int) -> int:
    """K: the divisor of ``cells`` from 5 to 20 nearest 10 (the smaller of two); 10 without one; all of fewer than 5."""
    if cells < _FEWEST:
        return cells
    divisors = [k for k in range(_FEWEST, _MOST + 1) if cells % k == 0]
    return min(divisors, key=lambda k: abs(k - NEAREST), default=NEAREST)


def groups_of(maps: Tensor, seed: int) -> Tensor:
    """(..., h, w) → the group 0 (highest) to K − 1 of every cell, int64; −1 for a cell that is left out."""
    cells = maps.shape[-2] * maps.shape[-1]
    count = group_count(cells)
    size = cells // count
    kept = torch.ones(cells, dtype=torch.bool, device=maps.device)
    kept[tie_permutation(cells, seed, maps.device)[size * count :]] = False
    ranks = pixel_ranks(maps, seed).flatten(-2).long()
    # Rank among those that are kept: highest first, cells left out last.
    order = ranks.masked_fill(~kept, -1).argsort(dim=-1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(-1, order, torch.arange(cells, device=maps.device).expand_as(order))
    return torch.where(places < size * count, places // size, -1).view(maps.shape)


def group_outputs(forward: Forward, images: Tensor, removed: Tensor, maps: Tensor, seed: int) -> Outputs:
    """Outputs (B,M,K,C) with each group of M maps (B,M,h,w) an image replaced; equal maps are run once."""
    different, which = distinct(maps)
    batch, count = different.shape[:2]
    size = (images.shape[-2], images.shape[-1])
    groups = groups_of(different, seed)
    cells = as_pixels(groups.flatten(0, 1).double(), batch * count, size).unflatten(0, (batch, count))
    several = group_count(maps.shape[-2] * maps.shape[-1])

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        at = torch.arange(first, last, device=cells.device)
        gone = cells[image, at // several] == (at % several).view(-1, 1, 1)
        torch.where(gone[:, None], removed[image], images[image], out=buffer)

    outputs = forward.copies(images, count * several, fill)
    return outputs.map(lambda part: part.unflatten(1, (count, several))[:, which])


def saco_result(maps: Tensor, costs: Tensor, seed: int) -> SaCoResult:
    """F and reasons from maps (B,h,w) and what each group costs (B,K)."""
    bad, flat = broken(maps), constant(maps)
    groups = groups_of(maps, seed).flatten(1)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    unit = torch.nan_to_num((maps - low) / (high - low)).flatten(1)
    count = costs.shape[1]
    sums = torch.stack([(unit * (groups == k)).sum(1) for k in range(count)], 1)
    first, second = torch.triu_indices(count, count, 1, device=maps.device)
    weight = sums[:, first] - sums[:, second]
    agreeing = costs[:, first] >= costs[:, second]
    value = torch.where(agreeing, weight, -weight).sum(1) / weight.abs().sum(1)
    values = np.asarray(value.cpu().numpy(), dtype=np.float64).copy()
    not_finite, is_constant = bad.cpu().numpy(), flat.cpu().numpy()
    no_score = ~finite(costs.cpu().numpy(), 1)
    values[not_finite | is_constant | no_score] = np.nan
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (is_constant, f"{CONSTANT}: it has no order"),
        (no_score, "the model's score is not finite"),
        (~np.isfinite(values), "all groups hold the same relevance, or there is one"),
        n=len(values),
    )
    return SaCoResult(saco=values, groups=count, reasons=reasons)
