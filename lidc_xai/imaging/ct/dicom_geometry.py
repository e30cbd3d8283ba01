"""From slice headers to one volume: which slices, in which order, on which grid, and everything odd about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.choose_volume import SAME_PLACE_MM, choose_volume
from lidc_xai.imaging.ct.dicom_headers import SliceHeader
from lidc_xai.imaging.ct.formats.header import check_affine
from lidc_xai.imaging.ct.volume import EVEN_MM, GAP

SIDEWAYS_MM = 0.1
FAR_MM = 100.0
MOST_GRID = 4
"""The even grid has at most this many slices for one that is there."""


@dataclass(frozen=True)
class SeriesGeometry:
    """The slices of a volume in ascending order along their normal.

    ``positions_mm``: (n,) along the normal. ``affine``: (i, j, k, 1) -> LPS mm of the even grid; ``even``: whether the
    slices lie on it. ``duplicates``: pairs of the slice that is kept and another one at the same place.
    """

    slices: list[SliceHeader]
    positions_mm: NDArray[np.float64]
    affine: NDArray[np.float64]
    even: bool
    duplicates: list[tuple[SliceHeader, SliceHeader]]
    issues: list[str]


def arrange(slices: Sequence[SliceHeader], name: str) -> SeriesGeometry:
    """Choose the volume in a series, sort its slices, drop duplicates, and find their grid.

    Raises DataError (its text starts with ``name``) where there is no one volume: fewer than two slices, several
    volumes that cannot be told apart, slices shifted sideways, a geometry that no scan has.
    """
    issues: list[str] = []
    if slices:
        slices = choose_volume(slices, name, issues)
    if len(slices) < 2:
        raise DataError(f"{name}: has {len(slices)} usable slice(s); a volume needs at least 2")
    normal = slices[0].normal
    slices = sorted(slices, key=lambda one: (float(one.position @ normal), one.instance_number, one.sop_instance_uid))
    slices, duplicates = _without_duplicates(slices, normal)
    slices = _without_far(slices, normal, issues)
    if len(slices) < 2:
        raise DataError(f"{name}: all slices lie at one place; a volume needs at least 2")
    positions = np.array([float(one.position @ normal) for one in slices])
    affine, even = _grid(slices, positions, name, issues)
    check_affine(affine, name)
    _note_gaps(positions, issues)
    kept = {id(one) for one in slices}
    return SeriesGeometry(slices, positions, affine, even, [pair for pair in duplicates if id(pair[0]) in kept], issues)


def _without_far(slices: list[SliceHeader], normal: NDArray[np.float64], issues: list[str]) -> list[SliceHeader]:
    """The longest row of slices without a gap that no scan has: a slice 10 m away is no part of the volume."""
    steps = np.diff([float(one.position @ normal) for one in slices])
    ends = np.flatnonzero(steps > FAR_MM)
    if not len(ends):
        return slices
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends + 1, [len(slices)]])
    longest = int(np.argmax(stops - starts))
    kept = slices[starts[longest] : stops[longest]]
    issues.append(f"{len(slices) - len(kept)} slice(s) more than {FAR_MM:g} mm away from the others left out")
    return kept


def _without_duplicates(
    slices: Sequence[SliceHeader], normal: NDArray[np.float64]
) -> tuple[list[SliceHeader], list[tuple[SliceHeader, SliceHeader]]]:
    """Of slices at one place the one with the lowest instance number stays."""
    kept: list[SliceHeader] = []
    duplicates = []
    for one in slices:
        if kept and float((one.position - kept[-1].position) @ normal) < SAME_PLACE_MM:
            duplicates.append((kept[-1], one))
        else:
            kept.append(one)
    return kept, duplicates


def _grid(
    slices: Sequence[SliceHeader], positions: NDArray[np.float64], name: str, issues: list[str]
) -> tuple[NDArray[np.float64], bool]:
    """The even grid nearest to the slices, and whether all slices lie on it."""
    first = slices[0]
    origins = np.array([one.position for one in slices])
    travel = positions - positions[0]
    # The way from slice to slice: along the normal, and with a tilted gantry also sideways.
    slope = (origins - origins[0]).T @ travel / (travel @ travel)
    sideways = float(np.linalg.norm(origins - origins[0] - np.outer(travel, slope), axis=1).max())
    if sideways > SIDEWAYS_MM:
        raise DataError(f"{name}: slices are shifted sideways against each other by up to {sideways:.2f} mm")
    tilt = float(np.degrees(np.arccos(min(1.0, 1.0 / float(np.linalg.norm(slope))))))
    if tilt > 0.1:
        issues.append(f"gantry tilt of {tilt:.1f} degrees: slices are sheared, positions follow the headers")
    steps = np.diff(positions)
    step = float(np.median(steps))
    if travel[-1] / step > MOST_GRID * len(slices):
        raise DataError(
            f"{name}: {len(slices)} slices over {travel[-1]:.1f} mm, but usually {step:.3g} mm apart: too few for a "
            "volume"
        )
    mean_step = float(travel[-1] / (len(positions) - 1))
    even = bool(np.abs(travel - np.arange(len(positions)) * mean_step).max() <= EVEN_MM)
    if even:
        step = mean_step
    elif steps.max() <= GAP * step:
        issues.append(
            f"slice spacing varies from {steps.min():.3f} to {steps.max():.3f} mm: interpolated at true positions"
        )
    affine = np.eye(4)
    affine[:3, 0] = first.along_row * first.pixel_spacing_mm[1]
    affine[:3, 1] = first.along_column * first.pixel_spacing_mm[0]
    affine[:3, 2] = slope * step
    affine[:3, 3] = origins[0]
    return affine, even


def _note_gaps(positions: NDArray[np.float64], issues: list[str]) -> None:
    steps = np.diff(positions)
    usual = float(np.median(steps))
    for k in np.flatnonzero(steps > GAP * usual):
        missing = max(1, round(steps[k] / usual) - 1)
        issues.append(
            f"gap of {steps[k]:.2f} mm between {positions[k]:.2f} and {positions[k + 1]:.2f} mm along the scan "
            f"({missing} slice(s) missing)"
        )


def shared_issues(slices: Sequence[SliceHeader]) -> list[str]:
    """Oddities of single headers, counted over the series."""
    counts: dict[str, int] = defaultdict(int)
    for one in slices:
        if one.slope is None or one.intercept is None:
            counts["without rescale slope or intercept: stored values taken as HU"] += 1
        if one.unspecified:
            counts["with RescaleType US (unspecified): taken as HU"] += 1
        if one.inverted:
            counts["MONOCHROME1 (to be shown inverted): HU are the stored values'"] += 1
    return [f"{count} slice(s) {words}" for words, count in counts.items()]
