"""Deletion and insertion: the class probability while cells are taken from the image, or put onto its mean.

Cells of 32 px at 224 (scaled with min(H,W)/224) are ordered by their mean relevance, highest first, and handled one by
one. Deletion starts from the image, insertion from the image's channel means:

    area = trapezoid of the score over the share of cells in [0, 1]   (deletion: low is good; insertion: high is good).

The public code that these definitions come from divides the same sum by the number of points instead of intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, Scored, scored_for_one
from lidc_xai.evaluation.maps import CONSTANT, NOT_FINITE, MapLike, as_pixels, broken, constant, distinct, pixel_ranks
from lidc_xai.evaluation.replacement import Perturbing, options_as
from lidc_xai.evaluation.results import Result, finite, first_reason, trapezoid
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.targets import Logit, Outputs, Probability, Target, TargetsLike

CELL_AT_224 = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class DeletionResult(Result):
    """``share`` (P,) of cells; ``deletion`` and ``insertion`` (B,P) scores; their areas (B,)."""

    share: Floats
    deletion: Floats
    insertion: Floats
    area_deletion: Floats
    area_insertion: Floats

    figures: ClassVar[tuple[str, ...]] = ("area_deletion", "area_insertion")
    shared: ClassVar[tuple[str, ...]] = ("share",)


@dataclass(frozen=True, kw_only=True)
class DeletionOptions(Perturbing):
    """``cell``: side in px at 224."""

    replacement: Any = "mean"
    cell: int = CELL_AT_224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell < 1:
            raise UsageError(f"cell is a whole number of px from 1, not {self.cell}")


def deletion_insertion(
    model: nn.Module, images: Tensor, relevance: MapLike, target: TargetsLike = None, **options: Any
) -> DeletionResult:
    """Deletion and insertion curves of ``relevance`` (B,H,W) or (B,gh,gw) for one target.

    A bare index or name means its probability (the raw output of a regression). Options: those of ``DeletionOptions``
    (cell, and replacement, seed, max_batch, … as for ``fidelity``).

    >>> found = deletion_insertion(vit, images, explain(vit, images, labels).relevance[:, 0], labels, cell=56)
    >>> found.area_deletion.shape, found.area_insertion.shape
    ((2,), (2,))
    """
    chosen = options_as(DeletionOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    maps = as_pixels(relevance, len(asked.images), asked.size, asked.images.device)
    outputs = deletion_outputs(asked.forward, asked.images, chosen.of(asked.images), maps[:, None], chosen)
    scores = read_as_probability(asked, target, outputs)[:, 0]
    return deletion_result(scores.cpu().numpy(), broken(maps).cpu().numpy(), constant(maps).cpu().numpy())


def read_as_probability(asked: Scored, target: TargetsLike, outputs: Outputs) -> Tensor:
    """(B, ...) scores of one target: a ``Target`` as it is, a bare index or name as its probability."""
    if isinstance(target, Target):
        return asked.read(outputs)[..., 0]
    return probability_scores(outputs.values, asked.targets.columns[:, 0], asked.targets.spec.kinds)


def probability_scores(values: Tensor, columns: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """(B, ..., C) outputs → (B, ...): each image's column as a probability, or raw where it is a regression."""
    columns = columns.to(values.device)
    if kinds[0] == "class":
        return Probability().score(Outputs(values), columns, sigmoid=False)
    raw = Logit().score(Outputs(values), columns, sigmoid=True)
    binary = torch.tensor([kinds[column] == "binary" for column in columns.tolist()], device=values.device)
    return torch.where(binary.view(-1, *[1] * (raw.ndim - 1)), raw.sigmoid(), raw)


def deletion_outputs(
    forward: Forward, images: Tensor, removed: Tensor, maps: Tensor, options: DeletionOptions
) -> Outputs:
    """Outputs (B,M,2,cells+1,C): deletion, then insertion, of M maps (B,M,H,W) an image; equal maps are run once."""
    different, which = distinct(maps)
    size = (images.shape[-2], images.shape[-1])
    cells, grid = _cells(size, options.cell)
    cells = cells.to(images.device)
    ranks = _cell_ranks(different, cells, grid, options.seed)[..., cells]
    steps = grid[0] * grid[1] + 1
    copies = 2 * steps

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        at = torch.arange(first, last, device=ranks.device)
        pixel_rank, handled = ranks[image, at // copies], (at % steps)[:, None, None]
        inserting = (at % copies >= steps)[:, None, None]
        # Highest rank first: cell of rank r is handled at step cells − r.
        gone = (pixel_rank >= steps - 1 - handled) != inserting
        torch.where(gone[:, None], removed[image], images[image], out=buffer)

    inner = forward.copies(images, different.shape[1] * copies, fill)
    return inner.map(lambda part: part.unflatten(1, (different.shape[1], 2, steps))[:, which])


def deletion_result(scores: Floats, not_finite: np.ndarray, is_constant: np.ndarray) -> DeletionResult:
    """Areas and reasons from scores (B,2,P), deletion first."""
    scores = scores.copy()
    scores[not_finite] = np.nan
    share = np.linspace(0, 1, scores.shape[-1])
    areas = trapezoid(scores, share)
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (~finite(scores, (1, 2)), "the model's score is not finite"),
        (is_constant, f"{CONSTANT}: its order is the seeded permutation"),
        n=len(scores),
    )
    return DeletionResult(
        share=share,
        deletion=scores[:, 0],
        insertion=scores[:, 1],
        area_deletion=areas[:, 0],
        area_insertion=areas[:, 1],
        reasons=reasons,
    )


def _cells(size: tuple[int, int], cell: int) -> tuple[Tensor, tuple[int, int]]:
    """(H,W) number of each pixel's cell, and rows and columns of cells."""
    side = max(1, round(cell * min(size) / 224))
    grid = (max(1, size[0] // side), max(1, size[1] // side))
    rows = torch.arange(size[0]) * grid[0] // size[0]
    columns = torch.arange(size[1]) * grid[1] // size[1]
    return rows[:, None] * grid[1] + columns[None], grid


def _cell_ranks(maps: Tensor, cells: Tensor, grid: tuple[int, int], seed: int) -> Tensor:
    """(B,M,H,W) → (B,M,cells): rank of each cell's mean relevance, ties by the seeded permutation."""
    flat = torch.nan_to_num(maps.double(), nan=0.0, posinf=0.0, neginf=0.0).flatten(-2)
    index = cells.flatten()
    sums = flat.new_zeros(*flat.shape[:-1], grid[0] * grid[1]).index_add_(-1, index, flat)
    means = sums / torch.bincount(index, minlength=grid[0] * grid[1])
    return pixel_ranks(means.unflatten(-1, grid), seed).flatten(-2)
