"""``check_ct``: look before computing. Draws what would be cut (slice, point, box, contours), says what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations import get_nodules, load_nodules
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.check.target import Target
from lidc_xai.imaging.crops.crop import crop_nodule
from lidc_xai.imaging.crops.resample import CropGrid, resample_mask
from lidc_xai.imaging.ct.media import is_medium
from lidc_xai.imaging.ct.reading import read_ct
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.mask_files import read_structures, referenced_series
from lidc_xai.imaging.points import SYSTEMS, NamedPoint, read_points
from lidc_xai.imaging.pseudonym import shown_patient
from lidc_xai.imaging.structures import choose_nodules

_MOST_TARGETS = 12


@dataclass
class CheckResult:
    """``picture``: the PNG. ``lines``: what was found, in words. ``problems``: what could not be cut and why."""

    picture: Path
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_ct(
    path: Path | str,
    point: Sequence[float] | None = None,
    nodule: str | Nodule | None = None,
    out: Path | str = "check.png",
    *,
    points: Path | str | None = None,
    mask: Path | str | None = None,
    roi: Sequence[str] = (),
    system: str = "lps",
    series_uid: str | None = None,
    size_mm: float = 32.0,
) -> CheckResult:
    """Read a CT and draw, for every target, the slice with the box in it and three planes through its middle.

    Targets: ``point`` (three numbers in ``system``: "lps", "ras" or "voxel"), the points of a CSV file, the structures
    of a mask file (those that match ``roi``, names with * and ?), a LIDC nodule, or without any of these the nodules
    that LIDC's readers drew on this series (else the middle of the scan). Nothing is refused for a target that cannot
    be cut: the picture shows what there is, and ``problems`` says why. Raises what ``read_ct`` raises, and UsageError
    for an unknown system, nodule or name of a structure.

    >>> found = check_ct(dicom, nodule=nodule.nodule_id, out=folder / "check.png")
    >>> found.problems, found.picture.name
    ([], 'check.png')
    """
    ct = read_ct(path, series_uid or _series_of(path, nodule, mask))
    targets = [*_from_points(ct, point, points, system, size_mm), *_from_mask(ct, mask, roi, size_mm)]
    nodules = [_as_nodule(nodule)] if nodule is not None else []
    if not targets and not nodules:
        nodules = [one for one in load_nodules() if ct.series_uid and one.series_uid == ct.series_uid]
    targets += [_from_nodule(ct, one, size_mm) for one in nodules]
    if not targets:
        middle = ct.stored_index_to_mm((np.array(ct.stored.shape[::-1]) - 1) / 2)
        targets = [_around(ct, "middle of the scan", middle, size_mm)]
    from lidc_xai.imaging.check.picture import draw_targets  # matplotlib takes a second

    lines = describe(ct)
    draw_targets(ct, targets[:_MOST_TARGETS], lines, size_mm, Path(out))
    for target in targets:
        lines.append(f"{target.name}: {target.problem or _in_words(target)}")
    if len(targets) > _MOST_TARGETS:
        lines.append(f"the picture shows the first {_MOST_TARGETS} of {len(targets)}")
    return CheckResult(Path(out), lines, [target.problem for target in targets if target.problem])


def describe(ct: CTVolume) -> list[str]:
    """The CT in a few lines: identity, size, spacing, extent, issues."""
    slices, rows, columns = ct.stored.shape
    between_slices, between_rows, between_columns = ct.spacing_mm
    ends = ct.stored_index_to_mm(np.array([[0, 0, 0], [columns - 1, rows - 1, slices - 1]], dtype=np.float64))
    low, high = ends.min(axis=0), ends.max(axis=0)
    extent = ", ".join(f"{axis} {a:.1f} to {b:.1f}" for axis, a, b in zip("xyz", low, high, strict=True))
    identity = " ".join(
        word for word in (shown_patient(ct), f"series {ct.series_uid}" if ct.series_uid else "") if word
    )
    spacing = f"{between_columns:.3f} x {between_rows:.3f} x {between_slices:.3f} mm"
    return [
        f"{identity or ct.source}{' (SIMULATED)' if ct.simulated else ''}",
        f"{columns} columns x {rows} rows x {slices} slices, {spacing}",
        f"LPS mm: {extent}",
        *(f"found: {issue}" for issue in ct.issues),
    ]


def _series_of(path: Path | str, nodule: str | Nodule | None, mask: Path | str | None) -> str | None:
    """The series that the target itself names, where ``path`` may hold several."""
    if not is_medium(Path(path)):
        return None
    if nodule is not None:
        return _as_nodule(nodule).series_uid
    return referenced_series(mask) if mask is not None else None


def _as_nodule(nodule: str | Nodule) -> Nodule:
    return nodule if isinstance(nodule, Nodule) else get_nodules([nodule])[nodule]


def _from_points(
    ct: CTVolume, point: Sequence[float] | None, points: Path | str | None, system: str, size_mm: float
) -> list[Target]:
    if system not in SYSTEMS:
        raise UsageError(f"coordinate system {system!r} is not known; choose one of {', '.join(SYSTEMS)}")
    named: list[NamedPoint] = []
    unusable: list[tuple[str, str]] = []
    if point is not None:
        if len(point) != 3:
            raise UsageError(f"a point is three numbers x,y,z; got {len(point)}")
        named.append(NamedPoint("point", (float(point[0]), float(point[1]), float(point[2])), system))
    if points is not None:
        listed, unusable = read_points(points)
        named += listed
    targets = [_around(ct, one.name, one.to_lps(ct), size_mm) for one in named]
    return targets + [Target(name, problem=reason) for name, reason in unusable]


def _from_mask(ct: CTVolume, mask: Path | str | None, roi: Sequence[str], size_mm: float) -> list[Target]:
    if mask is None:
        return []
    chosen, refused = choose_nodules(read_structures(mask, ct), roi)
    targets = [Target(name, problem=reason) for name, reason in refused]
    for drawn in chosen:
        target = _around(ct, drawn.name, drawn.centre_mm, size_mm)
        if target.surroundings is not None:
            shown = target.surroundings
            grid = CropGrid(shown.affine, shown.ct.shape)
            shown.reader_masks = resample_mask(drawn.grid, drawn.mask, drawn.box, grid)[np.newaxis]
        targets.append(target)
    return targets


def _from_nodule(ct: CTVolume, nodule: Nodule, size_mm: float) -> Target:
    try:
        crop = crop_nodule(ct, nodule, size_mm)
        wider = crop_nodule(ct, nodule, _wider(size_mm))
    except DataError as error:
        return Target(nodule.nodule_id, problem=str(error), nodule=nodule)
    return Target(nodule.nodule_id, crop.centre_mm, crop, wider, nodule=nodule)


def _around(ct: CTVolume, name: str, centre_mm: NDArray[np.float64], size_mm: float) -> Target:
    try:
        return Target(name, centre_mm, crop_nodule(ct, centre_mm, size_mm), crop_nodule(ct, centre_mm, _wider(size_mm)))
    except DataError as error:
        return Target(name, centre_mm, problem=str(error))


def _wider(size_mm: float) -> float:
    return float(round(1.5 * size_mm))


def _in_words(target: Target) -> str:
    crop, shown = target.crop, target.surroundings
    if crop is None or shown is None or target.centre_mm is None:
        return "nothing to draw"
    x, y, z = target.centre_mm
    words = [f"centre x {x:.1f}, y {y:.1f}, z {z:.1f} mm (LPS), mean {crop.ct.mean():.0f} HU"]
    if shown.reader_masks is not None:
        words.append(f"{len(shown.reader_masks)} outline(s)")
    words += ["the box leaves the scan and is padded"] if crop.padded else []
    words += ["larger than the box"] if crop.larger_than_box else []
    return ", ".join(words)
