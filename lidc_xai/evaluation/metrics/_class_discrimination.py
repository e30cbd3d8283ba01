"""Class discrimination: does the map for the right class explain its score better than the map for a wrong one does?

Both maps are judged on the score of the right class, with the same ties and the same boxes:

    fidelity = (A_LIF − A_MIF)(own map) − (A_LIF − A_MIF)(wrong map),   box = area(own map) − area(wrong map).

A method that gives every class the same map (attention, rollout) scores exactly 0 on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError
from lidc_xai.evaluation.forward import scored_for_one
from lidc_xai.evaluation.maps import MapLike, as_pixels, broken, constant
from lidc_xai.evaluation.metrics._box_sensitivity import BoxOptions, box_outputs, box_result, random_boxes
from lidc_xai.evaluation.metrics._fidelity import (
    FidelityOptions,
    curve_outputs,
    curve_percent,
    fidelity_result,
    replaced_outputs,
)
from lidc_xai.evaluation.replacement import options_as
from lidc_xai.evaluation.results import Result
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.targets import TargetsLike


@dataclass(frozen=True, eq=False, kw_only=True)
class DiscriminationResult(Result):
    """``fidelity`` and ``box`` (B,): own map minus wrong map, both on the right class's score."""

    fidelity: Floats
    box: Floats

    figures: ClassVar[tuple[str, ...]] = ("fidelity", "box")


@dataclass(frozen=True, kw_only=True)
class DiscriminationOptions(FidelityOptions, BoxOptions):
    """Options of ``fidelity`` and ``box_sensitivity`` together."""


def class_discrimination(
    model: nn.Module,
    images: Tensor,
    relevance: MapLike,
    wrong_relevance: MapLike,
    target: TargetsLike = None,
    **options: Any,
) -> DiscriminationResult:
    """How much better ``relevance`` (for ``target``) explains the target's score than ``wrong_relevance`` does.

    Maps are (B,H,W) or (B,gh,gw). ``wrong_class`` names the class for the wrong map. Options: those of ``fidelity`` and
    ``box_sensitivity``.

    >>> own, other = explain(vit, images, [0, 1]).relevance.unbind(1)
    >>> class_discrimination(vit, images, own, own, 0, boxes=8).fidelity.tolist()      # a map that ignores the class
    [0.0, 0.0]
    """
    chosen = options_as(DiscriminationOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    batch, device = len(asked.images), asked.images.device
    maps = torch.stack([as_pixels(one, batch, asked.size, device) for one in (relevance, wrong_relevance)], dim=1)
    removed = chosen.of(asked.images)
    ends = replaced_outputs(asked.forward, asked.outputs, removed)
    curves = asked.read(curve_outputs(asked.forward, asked.images, removed, maps, ends, chosen.points, chosen.seed))
    boxes = random_boxes(asked.size, chosen.sizes, chosen.boxes, chosen.seed)
    boxed = asked.read(box_outputs(asked.forward, asked.images, removed, boxes))[..., 0].cpu().numpy()
    plain = asked.scores[:, 0].cpu().numpy()
    lines, boxes_of = [], []
    for m in range(2):
        bad, flat = broken(maps[:, m]).cpu().numpy(), constant(maps[:, m]).cpu().numpy()
        scores = curves[:, m, ..., 0].cpu().numpy()
        lines.append(fidelity_result(scores, curve_percent(chosen.points), bad, flat, chosen.normalise))
        boxes_of.append(box_result(maps[:, m], boxed, plain, boxes, asked.size))
    reasons = tuple(
        "; ".join(dict.fromkeys(reason for reason in each if reason))
        for each in zip(*(result.reasons for result in (*lines, *boxes_of)), strict=True)
    )
    return DiscriminationResult(
        fidelity=lines[0].area - lines[1].area, box=boxes_of[0].area - boxes_of[1].area, reasons=reasons
    )


def wrong_class(logits: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """(B,) the class that a wrong map is made for.

    ``logits`` (B,C), ``target`` (B,) the right class, ``labels`` (B,C) bool which classes the image shows: the most
    probable other labelled class where there is one, else the most probable class that is not the target.

    >>> wrong_class(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0])).tolist()
    [1]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise DataError(f"class discrimination needs class logits (B, C > 1), got {tuple(logits.shape)}")
    others = logits.clone()
    others.scatter_(1, target.view(-1, 1), -torch.inf)
    if labels is not None:
        also = labels.bool().clone()
        also.scatter_(1, target.view(-1, 1), False)
        some = also.any(1, keepdim=True)
        others = others.masked_fill(some & ~also, -torch.inf)
    return others.argmax(1)
