"""ADCC and its parts: does the image seen through the map keep its probability, and its map?

M is the map upsampled bilinearly and scaled to [0, 1] (min-max of relu(S), or of S), E = x ⊙ M in normalised space:

    average drop = max(0, p(x) − p(E)) / p(x)          increase in confidence: p(E) > p(x)
    coherency    = (1 + Pearson(M(x), M(E))) / 2       complexity = mean of M
    ADCC         = 3 / (1/coherency + 1/(1 − complexity) + 1/(1 − drop))

All for the class that was asked for. On a binary output it is the predicted side: p or 1 − p, explained as such. A
regression output has no probability and is refused. A constant map has coherency 0; any undefined or limiting case
gives ADCC 0 and is counted. Beside a method stand ``random`` and a map that ignores the image, whose coherency is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, Precision, Scored, scored_for_one
from lidc_xai.evaluation.maps import NOT_FINITE, broken, constant, spanning
from lidc_xai.evaluation.results import Result, first_reason
from lidc_xai.evaluation.statistics import Floats, pearson
from lidc_xai.explain import targets as target_module
from lidc_xai.explain.api import explain
from lidc_xai.explain.registry import find_method
from lidc_xai.explain.targets import Logit, Outputs, Probability, Target, TargetsLike

Signed = Literal["relu", "minmax"]
Explainer: TypeAlias = Callable[[Tensor, Target], Tensor]
"""(images (b,C,H,W), target) → relevance (b,h,w)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ADCCResult(Result):
    """All (B,): ``adcc``, ``average_drop``, ``coherency``, ``complexity`` in [0, 1]; ``increase`` 0 or 1."""

    adcc: Floats
    average_drop: Floats
    coherency: Floats
    complexity: Floats
    increase: Floats

    figures: ClassVar[tuple[str, ...]] = ("adcc", "average_drop", "coherency", "complexity", "increase")


@dataclass(frozen=True, eq=False)
class OtherSide(Target):
    """The same scalar for the other side of a binary output: ``inner`` on the negated logit."""

    inner: Target | None = None
    allowed: ClassVar[tuple[str, ...]] = ("binary",)
    label: ClassVar[str] = "not"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        assert self.inner is not None
        return self.inner.score(Outputs(-outputs.values, outputs.features), column, sigmoid)


def adcc(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str | Explainer = "cdam",
    *,
    signed: Signed = "relu",
    max_batch: int = 64,
    precision: Precision = "float32",
    **options: Any,
) -> ADCCResult:
    """ADCC of ``method`` for one class (or the predicted side of a binary output) of ``images`` (B,C,H,W), normalised.

    ``method``: a name of ``list_methods()`` with its ``options``, or a function (images, target) → relevance (b,h,w).
    ``signed``: "relu" scales relu(S), "minmax" S itself. Raises ``UsageError`` for a regression output.

    >>> adcc(vit, images, labels).adcc.shape
    (2,)
    """
    forward = Forward(model, max_batch, precision)
    asked = side_of_interest(forward, images, target)
    explainer = explainer_of(model, method, max_batch, options)
    target_kind = getattr(target_module, find_method(method).target) if isinstance(method, str) else Logit
    wanted = own_target(target, asked, target_kind)
    first = on_each_side(explainer, asked.images, wanted, asked)
    return adcc_of_maps(asked, first, lambda seen: on_each_side(explainer, seen, wanted, asked), signed)


def adcc_of_maps(
    asked: Scored, relevance: Tensor, again: Callable[[Tensor], Tensor], signed: Signed = "relu"
) -> ADCCResult:
    """ADCC from the maps (B,h,w) of the images and a function that explains the masked images likewise."""
    if signed not in ("relu", "minmax"):
        raise UsageError(f"signed is 'relu' or 'minmax', not {signed!r}")
    size = asked.size
    first = unit_map(relevance, size, signed)
    seen = asked.images * first[:, None].to(asked.images.dtype)
    sides = positive_sides(asked)
    before, after = _probability(asked, asked.outputs, sides), _probability(asked, asked.forward.outputs(seen), sides)
    again_map = again(seen)
    second = unit_map(again_map, size, signed)
    correlation = pearson(first.flatten(1).cpu().numpy(), second.flatten(1).cpu().numpy())
    return _combine(first, broken(relevance), broken(again_map), before, after, correlation)


