"""Sensitivity-n: box sensitivity with random pixels instead of boxes, for comparison.

For n = 5, 10, …, 90 % of the pixels, 100 random sets of n pixels:

    r_n = Pearson over sets of (Σ of relevance inside, f(x) − f(x with the set replaced)).

Scattered pixels hardly change what a network sees that reads patches: maps of tokens are near 0 on DINOv2, those that
order the pixels inside a patch reach .16 to .25 (docs/studies.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, scored_for_one
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike, as_pixels, broken
from lidc_xai.evaluation.replacement import Perturbing, options_as
from lidc_xai.evaluation.results import Result, finite, first_reason
from lidc_xai.evaluation.statistics import Floats, pearson
from lidc_xai.explain.targets import Outputs, TargetsLike

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, eq=False, kw_only=True)
class SensitivityNResult(Result):
    """``share`` (N,) of pixels; ``correlation`` (B,N), NaN where undefined; ``mean`` (B,) over the defined ones."""

    share: Floats
    correlation: Floats
    mean: Floats

    figures: ClassVar[tuple[str, ...]] = ("mean",)
    shared: ClassVar[tuple[str, ...]] = ("share",)


@dataclass(frozen=True, kw_only=True)
class SensitivityNOptions(Perturbing):
    """``sets`` per share; ``shares`` of the pixels in (0, 1)."""

    sets: int = 100
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sets < 3:
            raise UsageError(f"sets is a whole number from 3, not {self.sets}")
        if not self.shares or min(self.shares) <= 0 or max(self.shares) >= 1:
            raise UsageError(f"shares lie between 0 and 1, not {self.shares}")


def sensitivity_n(
    model: nn.Module, images: Tensor, relevance: MapLike, target: TargetsLike = None, **options: Any
) -> SensitivityNResult:
    """Sensitivity-n of ``relevance`` (B,H,W) or (B,gh,gw) for one target. Options: those of ``SensitivityNOptions``.

    >>> sensitivity_n(vit, images, explain(vit, images, labels).relevance[:, 0], labels, sets=8).mean.shape
    (2,)
    """
    chosen = options_as(SensitivityNOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    maps = as_pixels(relevance, len(asked.images), asked.size, asked.images.device)
    sets = random_sets(asked.size, chosen)
    outputs = set_outputs(asked.forward, asked.images, chosen.of(asked.images), sets, chosen)
    scores = asked.read(outputs)[..., 0].cpu().numpy()
    return sensitivity_n_result(maps, scores, asked.scores[:, 0].cpu().numpy(), sets, chosen)


def random_sets(size: tuple[int, int], options: SensitivityNOptions) -> Tensor:
    """(sets, H·W) random ranks of the pixels, the same for every image: a share's set is those of the lowest ranks."""
    generator = torch.Generator().manual_seed(options.seed)
    count = size[0] * size[1]
    return torch.stack([torch.randperm(count, generator=generator).int() for _ in range(options.sets)])


def _counts(sets: Tensor, options: SensitivityNOptions) -> list[int]:
    return [max(1, round(share * sets.shape[1])) for share in options.shares]


def set_outputs(
    forward: Forward, images: Tensor, removed: Tensor, sets: Tensor, options: SensitivityNOptions
) -> Outputs:
    """Outputs (B, N·sets, C) with one set replaced each: shared by every method and every target."""
    counts = torch.tensor(_counts(sets, options), device=images.device)
    ranks = sets.to(images.device).unflatten(1, images.shape[-2:])

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        at = torch.arange(first, last, device=images.device)
        gone = ranks[at % len(sets)] < counts[at // len(sets)][:, None, None]
        torch.where(gone[:, None], removed[image], images[image], out=buffer)

    return forward.copies(images, len(counts) * len(sets), fill)


def sensitivity_n_result(
    maps: Tensor, scores: Floats, plain: Floats, sets: Tensor, options: SensitivityNOptions
) -> SensitivityNResult:
    """Correlations from maps (B,H,W), scores (B,N·sets) with a set replaced and plain scores (B,)."""
    not_finite = broken(maps).cpu().numpy()
    flat = torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0).double().flatten(1)
    ranks = sets.to(maps.device)
    sums = torch.stack([flat @ (ranks < count).double().T for count in _counts(sets, options)], 1).cpu().numpy()
    changed = scores.reshape(len(scores), len(options.shares), len(sets))
    mass = flat.abs().sum(1).cpu().numpy()[:, None] * np.ones(len(options.shares))
    scale = np.maximum(np.abs(plain)[:, None], np.abs(changed).max(-1))
    correlation = pearson(sums, plain[:, None, None] - changed, scale_a=mass, scale_b=scale)
    correlation[not_finite] = np.nan
    defined = np.isfinite(correlation)
    total = np.where(defined, correlation, 0.0).sum(1)
    mean = np.where(defined.any(1), total / np.maximum(defined.sum(1), 1), np.nan)
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (~np.isfinite(mean), "the relevance or the score does not vary over the sets"),
        (~finite(correlation, 1), "some set sizes are left out: relevance or score does not vary over them"),
        n=len(mean),
    )
    return SensitivityNResult(
        share=np.asarray(options.shares, dtype=np.float64), correlation=correlation, mean=mean, reasons=reasons
    )
