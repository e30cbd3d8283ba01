"""The picture of ``check_ct``: per target the stored slice with the box in it, and three planes with the outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lidc_xai.files import atomic_path
from lidc_xai.imaging.check.target import Target
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.planes import VIEWS, crop_plane

WINDOW_HU = (-1350.0, 150.0)
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
_COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
_POINT, _BOX, _WARNING = "#ffd34d", "#4dd2ff", "#c0392b"


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
            0, 0.5, _wrap(target.problem), transform=axes[0].transAxes, color=_WARNING, fontsize=9, va="center"
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
            x,
            y,
            letter,
            transform=axis.transAxes,
            color="white",
            fontsize=8,
            ha="center",
            va="center",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1},
        )


def _wrap(text: str, width: int = 60) -> str:
    from textwrap import fill

    return fill(text, width)
