"""A nodule's shape from its readers' contours: mean over readers of the signed distance to each outline.

Between two slices the distance is interpolated; beyond the last slice of a reader the shape closes half a slice on.
LIDC contours run through the first pixels outside, so their own pixels do not belong to the nodule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from lidc_xai.annotations.nodule import Nodule, Reading
from lidc_xai.imaging.crops.contours import fill_outline
from lidc_xai.simulate.grid import IMAGE_PIXELS, Floats, Grid

FAR_MM = 12.0
"""Distances outside are known up to here."""


@dataclass(frozen=True, eq=False)
class Outline:
    """Signed distances (mm, negative inside) on a small window of stored pixels, one plane per slice position.

    ``z_mm`` (n,) ascending: the slices that a reader marked and one beyond each end. ``planes`` (n, rows, columns):
    distances inside each plane. ``slopes``: their change per mm of z, the same shape. ``i0``, ``j0``: first column and
    row of the window. ``centre_mm`` (3,): middle of the body, ``radius_mm``: depth of its deepest point.
    """

    spacing_mm: float
    z_mm: NDArray[np.float64]
    planes: NDArray[np.float32]
    slopes: NDArray[np.float32]
    i0: int
    j0: int
    centre_mm: NDArray[np.float64]
    radius_mm: float

    def distance(self, grid: Grid, z: Floats) -> NDArray[np.float32]:
        """(len(z), rows, columns) signed distance on the pixels of ``grid`` (same stored pixels) at heights ``z``.

        The surface is where the interpolated distance of the planes is zero; near the poles, where that changes fast
        along z, it is divided by its slope, so that mm are mm there too.
        """
        at = np.clip(np.interp(z, self.z_mm, np.arange(len(self.z_mm))), 0, len(self.z_mm) - 1)
        lower = np.minimum(at.astype(int), len(self.z_mm) - 2)
        t = (at - lower).astype(np.float32)[:, None, None]
        inside, slope = (
            (1 - t) * window[lower] + t * window[lower + 1]
            for window in map(self._window(grid), (self.planes, self.slopes))
        )
        beyond = np.maximum(np.maximum(self.z_mm[0] - z, z - self.z_mm[-1]), 0).astype(np.float32)
        return inside / np.sqrt(1 + slope**2) + beyond[:, None, None]

    def _window(self, grid: Grid) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """How planes are put on the rows and columns of ``grid``: edge values continue outside the window."""
        rows = np.clip(np.arange(grid.rows) + grid.j0 - self.j0, 0, self.planes.shape[1] - 1)
        columns = np.clip(np.arange(grid.columns) + grid.i0 - self.i0, 0, self.planes.shape[2] - 1)
        return lambda planes: planes[:, rows][:, :, columns]

    @property
    def low(self) -> NDArray[np.float64]:
        """Lower corner (x, y, z in mm) of the box around the inside."""
        return self._corner(0)

    @property
    def high(self) -> NDArray[np.float64]:
        """Upper corner of the box around the inside."""
        return self._corner(-1)

    def _corner(self, which: int) -> NDArray[np.float64]:
        inside = self.planes < 0
        origin = -(IMAGE_PIXELS - 1) / 2 * self.spacing_mm
        k, j, i = (np.flatnonzero(inside.any(axis=axes))[which] for axes in ((1, 2), (0, 2), (0, 1)))
        return np.array(
            [origin + (self.i0 + i) * self.spacing_mm, origin + (self.j0 + j) * self.spacing_mm, self.z_mm[k]]
        )


def nodule_outline(nodule: Nodule) -> Outline:
    """The shape of ``nodule`` on its own pixel grid."""
    spacing = nodule.pixel_spacing_mm
    points = np.concatenate([contour.ij for reading in nodule.readers for contour in reading.contours])
    margin = int(np.ceil(FAR_MM / spacing)) + 2
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin + 1
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    z_mm = _heights(nodule)
    masks = [_reader_mask(reading, z_mm, low, shape) for reading in nodule.readers]
    planes = np.mean([_signed_planes(mask, spacing) for mask in masks], axis=0)
    planes = gaussian_filter(planes, (0, 0.6, 0.6)).astype(np.float32)
    # where the readers disagree, the zero level would be too small: keep their median volume instead
    voxels = max(int(np.median([mask.sum() for mask in masks])), 4)
    planes -= np.partition(planes, voxels, axis=None)[voxels]
    depth = np.maximum(-planes, 0)
    origin = -(IMAGE_PIXELS - 1) / 2 * spacing
    k, j, i = (np.average(np.arange(n), weights=depth.sum(axis=axes))
               for n, axes in zip(depth.shape, ((1, 2), (0, 2), (0, 1)), strict=True))  # fmt: skip
    z = np.interp(k, np.arange(len(z_mm)), z_mm)
    centre = np.array([origin + (low[0] + i) * spacing, origin + (low[1] + j) * spacing, z])
    slopes = np.gradient(planes, z_mm, axis=0).astype(np.float32)
    return Outline(spacing, z_mm, planes, slopes, int(low[0]), int(low[1]), centre, float(depth.max()))


def _heights(nodule: Nodule) -> NDArray[np.float64]:
    """Slice positions that any reader marked and those between, with one beyond each end."""
    marked = [contour.z_mm for reading in nodule.readers for contour in reading.contours]
    known = np.unique(nodule.slice_positions_mm)
    inside = np.unique(np.concatenate([known[(known >= min(marked) - 1e-3) & (known <= max(marked) + 1e-3)], marked]))
    inside = inside[np.append(True, np.diff(inside) > 1e-3)]
    step = slice_step(nodule)
    return np.concatenate([[inside[0] - step], inside, [inside[-1] + step]])


def slice_step(nodule: Nodule) -> float:
    """Median distance between the slices of the nodule's scan in mm."""
    steps = np.diff(np.unique(nodule.slice_positions_mm))
    return float(np.median(steps)) if len(steps) else nodule.slice_thickness_mm


