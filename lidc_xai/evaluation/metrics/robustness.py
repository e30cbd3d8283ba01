"""Changes that an explanation should survive, and how far it does: noise, adversarial steps, seeds, shifted logits."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.evaluation.forward import Forward
from lidc_xai.evaluation.metrics.similarity import SimilarityResult, map_similarity, mean_similarity
from lidc_xai.explain.api import explain
from lidc_xai.explain.networks.manners import borrowed
from lidc_xai.explain.networks.plain_model import classifier
from lidc_xai.explain.registry import find_method
from lidc_xai.explain.targets import Outputs, TargetsLike, output_spec, resolve


def noise_stability(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "cdam",
    *,
    sigma: float = 0.05,
    draws: int = 5,
    noise_seed: int = 0,
    **options: Any,
) -> SimilarityResult:
    """Similarity of the map with those of ``draws`` noisy images; σ = ``sigma`` × the image's standard deviation.

    >>> noise_stability(vit, images, labels, draws=2).spearman.shape
    (2,)
    """
    if sigma <= 0 or draws < 1:
        raise UsageError(f"sigma is above 0 and draws from 1, not {sigma} and {draws}")
    first = explain(model, images, target, method, **options)
    asked = first.columns if target is None else target
    scale = images.std((1, 2, 3), keepdim=True) * sigma
    generator = torch.Generator().manual_seed(noise_seed)
    similarities = []
    for _ in range(draws):
        # Every image meets the same draw, so that a batch gives what its images give one by one.
        noise = torch.randn(images.shape[1:], generator=generator, dtype=images.dtype).to(images.device)
        moved = explain(model, images + scale * noise, asked, method, **options)
        similarities.append(map_similarity(first.relevance[:, 0], moved.relevance[:, 0]))
    return mean_similarity(similarities)


def attack_stability(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "cdam",
    *,
    epsilon: float = 0.01,
    steps: int = 1,
    **options: Any,
) -> tuple[SimilarityResult, Tensor]:
    """Similarity of the map with that of an adversarial image, and the change of the score (B,).

    The image moves against its score, ``steps`` steps of sign gradients within ±``epsilon`` in normalised units
    (1 step: FGSM; more: PGD from the image itself with steps of 2.5·ε/n).

    >>> similarity, change = attack_stability(vit, images, labels)
    >>> similarity.spearman.shape, bool((change < 0).all())
    ((2,), True)
    """
    first = explain(model, images, target, method, **options)
    asked = first.columns if target is None else target
    moved, change = attacked(model, images, asked, epsilon=epsilon, steps=steps)
    second = explain(model, moved, asked, method, **options)
    return map_similarity(first.relevance[:, 0], second.relevance[:, 0]), change


def attacked(
    model: nn.Module, images: Tensor, target: TargetsLike, *, epsilon: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Adversarial images (B,C,H,W) that lower the score of ``target``, and how far they did (B,).

    Channels that are one picture (a CT slice shown three times) move together.
    """
    if epsilon <= 0 or steps < 1:
        raise UsageError(f"epsilon is above 0 and steps from 1, not {epsilon} and {steps}")
    size = epsilon if steps == 1 else 2.5 * epsilon / steps
    images = Forward(model).place(images)
    one_picture = channels_alike(images)
    with borrowed(model):
        start, score = images, score_function(model, target)
        x = start.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            gradient = torch.autograd.grad(score(x).sum(), x)[0]
            if one_picture:
                gradient = gradient.sum(1, keepdim=True).expand_as(gradient)
            x = torch.clamp(x.detach() - size * gradient.sign(), min=start - epsilon, max=start + epsilon)
        with torch.no_grad():
            change = score(x) - score(start)
    return x.detach(), change


def score_function(model: nn.Module, target: TargetsLike) -> Callable[[Tensor], Tensor]:
    """images (B,C,H,W) -> the score (B,) of the first of ``target``, with its graph."""

    def score(x: Tensor) -> Tensor:
        values = model(x)
        spec = output_spec(model, values.shape[-1])
        asked = resolve(target, spec, len(x), lambda: values.detach())
        return asked.scores(Outputs(values))[:, 0]

    return score


def channels_alike(images: Tensor) -> bool:
    """Whether every channel of (B,C,H,W) images is the same picture."""
    return images.shape[1] > 1 and bool((images == images[:, :1]).all())


def run_stability(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "smooth_cdam",
    *,
    runs: int = 5,
    **options: Any,
) -> SimilarityResult:
    """Similarity between runs of a stochastic method that differ in their seed alone: the others against the first.

    A method without a seed gives exactly 1.

    >>> run_stability(vit, images, labels, "cdam", runs=2).spearman.round(6).tolist()      # no seed: the same map
    [1.0, 1.0]
    """
    if runs < 2:
        raise UsageError(f"runs is a whole number from 2, not {runs}")
    seeded = "seed" in find_method(method).options
    maps = [
        explain(model, images, target, method, **(options | {"seed": run} if seeded else options)).relevance[:, 0]
        for run in range(runs)
    ]
    return mean_similarity([map_similarity(maps[0], other) for other in maps[1:]])


def shifted(model: nn.Module, seed: int = 0, strength: float = 1.0) -> nn.Module:
    """A copy whose logits are all raised by the same function of the input, so that its probabilities are unchanged.

    The same random row is added to every row of the last linear layer: y → y + h(x). ``strength`` is in units of the
    rows' own standard deviation.

    >>> torch.allclose(shifted(vit)(images).softmax(1), vit(images).softmax(1), atol=1e-5)
    True
    """
    copied = deepcopy(model)
    last = classifier(copied)
    rows = [module for module in (last.modules() if last is not None else ()) if isinstance(module, nn.Linear)]
    if not rows or rows[-1].out_features < 2:
        raise ModelError("shifting all logits alike needs a classifier ending in a linear layer of 2 or more classes")
    weight = rows[-1].weight
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(weight.shape[1], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        weight += (strength * weight.std() * row.to(weight.device)).to(weight.dtype)
    return copied


def shift_invariance(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "cdam",
    *,
    shift_seed: int = 0,
    strength: float = 1.0,
    **options: Any,
) -> SimilarityResult:
    """Similarity of the maps of two models with equal probabilities and different logits (arXiv 2306.13197).

    A target behind the softmax (Probability, LogProbability, LogOdds) gives 1; a logit does not.

    >>> from lidc_xai.explain import LogProbability
    >>> shift_invariance(vit, images, LogProbability(1)).spearman.round(3).tolist()
    [1.0, 1.0]
    """
    first = explain(model, images, target, method, **options)
    asked = first.columns if target is None else target
    other = explain(shifted(model, shift_seed, strength), images, asked, method, **options)
    return map_similarity(first.relevance[:, 0], other.relevance[:, 0])
