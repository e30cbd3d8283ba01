"""An attack on the map with the output kept: how far may a map move while the model says the same?

After Ghorbani et al. (2019), for any estimator: projected steps within ±ε against the Pearson correlation of the map
with its original. The estimator is only called, so that its slope is estimated by antithetic differences (Ilyas et al.
2018) on a perturbation δ that is constant in every one of g × g cells:

    slope = Σ_k [r(δ + c u_k) − r(δ − c u_k)] u_k,   u_k = ±1      h = ∂f/∂δ, by automatic differentiation
    d = −slope + (slope·h / h·h) h,  δ ← clip(δ + (2.5 ε/n) d / max|d|),  then a Newton step along h back to f

Of all images on the way the one whose map is furthest counts, of those with |f(x′) − f(x)| ≤ ``keep``; the untouched
one is among them. An estimated slope finds less than one through the estimator would: the figure is a bound from above
on robustness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward
from lidc_xai.evaluation.metrics.robustness import channels_alike, score_function
from lidc_xai.evaluation.metrics.similarity import SimilarityResult, map_similarity
from lidc_xai.explain.api import explain
from lidc_xai.explain.networks.manners import borrowed
from lidc_xai.explain.targets import TargetsLike

Maps = Callable[[Tensor], Tensor]
"""images (B,C,H,W) -> maps (B,h,w)."""


def map_attack_stability(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "cdam",
    *,
    epsilon: float = 0.01,
    steps: int = 5,
    draws: int = 4,
    keep: float = 0.1,
    cells: int = 8,
    attack_seed: int = 0,
    **options: Any,
) -> tuple[SimilarityResult, Tensor]:
    """Similarity (of each of B images) of the map with that of an image that was attacked for its map, and the change
    of the score (B,).

    ``images``: (B,C,H,W), normalised; ``epsilon``: above 0, in normalised units; ``keep``: how far the score may move,
    in its own unit (logits, or standard deviations of a rating); ``draws``: pairs of maps a step; ``cells``: of the
    perturbation, per side. Raises ``UsageError`` for a number out of range.

    >>> similarity, change = map_attack_stability(vit, images, labels, steps=2, draws=2)
    >>> similarity.spearman.shape, bool((change.abs() <= 0.1).all())
    ((2,), True)
    """
    first = explain(model, images, target, method, **options)
    asked = first.columns if target is None else target

    def maps(x: Tensor) -> Tensor:
        return explain(model, x, asked, method, **options).relevance[:, 0]

    moved, change = map_attacked(
        model, images, asked, maps, epsilon=epsilon, steps=steps, draws=draws, keep=keep, cells=cells, seed=attack_seed
    )
    return map_similarity(first.relevance[:, 0], maps(moved)), change


def map_attacked(
    model: nn.Module, images: Tensor, target: TargetsLike, maps: Maps, *, epsilon: float, steps: int, draws: int,
    keep: float, cells: int = 8, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images (B,C,H,W) within ±``epsilon`` whose maps are far from the original ones, and how far the score went (B,).

    Every image meets the same draws; channels that are one picture stay so.
    """
    if epsilon <= 0 or keep < 0 or min(steps, draws, cells) < 1:
        raise UsageError(
            f"epsilon is above 0, keep from 0, steps, draws and cells from 1, "
            f"not {epsilon}, {keep}, {steps}, {draws} and {cells}"
        )
    start = Forward(model).place(images)
    size = start.shape[-2:]
    channels = 1 if channels_alike(start) else start.shape[1]
    generator = torch.Generator().manual_seed(seed)
    original = maps(start)
    delta = start.new_zeros(len(start), channels, cells, cells)
    best, lowest = start, torch.ones(len(start), dtype=torch.float64)

    def at(cell_values: Tensor) -> Tensor:
        return start + functional.interpolate(cell_values, size, mode="nearest")

    def likeness(x: Tensor) -> Tensor:
        return _pearson(original, maps(x))

    for _ in range(steps):
        slope = torch.zeros_like(delta)
        for _ in range(draws):
            side = 2.0 * torch.randint(0, 2, delta.shape[1:], generator=generator) - 1
            probe = (epsilon / 4 * side).to(delta)
            change = likeness(at(delta + probe)) - likeness(at(delta - probe))
            slope += change.to(delta)[:, None, None, None] * probe.sign()
        _, h = _score_and_slope(model, target, at, delta)
        direction = _without(-slope, h)
        largest = direction.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        delta = (delta + 2.5 * epsilon / steps * direction / largest).clamp(-epsilon, epsilon)
        scores, h = _score_and_slope(model, target, at, delta)
        moved_by = scores - _scores(model, target, start)
        delta = (delta - _over(moved_by, h) * h).clamp(-epsilon, epsilon)
        attacked = at(delta)
        likeness_now = likeness(attacked)
        kept = (_scores(model, target, attacked) - _scores(model, target, start)).abs() <= keep
        better = (likeness_now < lowest) & kept.cpu()
        best = torch.where(better.to(start.device)[:, None, None, None], attacked, best)
        lowest = torch.where(better, likeness_now, lowest)
    return best, _scores(model, target, best) - _scores(model, target, start)


def _scores(model: nn.Module, target: TargetsLike, x: Tensor) -> Tensor:
    with borrowed(model), torch.no_grad():
        return score_function(model, target)(x)


def _score_and_slope(
    model: nn.Module, target: TargetsLike, at: Callable[[Tensor], Tensor], delta: Tensor
) -> tuple[Tensor, Tensor]:
    with borrowed(model):
        delta = delta.detach().requires_grad_(True)
        scores = score_function(model, target)(at(delta))
        return scores.detach(), torch.autograd.grad(scores.sum(), delta)[0]


def _over(numerator: Tensor, h: Tensor) -> Tensor:
    """(B,) / |h|² as (B,1,1,1), 0 where h is 0."""
    square = h.square().sum((1, 2, 3))
    return torch.where(square > 0, numerator.to(h) / square.clamp(min=1e-30), 0.0)[:, None, None, None]


def _without(direction: Tensor, h: Tensor) -> Tensor:
    return direction - _over((direction * h).sum((1, 2, 3)), h) * h


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """(B,) correlation of two maps (B,h,w); 1 where one is constant, so that nobody aims at it."""
    a, b = (one.detach().double().cpu().flatten(1) for one in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(scale > 0, (a * b).sum(1) / scale.clamp(min=1e-300), 1.0)
