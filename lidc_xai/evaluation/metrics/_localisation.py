"""Against contours: how much of a map lies on the nodule, in the plane that was evaluated.

With S the map, M the mask (the readers' 50 % consensus, one reader, or a known cause):

    positive mass = Σ_M S⁺ / Σ S⁺        absolute mass = Σ_M |S| / Σ |S|
    rank accuracy = share of the |M| highest pixels that lie in M; IoU of those pixels with M (area-matched)
    pointing game = is the highest pixel in M (tolerance 0 and 2 mm)        AUPRC of S against M

Ties are broken by the seeded permutation (AUPRC treats them as one threshold). These figures describe agreement with a
contour; they do not prove that a map is faithful.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.evaluation.geometry import Bools, Plane, Spacing, centred_disc, in_plane, mask_as_map
from lidc_xai.evaluation.maps import CONSTANT, NOT_FINITE, MapLike, pixel_ranks
from lidc_xai.evaluation.results import Result, finite, first_reason
from lidc_xai.evaluation.statistics import Floats

TOLERANCE_MM = 2.0
NO_MASK = "the mask is empty in this plane"
FULL_MASK = "the mask fills the plane: nothing lies outside it"
NO_POSITIVE = "no positive relevance: its mass is undefined"


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalisationResult(Result):
    """All (B,): shares in [0, 1]; ``pointing`` and ``pointing_2mm`` are 0 or 1; ``area_mm2`` is the mask's."""

    positive_mass: Floats
    absolute_mass: Floats
    rank_accuracy: Floats
    iou: Floats
    auprc: Floats
    pointing: Floats
    pointing_2mm: Floats
    area_mm2: Floats

    figures: ClassVar[tuple[str, ...]] = (
        "positive_mass", "absolute_mass", "rank_accuracy", "iou", "auprc", "pointing", "pointing_2mm",
    )  # fmt: skip


def localisation(
    relevance: MapLike,
    masks: ArrayLike | Tensor,
    spacing_mm: Spacing,
    *,
    seed: int = 0,
    tolerance_mm: float = TOLERANCE_MM,
) -> LocalisationResult:
    """Every figure above for relevance (B,h,w) and masks (B,H,W) of the same planes (any two grids).

    ``spacing_mm``: of the masks' pixels, one number or (between rows, between columns).

    >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> mask[0, 1:3, 1:3] = True
    >>> found = localisation(mask.double(), mask, spacing_mm=1.0)
    >>> found.iou.tolist(), found.pointing.tolist(), found.area_mm2.tolist()
    ([1.0], [1.0], [4.0])
    """
    return localise(in_plane(relevance, masks, spacing_mm), seed, tolerance_mm)


def localise(plane: Plane, seed: int = 0, tolerance_mm: float = TOLERANCE_MM) -> LocalisationResult:
    """``localisation`` of maps and masks that are on one grid already."""
    maps, masks = plane.maps, plane.masks
    not_finite = ~finite(maps, (1, 2))
    maps = np.where(not_finite[:, None, None], 0.0, maps)
    area = masks.sum((1, 2))
    empty, full = area == 0, area == masks[0].size
    ranks = pixel_ranks(torch.from_numpy(maps), seed).numpy()
    hits = (masks & (ranks >= masks[0].size - area[:, None, None])).sum((1, 2))
    highest = ranks == masks[0].size - 1
    distance = np.stack([_outside_mm(mask, plane.spacing_mm) for mask in masks])
    at_highest = np.array([field[top].max() for field, top in zip(distance, highest, strict=True)])
    positive = np.maximum(maps, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values: dict[str, Floats] = {
            "positive_mass": (positive * masks).sum((1, 2)) / positive.sum((1, 2)),
            "absolute_mass": (np.abs(maps) * masks).sum((1, 2)) / np.abs(maps).sum((1, 2)),
            "rank_accuracy": hits / area,
            "iou": hits / (2 * area - hits),
            "auprc": np.array([average_precision(m, t) for m, t in zip(maps, masks, strict=True)]),
            "pointing": (at_highest <= 0).astype(np.float64),
            "pointing_2mm": (at_highest <= tolerance_mm).astype(np.float64),
        }
    for figure in values.values():
        figure[not_finite | empty] = np.nan
    flat = maps.max((1, 2)) == maps.min((1, 2))
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (empty, NO_MASK),
        (full, FULL_MASK),
        (positive.sum((1, 2)) == 0, NO_POSITIVE),
        (flat, f"{CONSTANT}: its order is the seeded permutation"),
        n=len(maps),
    )
    millimetres = area * plane.spacing_mm[0] * plane.spacing_mm[1]
    return LocalisationResult(**values, area_mm2=millimetres.astype(np.float64), reasons=reasons)


