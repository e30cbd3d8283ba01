"""``check_ct``: look before computing. Draws what would be cut (slice, point, box, contours), says what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lidc_xai.annotations import get_nodules, load_nodules
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path
from lidc_xai.imaging.crops.crop import crop_nodule
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.crops.resample import CropGrid, resample_mask
from lidc_xai.imaging.ct.dicom_index import is_medium
from lidc_xai.imaging.ct.reading import read_ct
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.mask_files import read_structures, referenced_series
from lidc_xai.imaging.planes import VIEWS, crop_plane
from lidc_xai.imaging.points import SYSTEMS, NamedPoint, read_points
from lidc_xai.imaging.pseudonym import shown_patient
from lidc_xai.imaging.structures import choose_nodules

WINDOW_HU = (-1350.0, 150.0)
_MOST_TARGETS = 12
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
_COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
_POINT, _BOX, _WARNING = "#ffd34d", "#4dd2ff", "#c0392b"
_PLATE = {"facecolor": "black", "edgecolor": "none", "pad": 1}


@dataclass
class Target:
    """One thing to look at: where (LPS mm, if it can be said), the crop around it, or why there is none.

    ``surroundings``: a wider crop around the same centre, to see the box in.
    """

    name: str
    centre_mm: NDArray[np.float64] | None = None
    crop: NoduleCrop | None = None
    surroundings: NoduleCrop | None = None
    problem: str = ""
    nodule: Nodule | None = None


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
    targets += [_target(ct, one.nodule_id, one, size_mm) for one in nodules]
    if not targets:
        middle = ct.stored_index_to_mm((np.array(ct.stored.shape[::-1]) - 1) / 2)
        targets = [_target(ct, "middle of the scan", middle, size_mm)]
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
    targets = [_target(ct, one.name, one.to_lps(ct), size_mm) for one in named]
    return targets + [Target(name, problem=reason) for name, reason in unusable]


def _from_mask(ct: CTVolume, mask: Path | str | None, roi: Sequence[str], size_mm: float) -> list[Target]:
    if mask is None:
        return []
    chosen, refused = choose_nodules(read_structures(mask, ct), roi)
    targets = [Target(name, problem=reason) for name, reason in refused]
    for drawn in chosen:
        target = _target(ct, drawn.name, drawn.centre_mm, size_mm)
        if target.surroundings is not None:
            shown = target.surroundings
            grid = CropGrid(shown.affine, shown.ct.shape)
            shown.reader_masks = resample_mask(drawn.grid, drawn.mask, drawn.box, grid)[np.newaxis]
        targets.append(target)
    return targets


def _target(ct: CTVolume, name: str, where: Nodule | NDArray[np.float64], size_mm: float) -> Target:
    """A nodule or a place (LPS mm), cut in the box and in a wider one; or why it cannot be cut."""
    nodule, centre = (where, None) if isinstance(where, Nodule) else (None, where)
    try:
        crop, wider = (crop_nodule(ct, where, size) for size in (size_mm, float(round(1.5 * size_mm))))
    except DataError as error:
        return Target(name, centre, problem=str(error), nodule=nodule)
    return Target(name, crop.centre_mm if centre is None else centre, crop, wider, nodule=nodule)


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


def draw_targets(ct: CTVolume, targets: Sequence[Target], lines: Sequence[str], size_mm: float, out: Path) -> None:
    """Draw one row per target into the PNG ``out``: whole slice with box, then axial, coronal, sagittal close-ups."""
    head = 0.25 + 0.17 * len(lines)
    height = 3.3 * len(targets) + head
    figure = Figure(figsize=(13.0, height), dpi=110)
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.12 / height, "\n".join(lines), va="top", fontsize=9, family="monospace")
    grid = figure.add_gridspec(
        len(targets), 4, top=1 - (head + 0.25) / height, bottom=0.1 / height, left=0.01, right=0.99, hspace=0.22
    )
    for row, target in enumerate(targets):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
        for axis in axes:
            axis.set_axis_off()
        _draw_slice(axes[0], ct, target, size_mm)
        _draw_planes(axes[1:], target, size_mm)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png")


def _draw_slice(axis: Any, ct: CTVolume, target: Target, size_mm: float) -> None:
    """The stored slice nearest to the target, whole."""
    k = _slice_of(ct, target)
    image = ct.stored[k]
    aspect = ct.spacing_mm[1] / ct.spacing_mm[2]
    axis.imshow(image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=aspect, interpolation="nearest")
    axis.set_title(f"{target.name}: slice {k} of {len(ct.stored)}, z {ct.slice_z_mm[k]:.1f} mm", fontsize=9, loc="left")
    _mark_sides(axis, ct.affine[:3, 0], ct.affine[:3, 1])
    if target.centre_mm is not None and not target.problem:
        i, j, _ = ct.to_stored_index(target.centre_mm)
        width, height = size_mm / ct.spacing_mm[2], size_mm / ct.spacing_mm[1]
        axis.add_patch(Rectangle((i - width / 2, j - height / 2), width, height, fill=False, edgecolor=_BOX, lw=1.2))
        axis.plot(i, j, "+", color=_POINT, markersize=8)
    if target.problem and target.nodule is not None:
        for number, reading in enumerate(target.nodule.readers):
            for contour in reading.contours:
                if abs(contour.z_mm - ct.slice_z_mm[k]) < 1e-3:
                    closed = np.concatenate([contour.ij, contour.ij[:1]])
                    axis.plot(*closed.T, lw=0.8, color=_COLOURS[number % len(_COLOURS)])


def _draw_planes(axes: Sequence[Any], target: Target, size_mm: float) -> None:
    crop = target.surroundings
    if crop is None:
        axes[0].text(
            0, 0.5, fill(target.problem, 60), transform=axes[0].transAxes, color=_WARNING, fontsize=9, va="center"
        )
        return
    for axis, view in zip(axes, VIEWS, strict=True):
        plane = crop_plane(crop, view)
        # Coronal and sagittal with the head up, as radiologists look at them.
        origin = "upper" if view == "axial" else "lower"
        axis.imshow(plane.image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], origin=origin)
        rows, columns = plane.image.shape
        axis.plot((columns - 1) / 2, (rows - 1) / 2, "+", color=_POINT, markersize=8)
        width, height = size_mm / plane.spacing_mm[1], size_mm / plane.spacing_mm[0]
        corner = ((columns - 1 - width) / 2, (rows - 1 - height) / 2)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_BOX, lw=1.0))
        for number in range(0 if crop.reader_masks is None else len(crop.reader_masks)):
            outline = crop_plane(crop, view, of=number).image
            if outline.any() and not outline.all():
                axis.contour(outline, [0.5], colors=[_COLOURS[number % len(_COLOURS)]], linewidths=1.0)
        axis.set_title(f"{view}, {columns * plane.spacing_mm[1]:g} mm", fontsize=9)
        down = plane.affine[:3, 1] if origin == "upper" else -plane.affine[:3, 1]
        _mark_sides(axis, plane.affine[:3, 0], down)


def _slice_of(ct: CTVolume, target: Target) -> int:
    if target.nodule is not None and target.problem:
        zs = [contour.z_mm for reading in target.nodule.readers for contour in reading.contours]
        return int(np.abs(ct.slice_z_mm[:, None] - np.array(zs)[None]).min(axis=1).argmin())
    if target.centre_mm is None:
        return len(ct.stored) // 2
    k = float(ct.to_stored_index(target.centre_mm)[2])
    return int(np.clip(round(k), 0, len(ct.stored) - 1))


def _mark_sides(axis: Any, right: NDArray[np.float64], down: NDArray[np.float64]) -> None:
    """Letters of the patient's sides (R, L, A, P, F, H) at the right and the lower edge of an image."""
    for direction, (x, y) in ((right, (0.97, 0.5)), (down, (0.5, 0.03))):
        world = int(np.abs(direction).argmax())
        letter = _LETTERS[world][int(direction[world] > 0)]
        axis.text(
            x, y, letter, transform=axis.transAxes, color="white", fontsize=8, ha="center", va="center", bbox=_PLATE
        )
