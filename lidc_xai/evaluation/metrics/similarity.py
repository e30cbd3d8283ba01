"""How alike are two maps: Spearman correlation of raw and absolute values, and SSIM.

Used wherever an explanation ought to change (other weights, other labels) or ought not to (small noise, another seed,
the same predictions from other logits). SSIM is taken on maps scaled to [0, 1], with a window of 7 cells or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike, as_map, resampled
from lidc_xai.evaluation.results import Result, finite, first_reason
from lidc_xai.evaluation.statistics import Floats, bootstrap_mean, spearman
from lidc_xai.explain.api import explain
from lidc_xai.explain.targets import TargetsLike

CONSTANT_SIDE = "a map is constant: no correlation is defined"


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityResult(Result):
    """(B,) each, 1 for equal maps: ``spearman`` of raw maps, ``spearman_abs`` of absolute ones, ``ssim``."""

    spearman: Floats
    spearman_abs: Floats
    ssim: Floats

    figures: ClassVar[tuple[str, ...]] = ("spearman", "spearman_abs", "ssim")


def map_similarity(first: MapLike, second: MapLike) -> SimilarityResult:
    """Similarity of two maps (B,h,w) per image, both of one size.

    >>> maps = torch.rand(2, 9, 9)
    >>> map_similarity(maps, 2 * maps + 1).spearman.round(6).tolist()
    [1.0, 1.0]
    """
    a, b = (as_map(one, len(first), torch.device("cpu")).numpy() for one in (first, second))
    if a.shape != b.shape:
        raise DataError(f"maps of {a.shape[1:]} and {b.shape[1:]} cannot be compared; bring them to one size")
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    broken = ~(finite(flat_a, 1) & finite(flat_b, 1))
    raw = spearman(flat_a, flat_b)
    return SimilarityResult(
        spearman=raw,
        spearman_abs=spearman(np.abs(flat_a), np.abs(flat_b)),
        ssim=np.array([_ssim(x, y) for x, y in zip(a, b, strict=True)]),
        reasons=first_reason((broken, NOT_FINITE), (~np.isfinite(raw), CONSTANT_SIDE), n=len(a)),
    )


def compare_models(
    model: nn.Module,
    other: nn.Module,
    images: Tensor,
    targets: TargetsLike = None,
    method: str = "cdam",
    **options: Any,
) -> SimilarityResult:
    """Similarity of a method's maps of two models, image by image (the first target).

    With a model trained on shuffled labels the maps ought to differ: an estimator that gives the same ones explains the
    architecture or the image. With a model retrained from another seed they ought to agree.

    >>> compare_models(vit, vit, images, labels).spearman.round(6).tolist()
    [1.0, 1.0]
    """
    maps = [explain(one, images, targets, method, **options).relevance[:, 0] for one in (model, other)]
    return map_similarity(*maps)


def seed_agreement(
    models: Sequence[nn.Module], images: Tensor, targets: TargetsLike = None, method: str = "cdam", **options: Any
) -> SimilarityResult:
    """Mean similarity over all pairs of models that were trained alike from different seeds.

    Call it with a logit target and with a probability to see which of the two is the more stable.

    >>> seed_agreement([vit, vit], images, labels).spearman.round(6).tolist()
    [1.0, 1.0]
    """
    if len(models) < 2:
        raise UsageError("agreement over seeds needs two models or more")
    maps = [explain(model, images, targets, method, **options).relevance[:, 0] for model in models]
    return mean_similarity([map_similarity(a, b) for a, b in combinations(maps, 2)])


def method_agreement(maps: Mapping[str, MapLike]) -> tuple[pd.DataFrame, dict[tuple[str, str], SimilarityResult]]:
    """Mean Spearman correlation between the maps (B,h,w) of several methods, as a matrix, and the results of each pair.

    Maps on different grids meet on the finest of them.

    >>> maps = torch.rand(2, 9, 9)
    >>> table, pairs = method_agreement({"a": maps, "b": -maps})
    >>> float(table.loc["a", "b"].round(6))
    -1.0
    """
    names = list(maps)
    if not names:
        raise UsageError("maps is empty: give the maps of one method or more")
    tensors = [as_map(one, len(one), torch.device("cpu")) for one in maps.values()]
    size = (max(one.shape[-2] for one in tensors), max(one.shape[-1] for one in tensors))
    full = [resampled(one, size) for one in tensors]
    means = np.eye(len(names))
    pairs = {}
    for i, j in combinations(range(len(names)), 2):
        similarity = map_similarity(full[i], full[j])
        pairs[names[i], names[j]] = similarity
        means[i, j] = means[j, i] = bootstrap_mean(similarity.spearman, resamples=1).mean
    return pd.DataFrame(means, index=names, columns=names), pairs


def mean_similarity(results: Sequence[SimilarityResult]) -> SimilarityResult:
    """Image by image the mean over several comparisons; undefined where one of them is."""
    stacked = {name: np.stack([getattr(one, name) for one in results]).mean(0) for name in SimilarityResult.figures}
    reasons = [
        next((reason for reason in each if reason), "") for each in zip(*(r.reasons for r in results), strict=True)
    ]
    return SimilarityResult(**stacked, reasons=tuple(reasons))


def _ssim(first: Floats, second: Floats) -> float:
    """SSIM of two (h,w) maps scaled to [0, 1]; NaN where one is constant, not finite or smaller than 3×3."""
    window = min(7, *first.shape)
    window -= 1 - window % 2
    spans = [np.ptp(one) for one in (first, second)]
    if not all(np.isfinite(span) and span > 0 for span in spans) or window < 3:
        return float("nan")
    scaled = [(one - one.min()) / span for one, span in zip((first, second), spans, strict=True)]
    return float(structural_similarity(*scaled, win_size=window, data_range=1.0))