def _combine(
    first: Tensor, bad: Tensor, bad_again: Tensor, before: Tensor, after: Tensor, correlation: Floats
) -> ADCCResult:
    p, q = before.cpu().numpy(), after.cpu().numpy()
    not_finite = (bad | bad_again).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = np.maximum(p - q, 0) / p
        flat = ~np.isfinite(correlation)
        coherency = np.where(flat, 0.0, (1 + correlation) / 2)
        complexity = first.mean((-2, -1)).cpu().numpy()
        score = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    drop, coherency, complexity = (np.where(not_finite, np.nan, part) for part in (drop, coherency, complexity))
    limiting = ~((coherency > 0) & (complexity < 1) & (drop < 1))
    reasons = first_reason(
        (not_finite, f"{NOT_FINITE} (the image's or the masked image's): ADCC 0 by definition"),
        (p == 0, "the class's probability is 0 to machine precision: no drop is defined; ADCC 0 by definition"),
        (flat, "the map is constant (before or after masking): coherency and ADCC 0 by definition"),
        (limiting, "coherency 0, complexity 1 or drop 1: ADCC 0 by definition"),
        n=len(p),
    )
    return ADCCResult(
        adcc=np.where(limiting | ~np.isfinite(score), 0.0, score),
        average_drop=drop,
        coherency=coherency,
        complexity=complexity,
        increase=np.where(not_finite, np.nan, (q > p).astype(np.float64)),
        reasons=reasons,
    )


def unit_map(relevance: Tensor, size: tuple[int, int], signed: Signed) -> Tensor:
    """(B,h,w) → (B,H,W) float64 in [0, 1]: bilinear (align_corners=False), then min-max; zeros where constant."""
    maps = relevance.detach().double().masked_fill(broken(relevance)[:, None, None], 0.0)
    if signed == "relu":
        maps = maps.clamp_min(0)
    if tuple(maps.shape[-2:]) != size:
        maps = nn.functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    span = torch.where(constant(maps), 1.0, high - low)
    return ((maps - low[:, None, None]) / span[:, None, None]).masked_fill(constant(maps)[:, None, None], 0.0)


def side_of_interest(forward: Forward, images: Tensor, target: TargetsLike) -> Scored:
    """The images with the logit that was asked for; ``UsageError`` where that output has no probability."""
    asked = scored_for_one(forward, images, target)
    if asked.targets.reads_features:
        raise UsageError("ADCC needs a probability; a concept's similarity has none")
    for column in asked.targets.columns.unique().tolist():
        if asked.targets.spec.kinds[column] == "regression":
            name = asked.targets.spec.name(column)
            raise UsageError(f"ADCC needs a probability; the output {name!r} is a regression and has none")
    return asked


def positive_sides(asked: Scored) -> Tensor:
    """(B,) bool: False where a binary output predicts the other side; always True for a class of several."""
    column = asked.targets.columns[:, 0]
    if asked.targets.spec.is_classifier:
        return torch.ones(len(column), dtype=torch.bool)
    return asked.outputs.values.cpu().gather(1, column[:, None])[:, 0] >= 0


def own_target(target: TargetsLike, asked: Scored, default: type[Target]) -> Target:
    """What is explained: the caller's own ``Target``, or the method's default on the columns that were asked for."""
    return target if isinstance(target, Target) else default(asked.targets.columns[:, 0])


def explainer_of(model: nn.Module, method: str | Explainer, max_batch: int, options: dict[str, Any]) -> Explainer:
    """A method by name as a function; a function as it is (it has no options)."""
    if not isinstance(method, str):
        if options:
            raise TypeError(f"unknown option {next(iter(options))!r}; a function as method takes none")
        return method
    if "max_batch" in find_method(method).options:
        options = {"max_batch": max_batch, **options}

    def explained(images: Tensor, target: Target) -> Tensor:
        return spanning(explain(model, images, target, method, **options))[:, 0]

    return explained


def on_each_side(explainer: Explainer, images: Tensor, target: Target, asked: Scored) -> Tensor:
    """Relevance (B,h,w) of the target, or of its other side where a binary output predicts that."""
    sides = positive_sides(asked)
    parts: list[tuple[Tensor, Tensor]] = []
    for wanted in (True, False):
        rows = torch.nonzero(sides == wanted)[:, 0]
        for chunk in rows.split(asked.forward.max_batch) if len(rows) else ():
            asked_side = _for_rows(target, chunk)
            asked_side = asked_side if wanted else OtherSide(asked_side.output, asked_side)
            parts.append((chunk, explainer(images[chunk.to(images.device)], asked_side)))
    joined = torch.cat([maps for _, maps in parts])
    return joined[torch.cat([rows for rows, _ in parts]).argsort().to(joined.device)]


def _for_rows(target: Target, rows: Tensor) -> Target:
    return replace(target, output=target.output[rows]) if isinstance(target.output, Tensor) else target


def _probability(asked: Scored, outputs: Outputs, sides: Tensor) -> Tensor:
    column = asked.targets.columns[:, 0].to(outputs.values.device)
    sigmoid = asked.targets.targets[0].uses_sigmoid(asked.targets.spec)
    side = sides.to(outputs.values.device)
    values = torch.where(side[:, None], outputs.values, -outputs.values)
    return Probability().score(Outputs(values), column, sigmoid)
