"""Blur/mask test between two probable classes: which explanation separates the first class from the second?

For images whose second most probable class has p₍₂₎ > 0.1, with y₁ and y₂ the logits of the two classes:

    relative probability = e^{y₁} / (e^{y₁} + e^{y₂}).

"positive": the pixels that argue for a class are kept, and the k lowest-ranked of its map are removed, where k is the
smallest number of negative pixels that any method has for that image and class; "negative": the k highest-ranked are
removed, with k the smallest number of positive pixels. So every method removes equally many pixels, all of the sign
that is to go. (The public code takes these counts the other way round.) A good map for class 1 raises the relative
probability when the positive pixels are kept and lowers it when the negative ones are; a map for class 2 the reverse.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.forward import Forward, Precision
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike, as_pixels, broken, pixel_ranks
from lidc_xai.evaluation.replacement import Replacement, gaussian_blur
from lidc_xai.evaluation.results import Result, first_reason
from lidc_xai.evaluation.statistics import Floats, bootstrap_mean

Mode = Literal["positive", "negative"]
SIGMA = 15.0
RADIUS = 50
THRESHOLD = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class BlurMaskResult(Result):
    """For n images with two probable ``classes`` (n,2).

    ``before`` (n,) relative probability of the first class; ``after`` (n,methods,2) the same with pixels removed by the
    map for the first and for the second class; ``removed`` (n,2) how many pixels that were.
    """

    methods: tuple[str, ...]
    classes: Floats
    before: Floats
    after: Floats
    removed: Floats

    figures: ClassVar[tuple[str, ...]] = ("before",)
    shared: ClassVar[tuple[str, ...]] = ("methods",)

    def table(self, clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> pd.DataFrame:
        """Columns method, map ("first" or "second" class), mean, low, high, n of after − before."""
        rows = []
        for m, method in enumerate(self.methods):
            for k, which in enumerate(("first", "second")):
                one = bootstrap_mean(self.after[:, m, k] - self.before, clusters, seed=seed)
                rows.append((method, which, one.mean, one.low, one.high, one.n))
        return pd.DataFrame(rows, columns=["method", "map", "mean", "low", "high", "n"])


def two_probable(logits: Tensor, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor]:
    """Rows (n,) of ``logits`` (B,C) whose second probability is above ``threshold``, and their two classes (n,2).

    >>> rows, pairs = two_probable(torch.tensor([[2.0, 1.9, -5.0], [9.0, 0.0, 0.0]]))
    >>> rows.tolist(), pairs.tolist()
    ([0], [[0, 1]])
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise DataError(f"two probable classes need class logits (B, C > 1), got {tuple(logits.shape)}")
    top = logits.softmax(-1).topk(2)
    rows = torch.nonzero(top.values[:, 1] > threshold)[:, 0]
    return rows, top.indices[rows]


def blur_mask_test(
    model: nn.Module,
    images: Tensor,
    relevance: Mapping[str, tuple[MapLike, MapLike]],
    classes: Tensor,
    *,
    mode: Mode = "positive",
    baseline: Literal["blur", "zero", "mean"] = "blur",
    sigma: float = SIGMA,
    seed: int = 0,
    max_batch: int = 64,
    precision: Precision = "float32",
) -> BlurMaskResult:
    """Relative probabilities of ``images`` (n,C,H,W) with their two ``classes`` (n,2), as ``two_probable`` gives them.

    ``relevance``: per method the maps for the first and for the second class, (n,H,W) or (n,gh,gw). ``sigma``: of the
    blur in px at 224 (kernel 101), scaled with √(H·W)/224; ``baseline``: blurred image, zeros or channel means.

    >>> classes = torch.tensor([[0, 1], [2, 3]])
    >>> maps = tuple(explain(vit, images, classes).relevance.unbind(1))
    >>> blur_mask_test(vit, images, {"cdam": maps}, classes).figures != ()
    True
    """
    if mode not in ("positive", "negative") or baseline not in ("blur", "zero", "mean"):
        raise UsageError(
            f"mode is 'positive' or 'negative', baseline 'blur', 'zero' or 'mean', not {mode!r}, {baseline!r}"
        )
    if not relevance:
        raise UsageError("relevance is empty: give one pair of maps or more")
    forward = Forward(model, max_batch, precision)
    images = forward.place(images)
    n, size = len(images), (images.shape[-2], images.shape[-1])
    if tuple(classes.shape) != (n, 2):
        raise DataError(f"classes are (n, 2) for {n} images, got {tuple(classes.shape)}")
    pairs = [torch.stack([as_pixels(m, n, size, images.device) for m in pair], 1) for pair in relevance.values()]
    maps = torch.stack(pairs, dim=1)
    counts = _counts(maps, mode)
    ranks = pixel_ranks(maps, seed)
    pixels = size[0] * size[1]
    removed = _baseline(images, baseline, sigma)

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        at = torch.arange(first, last, device=ranks.device)
        pixel_rank, count = ranks[image].flatten(0, 1)[at], counts[image][at % 2][:, None, None]
        gone = pixel_rank < count if mode == "positive" else pixel_rank >= pixels - count
        torch.where(gone[:, None], removed[image], images[image], out=buffer)

    outputs = forward.copies(images, maps.shape[1] * 2, fill).values.unflatten(1, (-1, 2))
    after = relative_probability(outputs, classes).cpu().numpy()
    before = relative_probability(forward.outputs(images).values, classes).cpu().numpy()
    bad = broken(maps).flatten(1).any(1).cpu().numpy()
    after[bad] = np.nan
    none = (counts == 0).any(1).cpu().numpy()
    reasons = first_reason(
        (bad, NOT_FINITE), (none, "a map has no pixel of the sign that is removed: nothing is removed"), n=n
    )
    return BlurMaskResult(
        methods=tuple(relevance),
        classes=classes.cpu().numpy().astype(np.float64),
        before=before,
        after=after,
        removed=counts.cpu().numpy().astype(np.float64),
        reasons=reasons,
    )


def relative_probability(values: Tensor, classes: Tensor) -> Tensor:
    """(n, ..., C) logits → (n, ...): probability of the first of ``classes`` (n,2) against the second."""
    index = classes.to(values.device).view(len(values), *[1] * (values.ndim - 2), 2)
    pair = values.gather(-1, index.expand(*values.shape[:-1], 2))
    return (pair[..., 0] - pair[..., 1]).sigmoid()


def _counts(maps: Tensor, mode: Mode) -> Tensor:
    """(n,2) pixels to remove: the fewest of the sign that goes, over the methods of (n,methods,2,H,W)."""
    opposite = maps < 0 if mode == "positive" else maps > 0
    return opposite.flatten(-2).sum(-1).amin(1)


def _baseline(images: Tensor, baseline: Literal["blur", "zero", "mean"], sigma: float) -> Tensor:
    if baseline != "blur":
        return Replacement(baseline).of(images)
    scale = (images.shape[-2] * images.shape[-1]) ** 0.5 / 224
    radius = ceil(RADIUS * scale)
    return gaussian_blur(images, (sigma * scale, sigma * scale), radius)