def _reader_mask(
    reading: Reading, z_mm: NDArray[np.float64], low: NDArray, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """(n, rows, columns) pixels inside one reader's outlines; holes are cut last."""
    mask = np.zeros((len(z_mm), *shape), bool)
    for contour in sorted(reading.contours, key=lambda c: not c.inclusion):
        layer = mask[int(np.abs(z_mm - contour.z_mm).argmin())]
        filled = _filled(contour.ij - low, shape)
        if contour.inclusion:
            layer |= filled
        else:
            layer &= ~filled
    return mask


def _signed_planes(mask: NDArray[np.bool_], spacing: float) -> NDArray[np.float32]:
    """Signed distance (mm) in each plane; planes without outline close the shape half-way to the next drawn one."""
    planes = np.full(mask.shape, FAR_MM, np.float32)
    drawn = np.flatnonzero(mask.any(axis=(1, 2)))
    for k in drawn:
        outside, inside = distance_transform_edt(~mask[k]), distance_transform_edt(mask[k])
        planes[k] = (np.where(mask[k], 0.5 - inside, outside - 0.5) * spacing).clip(None, FAR_MM)
    if not len(drawn):
        return planes
    for k in np.setdiff1d(np.arange(len(mask)), drawn):
        last = drawn[np.abs(drawn - k).argmin()]
        planes[k] = np.minimum(planes[last] - 2 * planes[last].min() + abs(k - last) - 1, FAR_MM)
    return planes


def _filled(ij: NDArray, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels inside a closed outline, its own pixels left out; of a thin outline its own pixels are all there is."""
    low, high = ij.min(axis=0), ij.max(axis=0) + 1
    inside, edge = fill_outline(ij, (int(low[0]), int(low[1])), (int(high[1] - low[1]), int(high[0] - low[0])))
    mask = np.zeros(shape, bool)
    mask[low[1] : high[1], low[0] : high[0]] = inside if inside.any() else edge
    return mask