def average_precision(scores: Floats, mask: Bools) -> float:
    """Area under the precision-recall curve of pixels ranked by ``scores``, equal scores being one threshold.

    NaN for an empty mask.
    """
    total = mask.sum()
    if not total:
        return float("nan")
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, truth = scores.ravel()[order], mask.ravel()[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(truth)[ends]
    precision = hits / (ends + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / total)


def centred_disc_localisation(
    masks: ArrayLike | Tensor, spacing_mm: Spacing, grid: tuple[int, int] | None = None, *, seed: int = 0
) -> LocalisationResult:
    """The same figures for a disc in the middle of the plane with the mask's own area, on the masks' grid or finer.

    >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    >>> mask[0, 2:6, 2:6] = True
    >>> centred_disc_localisation(mask, 1.0).iou[0] > 0.5
    np.True_
    """
    plane = _masks_on(masks, spacing_mm, grid)
    discs = [centred_disc(mask.shape, int(mask.sum()), plane.spacing_mm) for mask in plane.masks]
    return localise(Plane(np.stack(discs), plane.masks, plane.spacing_mm, plane.token_mm), seed)


def against_readers(
    relevance: MapLike, reader_masks: ArrayLike | Tensor, spacing_mm: Spacing, *, seed: int = 0
) -> LocalisationResult:
    """The same figures against each reader's own mask (B,R,H,W), averaged over the readers who marked the plane.

    >>> readers = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    >>> readers[0, :, 2:5, 2:5] = True
    >>> against_readers(readers[:, 0].double(), readers, 1.0).positive_mass.tolist()
    [1.0]
    """
    readers = _reader_masks(reader_masks)
    by_reader = [localisation(relevance, readers[:, r], spacing_mm, seed=seed) for r in range(readers.shape[1])]
    return _mean_over(by_reader, "no reader marked this plane")


def reader_agreement(
    reader_masks: ArrayLike | Tensor, spacing_mm: Spacing, grid: tuple[int, int] | None = None, *, seed: int = 0
) -> LocalisationResult:
    """The ceiling: each reader's mask (B,R,H,W), read as a map, against the 50 % consensus of the others; averaged.

    >>> readers = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    >>> readers[0, :, 2:5, 2:5] = True
    >>> reader_agreement(readers, 1.0).iou.tolist()
    [1.0]
    """
    readers = _reader_masks(reader_masks)
    marked = np.asarray(readers.any((2, 3)))
    by_reader = []
    for r in range(readers.shape[1]):
        others = np.delete(readers, r, axis=1)
        count = np.delete(marked, r, axis=1).sum(1)[:, None, None]
        consensus = (others.sum(1) * 2 >= count) & (count > 0) & marked[:, r, None, None]
        plane = _masks_on(consensus, spacing_mm, grid)
        reader = _masks_on(readers[:, r], spacing_mm, grid)
        maps = np.stack([mask_as_map(mask, plane.spacing_mm) for mask in reader.masks])
        by_reader.append(localise(Plane(maps, plane.masks, plane.spacing_mm, plane.token_mm), seed))
    return _mean_over(by_reader, "fewer than two readers marked this plane")


def _mean_over(by_reader: list[LocalisationResult], reason: str) -> LocalisationResult:
    n = len(by_reader[0])

    def mean(values: list[Floats]) -> Floats:
        stacked = np.stack(values)
        count = np.isfinite(stacked).sum(0)
        total = np.nansum(stacked, 0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    names = (*LocalisationResult.figures, "area_mm2")
    values: dict[str, Any] = {name: mean([getattr(one, name) for one in by_reader]) for name in names}
    none = ~np.isfinite(values["rank_accuracy"])
    first_reasons = [
        next((one.reasons[i] for one in by_reader if one.reasons[i] not in ("", NO_MASK)), "") for i in range(n)
    ]
    reasons = tuple(first_reasons[i] or (reason if none[i] else "") for i in range(n))
    return LocalisationResult(**values, reasons=reasons)


def _masks_on(masks: ArrayLike | Tensor, spacing_mm: Spacing, grid: tuple[int, int] | None) -> Plane:
    array = np.asarray(masks.detach().cpu() if isinstance(masks, Tensor) else masks)
    if array.ndim != 3:
        raise DataError(f"masks are (B, H, W), got {array.shape}")
    return in_plane(np.zeros((len(array), *(grid or array.shape[1:]))), array.astype(bool), spacing_mm)


def _reader_masks(masks: ArrayLike | Tensor) -> Bools:
    array = np.asarray(masks.detach().cpu() if isinstance(masks, Tensor) else masks).astype(bool)
    if array.ndim != 4 or not array.shape[1]:
        raise DataError(f"reader masks are (B, readers, H, W), got {array.shape}")
    return array


def _outside_mm(mask: Bools, spacing_mm: tuple[float, float]) -> Floats:
    """(H,W) mm to the nearest pixel of the mask, 0 inside; infinite for an empty mask."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(distance_transform_edt(~mask, sampling=spacing_mm), dtype=np.float64)
