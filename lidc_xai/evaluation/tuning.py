"""The noise of the smoothed methods, chosen by what it does for faithfulness on a validation set.

The CDAM paper picks σ on 200 images by fidelity (area between the LIF and MIF curves) and does not publish it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.metrics._fidelity import fidelity
from lidc_xai.explain.api import explain
from lidc_xai.explain.registry import find_method
from lidc_xai.explain.targets import Target, TargetLike, TargetsLike, select_targets

SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

Score = Callable[[nn.Module, Tensor, Tensor, Any], Any]
"""score(model, images (B,C,H,W), relevance (B,H,W), target) → (B,), higher is better."""


def tune_sigma(
    model: nn.Module,
    images: Tensor,
    targets: TargetsLike = None,
    method: str = "smooth_cdam",
    sigmas: Sequence[float] = SIGMAS,
    score: Score | None = None,
    **options: Any,
) -> float:
    """The one of ``sigmas`` with the best mean score over images and targets.

    ``score``: default the fidelity of ``lidc_xai.evaluation``, area LIF − MIF. ``options`` go to ``explain``.

    >>> tune_sigma(vit, images, labels, sigmas=(0.1, 0.5), samples=2) in (0.1, 0.5)
    True
    """
    scores = sigma_scores(model, images, targets, method, sigmas, score, **options)
    return max(scores, key=lambda sigma: scores[sigma])


def sigma_scores(
    model: nn.Module,
    images: Tensor,
    targets: TargetsLike = None,
    method: str = "smooth_cdam",
    sigmas: Sequence[float] = SIGMAS,
    score: Score | None = None,
    **options: Any,
) -> dict[float, float]:
    """Each σ with its mean score; undefined scores (NaN) are left out of the mean.

    >>> list(sigma_scores(vit, images, labels, sigmas=(0.1, 0.5), samples=2))
    [0.1, 0.5]
    """
    row = find_method(method)
    if "sigma" not in row.options:
        raise UsageError(f"{method} has no sigma to tune; smooth_cdam and smoothgrad have")
    if not sigmas:
        raise UsageError("sigmas is empty; give at least one")
    judge = score or (lambda *case: fidelity(*case).area)
    size = options.get("max_batch", row.options["max_batch"].default)
    by_sigma = {}
    for sigma in sigmas:
        areas = []
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            single = _one_by_one(model, select_targets(targets, rows))
            maps = explain(model, images[rows], single, method=method, sigma=sigma, **options).to_pixels()
            for t, target in enumerate(single or [None]):
                areas.append(torch.as_tensor(judge(model, images[rows], maps[:, t], target), dtype=torch.float64))
        by_sigma[float(sigma)] = float(torch.cat(areas).nanmean())
    return by_sigma


def _one_by_one(model: nn.Module, targets: TargetsLike) -> list[TargetLike] | None:
    """Targets as a list of single ones, which a score takes one at a time; None for the predicted class."""
    if targets is None:
        names = getattr(model, "output_names", None)
        return None if names is None else list(names)
    if isinstance(targets, Tensor):
        return list(targets.reshape(len(targets), -1).unbind(1))
    if isinstance(targets, int | str | Target):
        return [targets]
    return list(targets)
