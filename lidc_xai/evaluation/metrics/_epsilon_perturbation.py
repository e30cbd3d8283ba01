"""ε-perturbation: how much does a step along the sign of an explanation's gradient move the class that it explains?

In un-normalised pixels in [0, 1], with φ the gradient of the logit or of a contrast, n steps of α = ε/n:

    x ← clamp(x + α·sign ∇φ(x); x₀ − ε, x₀ + ε; 0, 1),   φ's gradient taken anew at every step.

ε = 3e-3 and n ∈ {1, 2, 10} (the authors' own setting; their paper prints 1e-3 and another clamp). The weighted contrast
is the log-odds: one backward pass, no underflow.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward
from lidc_xai.evaluation.results import Result, first_reason
from lidc_xai.evaluation.statistics import Floats, bootstrap_mean
from lidc_xai.explain.networks.manners import borrowed
from lidc_xai.explain.pixels.baseline import normalisation
from lidc_xai.explain.targets import (
    Logit,
    LogOdds,
    MaxContrast,
    MeanContrast,
    Outputs,
    Probability,
    Target,
    output_spec,
)

CONTRASTS: dict[str, type[Target]] = {
    "logit": Logit,
    "mean": MeanContrast,
    "max": MaxContrast,
    "weighted": LogOdds,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class EpsilonResult(Result):
    """Changes of the target class by contrast and number of steps.

    ``delta_logit``, ``delta_probability`` (B,contrasts,steps): after − before; ``correct`` (B,contrasts,steps) and
    ``correct_before`` (B,): whether the target is the predicted class.
    """

    contrasts: tuple[str, ...]
    steps: tuple[int, ...]
    delta_logit: Floats
    delta_probability: Floats
    correct: Floats
    correct_before: Floats

    figures: ClassVar[tuple[str, ...]] = ("correct_before",)
    shared: ClassVar[tuple[str, ...]] = ("contrasts", "steps")

    def table(self, clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> pd.DataFrame:
        """Columns contrast, steps, figure, mean, low, high, n: intervals over images (clusters: a patient each)."""
        by_figure = {
            "delta_logit": self.delta_logit,
            "delta_probability": self.delta_probability,
            "accuracy": self.correct,
        }
        rows = []
        for c, contrast in enumerate(self.contrasts):
            for s, steps in enumerate(self.steps):
                for figure, values in by_figure.items():
                    one = bootstrap_mean(values[:, c, s], clusters, seed=seed)
                    rows.append((contrast, steps, figure, one.mean, one.low, one.high, one.n))
        return pd.DataFrame(rows, columns=["contrast", "steps", "figure", "mean", "low", "high", "n"])


def epsilon_perturbation(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    epsilon: float = 3e-3,
    steps: Sequence[int] = (1, 2, 10),
    contrasts: Sequence[str] = tuple(CONTRASTS),
    max_batch: int = 32,
) -> EpsilonResult:
    """Perturb ``images`` (B,C,H,W), normalised, towards each image's class in ``targets`` (B,) (its label, usually).

    ``mean``, ``std``: per channel, image = (pixel − mean)/std with pixels in [0, 1]; by default the model's own
    (timm's configuration, or a nodule model's window). A single-logit binary model takes "logit" and "weighted".

    >>> epsilon_perturbation(vit, images, labels, steps=(1,)).figures != ()
    True
    """
    forward = Forward(model, max_batch)
    images = forward.place(images)
    if targets.shape != (len(images),):
        raise UsageError(f"targets has one class for each of {len(images)} images, got {tuple(targets.shape)}")
    unknown = [name for name in contrasts if name not in CONTRASTS]
    if unknown or not contrasts or not steps or min(steps) < 1 or epsilon <= 0:
        raise UsageError(f"contrasts are of {', '.join(CONTRASTS)}; steps from 1; epsilon above 0 (got {unknown})")
    shift, scale = _pixel_scale(model, images, mean, std)
    pixels = images * scale + shift
    outside = ((pixels < -1e-3) | (pixels > 1 + 1e-3)).flatten(1).any(1)
    plain = forward.outputs(images)
    spec = output_spec(model, plain.values.shape[-1])
    column = targets.long().cpu()
    for name in contrasts:
        CONTRASTS[name]().check(spec, column)
    before = _figures(plain.values, column, spec.is_classifier)
    shape = (len(contrasts), len(steps))
    measured = torch.full((3, len(images), *shape), torch.nan, dtype=torch.float64)
    for c, name in enumerate(contrasts):
        for s, count in enumerate(steps):
            moved = _perturb(model, pixels, column, CONTRASTS[name](), (shift, scale), (epsilon, count), max_batch)
            after = _figures(forward.outputs((moved - shift) / scale).values, column, spec.is_classifier)
            measured[:, :, c, s] = torch.stack([after[0] - before[0], after[1] - before[1], after[2]])
    return _result(measured, before[2], tuple(contrasts), tuple(steps), outside)


def _result(
    measured: Tensor, correct_before: Tensor, contrasts: tuple[str, ...], steps: tuple[int, ...], outside: Tensor
) -> EpsilonResult:
    logit, probability, correct = (part.numpy() for part in measured)
    reasons = first_reason(
        (~np.isfinite(logit).all((1, 2)), "the model's score is not finite"),
        (outside.cpu().numpy(), "the image leaves [0, 1] in pixels (another normalisation?); it was clamped"),
        n=len(logit),
    )
    return EpsilonResult(
        contrasts=contrasts,
        steps=steps,
        delta_logit=logit,
        delta_probability=probability,
        correct=correct,
        correct_before=correct_before.numpy(),
        reasons=reasons,
    )


def _perturb(
    model: nn.Module,
    pixels: Tensor,
    column: Tensor,
    target: Target,
    scaling: tuple[Tensor, Tensor],
    how: tuple[float, int],
    max_batch: int,
) -> Tensor:
    """Pixels after ``how`` = (ε, n) steps of ε/n along the sign of the target's gradient."""
    (shift, scale), (epsilon, count) = scaling, how
    moved = []
    with borrowed(model):
        sigmoid = not output_spec(model, model((pixels[:1] - shift) / scale).shape[-1]).is_classifier
        for start in range(0, len(pixels), max_batch):
            first = pixels[start : start + max_batch].clamp(0, 1)
            classes = column[start : start + max_batch].to(pixels.device)
            x = first.clone()
            for _ in range(count):
                x = x.detach().requires_grad_(True)
                values = model((x - shift) / scale)
                score = target.score(Outputs(values), classes, sigmoid=sigmoid)
                step = torch.autograd.grad(score.sum(), x)[0].sign() * (epsilon / count)
                x = torch.clamp(x.detach() + step, min=first - epsilon, max=first + epsilon).clamp(0, 1)
            moved.append(x.detach())
    return torch.cat(moved)


def _figures(values: Tensor, column: Tensor, classes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) each: logit, probability, and whether the target is predicted."""
    values = values.double().cpu()
    logit = Logit().score(Outputs(values), column, sigmoid=not classes)
    probability = Probability().score(Outputs(values), column, sigmoid=not classes)
    predicted = values.argmax(-1) == column if classes else logit > 0
    return logit, probability, predicted.double()


def _pixel_scale(
    model: nn.Module, images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """(shift, scale), both (1,C,1,1): pixel = image · scale + shift."""
    if (mean is None) != (std is None):
        raise UsageError("give mean and std together, or neither")
    known = normalisation(model) if mean is None or std is None else (mean, std)
    if known is None:
        raise UsageError("the model does not say how its images are normalised; give mean and std per channel")
    shift, scale = (torch.as_tensor(part, dtype=images.dtype, device=images.device).view(1, -1, 1, 1) for part in known)
    return shift, scale
