"""From slice headers to one volume: which slices, in which order, on which grid, and everything odd about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import SliceHeader
from lidc_xai.imaging.ct.volume import GAP

SAME_PLACE_MM = 1e-3
EVEN_MM = 0.01
"""Slices this close to an even grid are taken as even: CT headers jitter by rounding alone."""
SIDEWAYS_MM = 0.1
_DIRECTION = 1e-3


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
    """Sort the slices of one series, drop localizers and duplicates, and find their grid.

    Raises DataError (its text starts with ``name``) where they do not make one volume: fewer than two slices, sizes,
    spacings or directions that differ, slices shifted sideways.
    """
    issues: list[str] = []
    slices = _without_localizers(slices, issues)
    if len(slices) < 2:
        raise DataError(f"{name}: has {len(slices)} usable slice(s); a volume needs at least 2")
    _check_alike(slices, name)
    normal = slices[0].normal
    slices = sorted(slices, key=lambda one: (float(one.position @ normal), one.instance_number, one.sop_instance_uid))
    slices, duplicates = _without_duplicates(slices, normal)
    if len(slices) < 2:
        raise DataError(f"{name}: all slices lie at one place; a volume needs at least 2")
    positions = np.array([float(one.position @ normal) for one in slices])
    affine, even = _grid(slices, positions, name, issues)
    _note_gaps(positions, issues)
    return SeriesGeometry(slices, positions, affine, even, duplicates, issues)


def _without_localizers(slices: Sequence[SliceHeader], issues: list[str]) -> list[SliceHeader]:
    kept = [one for one in slices if not one.localizer]
    if kept and len(kept) < len(slices):
        issues.append(f"{len(slices) - len(kept)} localizer image(s) left out")
    return kept


def _check_alike(slices: Sequence[SliceHeader], name: str) -> None:
    sizes = {(one.rows, one.columns) for one in slices}
    if len(sizes) > 1:
        found = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
        raise DataError(f"{name}: slices differ in size ({found}); they are not one volume")
    first = slices[0]
    for one in slices:
        if np.abs(np.subtract(one.pixel_spacing_mm, first.pixel_spacing_mm)).max() > SAME_PLACE_MM:
            raise DataError(
                f"{name}: slices differ in pixel spacing ({first.pixel_spacing_mm} in {first.path.name}, "
                f"{one.pixel_spacing_mm} mm in {one.path.name}); they are not one volume"
            )
        turned = np.abs([one.along_row - first.along_row, one.along_column - first.along_column])
        if turned.max() > _DIRECTION:
            raise DataError(
                f"{name}: slices differ in orientation ({first.path.name} and {one.path.name}); they are not one volume"
            )


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
    return [f"{count} slice(s) {words}" for words, count in counts.items()]
