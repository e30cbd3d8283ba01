"""Which annotated nodule a stack of pictures shows, and which stored pixels and slices it is.

The edition says patient and group only. Its masks are the readers' outlines, filled; so the place of the pictures is
where the outlines of the database, filled by our own rule, equal the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import DataError
from lidc_xai.imaging.crops.contours import GridBox, contours_box, contours_mask, mask_bounds, place
from lidc_xai.imaging.png.source import PngNodule

CERTAIN = 0.999
LEAST = 0.75
"""Dice between the edition's masks and the annotations: at once believed, and least that is accepted."""


@dataclass(frozen=True, eq=False)
class PngMatch:
    """``nodule`` of the database; ``offset``: stored column, row and slice of the pictures' first voxel; ``masks``: its
    readers' masks (R, z, y, x) over ``box`` of the stored grid; ``dice``: agreement of the edition's masks; ``issues``:
    where the two disagree, in words."""

    nodule: Nodule
    offset: NDArray[np.int64]
    masks: NDArray[np.bool_]
    box: GridBox
    dice: float
    issues: list[str]


def match_nodule(png: PngNodule, candidates: Sequence[Nodule]) -> PngMatch:
    """The nodule of the patient that ``png`` shows; DataError where no group of the patient fits its masks.

    ``candidates``: all nodules of the patient. The group of that number in the first scan comes first, then the same
    number in other scans, then all others.
    """
    if not png.masks.any():
        raise DataError(f"{png.name}: all its masks are empty: its place in the scan is unknown")
    best: PngMatch | None = None
    for nodule in sorted(candidates, key=lambda n: (n.cluster_index != png.group, n.scan_index, n.cluster_index)):
        match = _fit(png, nodule)
        if match is not None and (best is None or match.dice > best.dice):
            best = match
        if best is not None and best.dice >= CERTAIN:
            break
    if best is None or best.dice < LEAST:
        dice = 0.0 if best is None else best.dice
        raise DataError(f"{png.name}: its masks fit no group of the patient's annotations (best Dice {dice:.2f})")
    first = best.nodule.scan_index == 1 and best.nodule.cluster_index == png.group
    if not first:
        best.issues.insert(0, f"the edition's {png.name} is {best.nodule.nodule_id} by its masks")
    return best


def _fit(png: PngNodule, nodule: Nodule) -> PngMatch | None:
    contours = [contour for reading in nodule.readers for contour in reading.contours]
    box = contours_box(contours, [contour.k for contour in contours])
    masks = np.stack([contours_mask(r.contours, [c.k for c in r.contours], box) for r in nodule.readers])
    shared = min(len(masks), len(png.masks))
    offsets = _possible_offsets(png.masks[:shared], masks[:shared], np.array(box.low))
    if not offsets:
        return None
    scored = [(_dice(png.masks[:shared], masks[:shared], np.array(box.low) - offset), offset) for offset in offsets]
    dice, offset = max(scored, key=lambda item: item[0])
    match = PngMatch(nodule, np.array(offset), masks, box, dice, [])
    match.issues.extend(_disagreements(png, match))
    return match


def _possible_offsets(png: NDArray[np.bool_], masks: NDArray[np.bool_], low: NDArray) -> list[tuple[int, int, int]]:
    """Stored (i, j, k) of the pictures' first voxel by which some corner of some reader's mask fits."""
    offsets = set()
    for one, other in [*zip(png, masks, strict=True), (png.any(axis=0), masks.any(axis=0))]:
        here, there = mask_bounds(one), mask_bounds(other)
        if here is not None and there is not None:
            for a, b in zip(here, there, strict=True):
                i, j, k = (low + b[::-1] - a[::-1]).tolist()
                offsets.add((i, j, k))
    return sorted(offsets)


def _dice(png: NDArray[np.bool_], masks: NDArray[np.bool_], shift: NDArray) -> float:
    """Dice over the readers whose mask the edition has, ``shift``: place (i, j, k) of ``masks`` in the pictures."""
    placed = place(masks, shift, png.shape[1:])
    known = png.any(axis=(1, 2, 3))
    both = 2 * (png & placed)[known].sum()
    return float(both / max(png[known].sum() + placed[known].sum(), 1))


def _disagreements(png: PngNodule, match: PngMatch) -> list[str]:
    """What differs between the edition and the annotations: readers without mask, other masks, slices left out."""
    issues = []
    placed = place(match.masks, np.array(match.box.low) - match.offset, png.images.shape)
    if len(match.masks) > len(png.masks):
        issues.append(f"{len(match.masks)} readings in the annotations, the edition has room for {len(png.masks)}")
    for reader, (there, here) in enumerate(zip(placed, png.masks, strict=False), start=1):
        if not here.any() and match.masks[reader - 1].any():
            issues.append(f"reader {reader} has no mask in the edition: outline of the annotations used")
        elif (there != here).any():
            issues.append(f"reader {reader}'s mask differs from the outline in {int((there != here).sum())} pixels")
    lost = int(match.masks.sum()) - int(placed.sum())
    if lost:
        issues.append(f"{lost / match.masks.sum():.1%} of the readers' masks lie in slices that the edition leaves out")
    return issues
