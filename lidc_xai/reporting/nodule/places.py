"""Where a map lies: on the nodule, at its rim or away from it, beside what a map without a reason would have there.

A map is no finer than its patches, so the rim reaches half a patch to both sides of the outline; a nodule without a
whole patch deeper than that has no inside of its own. Shares are of the positive (or of the negative) relevance over
all explained planes; chance is the zone's share of the planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lidc_xai.reporting.nodule.fact_types import Places, Zone

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps

ZONES = ("inside", "rim", "outside")
_DIRECTIONS = (("right", "left"), ("front", "back"), ("foot", "head"))
"""Towards lower and higher x, y and z of the patient (LPS)."""
_CENTRAL = 0.5
"""A patch nearer to the middle than this share of the nodule's radius has no direction."""


def map_places(crop: NoduleCrop, maps: NoduleMaps, output: str, diameter_mm: float | None = None) -> Places | None:
    """Where ``output``'s map lies against the readers' consensus, else against a ball of ``diameter_mm`` about the
    crop's centre. None where there is neither, or where no explained plane meets it.
    """
    from lidc_xai.evaluation.geometry import in_plane, signed_distance

    masks = _masks(crop, maps, diameter_mm)
    if output not in maps.output_names or not any(mask.any() and not mask.all() for mask, _ in masks):
        return None
    column, rim = maps.output_names.index(output), max(maps.token_mm) / 2
    sums = {name: np.zeros(3) for name in ZONES}  # positive, negative relevance and area
    for place, (mask, spacing) in enumerate(masks):
        if not mask.any() or mask.all():
            continue
        plane = in_plane(maps.relevance[place : place + 1, column], mask[None], spacing)
        distance, scores = signed_distance(plane.masks[0], plane.spacing_mm), plane.maps[0]
        for name, part in zip(ZONES, (distance < -rim, np.abs(distance) <= rim, distance > rim), strict=True):
            sums[name] += (scores.clip(min=0)[part].sum(), -scores.clip(max=0)[part].sum(), part.mean())
    total = np.sum(list(sums.values()), axis=0)
    zones: dict[str, Zone] = {
        name: {
            "raises": float(one[0] / total[0]) if total[0] > 0 else None,
            "lowers": float(one[1] / total[1]) if total[1] > 0 else None,
            "area": float(one[2] / total[2]),
        }
        for name, one in sums.items()
    }
    patches = sums["inside"][2] / total[2] * maps.relevance.shape[-1] * maps.relevance.shape[-2]
    return {
        "around": "ball" if crop.consensus is None else "outline",
        "rim_mm": rim,
        "told_apart": bool(patches >= 1),
        "zones": zones,
        "raises_peak": _peak(crop, maps, column, masks, 1),
        "lowers_peak": _peak(crop, maps, column, masks, -1),
    }


def _masks(
    crop: NoduleCrop, maps: NoduleMaps, diameter_mm: float | None
) -> list[tuple[NDArray[np.bool_], tuple[float, float]]]:
    """Per explained plane the outline, or the section of the ball, with the plane's spacing."""
    from lidc_xai.imaging.planes import crop_plane
    from lidc_xai.nodules.agreement import evaluated_masks

    if crop.consensus is not None:
        return evaluated_masks(crop, maps)
    sections = []
    for view, index in zip(maps.views, maps.indices, strict=True):
        plane = crop_plane(crop, view, index)
        rows, columns = np.indices(plane.image.shape)
        points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]).reshape(4, -1)
        away = (np.asarray(plane.affine) @ points)[:3].T - np.asarray(crop.centre_mm)
        within = np.linalg.norm(away, axis=1) <= (diameter_mm or 0.0) / 2
        sections.append((within.reshape(plane.image.shape), plane.spacing_mm))
    return sections


def _peak(
    crop: NoduleCrop,
    maps: NoduleMaps,
    column: int,
    masks: Sequence[tuple[NDArray[np.bool_], tuple[float, float]]],
    sign: int,
) -> list[str]:
    """Directions of the patient in which the strongest patch of that sign lies from the middle of the nodule; empty
    where there is none of that sign, ``["middle"]`` where it lies near it. Of a mean map among the stable
    patches, which alone are coloured."""
    from lidc_xai.imaging.planes import crop_plane

    scores = sign * np.asarray(maps.relevance[:, column], dtype=np.float64)
    if maps.repeatability is not None and maps.repeatability.stable is not None:
        scores = np.where(maps.repeatability.stable[:, column], scores, 0)
    place, row, cell = np.unravel_index(int(scores.argmax()), scores.shape)
    mask, spacing = masks[int(place)]
    if scores.max() <= 0 or not mask.any():
        return []
    plane = crop_plane(crop, maps.views[int(place)], maps.indices[int(place)])
    middle = np.argwhere(mask).mean(axis=0)
    size = np.array(mask.shape) / scores.shape[1:]
    patch = (np.array([row, cell]) + 0.5) * size - 0.5
    affine = np.asarray(plane.affine)
    away = affine[:3, 1] * (patch - middle)[0] + affine[:3, 0] * (patch - middle)[1]
    length, radius = float(np.linalg.norm(away)), float(np.sqrt(mask.sum() * spacing[0] * spacing[1] / np.pi))
    if length <= max(_CENTRAL * radius, max(maps.token_mm) / 2):
        return ["middle"]
    order = np.argsort(-np.abs(away))
    return [_DIRECTIONS[axis][int(away[axis] > 0)] for axis in order if abs(away[axis]) > 0.38 * length]
