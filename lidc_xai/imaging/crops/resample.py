"""Sampling a CT and masks at the points of a crop, through physical coordinates.

A mask on the stored (anisotropic) grid becomes a mask on the crop's grid by its signed distance d in mm (positive
inside): d is sampled linearly at the crop's points, and the N points with the highest d are the new mask, with
N = round(stored volume / crop voxel volume). The surface is that of the signed distance; its level, zero up to a
fraction of a voxel, is the one that keeps the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lidc_xai.imaging.crops.contours import GridBox, place
from lidc_xai.imaging.ct.volume import CTVolume

ORDERS = {"linear": 1, "bspline": 3}
_SPLINE_REACH = 12
"""Voxels after which a cubic B-spline's prefilter has faded (to 1e-7)."""


@dataclass(frozen=True)
class CropGrid:
    """An isotropic grid: ``shape`` (z, y, x), ``affine`` (i, j, k, 1) -> LPS mm."""

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    def points(self, low: tuple[int, int, int] = (0, 0, 0), high: tuple[int, int, int] | None = None) -> NDArray:
        """(z, y, x, 3) LPS mm of the grid's points from index (i, j, k) ``low`` up to, without, ``high``."""
        last = self.shape[::-1] if high is None else high
        axes = [np.arange(start, stop, dtype=np.float64) for start, stop in zip(low, last, strict=True)]
        k, j, i = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        return np.stack([i, j, k], axis=-1) @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def sample_ct(
    ct: CTVolume, grid: CropGrid, interpolation: str, padding_hu: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """HU at the grid's points (z, y, x), and which of them lie outside the scan (set to ``padding_hu``).

    The scan ends half a voxel beyond its outermost voxel centres. Only the part under the grid is touched.
    """
    order = ORDERS[interpolation]
    index = ct.to_stored_index(grid.points())[..., ::-1]
    last = np.array(ct.stored.shape) - 1
    outside: NDArray[np.bool_] = np.any((index < -0.5) | (index > last + 0.5), axis=-1)
    index = np.clip(index, 0, last)
    reach = 1 if order == 1 else _SPLINE_REACH
    low = np.maximum(np.floor(index.min(axis=(0, 1, 2))).astype(int) - reach, 0)
    high = np.minimum(np.ceil(index.max(axis=(0, 1, 2))).astype(int) + reach, last)
    part = ct.stored[tuple(slice(start, stop + 1) for start, stop in zip(low, high, strict=True))]
    at = np.moveaxis(index - low, -1, 0)
    values: NDArray[np.float32] = ndimage.map_coordinates(part, at, order=order, mode="nearest", output=np.float32)
    values[outside] = padding_hu
    return values, outside


def resample_mask(ct: CTVolume, mask: NDArray[np.bool_], box: GridBox, grid: CropGrid) -> NDArray[np.bool_]:
    """``mask`` (z, y, x) over ``box`` of the stored grid as a mask of the same volume on the crop's grid.

    What lies outside the crop's grid is cut off; what remains is not changed by that.
    """
    result = np.zeros(grid.shape, dtype=bool)
    if not mask.any():
        return result
    # A rim of outside, so that a mask that fills its box has a surface.
    distance = _signed_distance(np.pad(mask, 1), ct.spacing_mm)
    start = np.array(box.low) - 1
    low, high = _reach(ct, grid, start, start + np.array(distance.shape[::-1]) - 1)
    index = ct.to_stored_index(grid.points(tuple(low), tuple(high))) - start
    at = np.moveaxis(index[..., ::-1], -1, 0)
    inside = ((at >= 0) & (at <= np.array(distance.shape)[:, None, None, None] - 1)).all(axis=0)
    depth = np.where(inside, ndimage.map_coordinates(distance, at, order=1, mode="nearest"), -np.inf)
    wanted = max(1, round(_stored_volume(ct, mask, box) / grid.voxel_mm3))
    # Highest first; equal distances in the order of the grid, so that the result does not depend on the machine.
    chosen = np.argsort(-depth, axis=None, kind="stable")[:wanted]
    whole = np.zeros(depth.shape, dtype=bool)
    whole.ravel()[chosen] = True
    return place(whole[np.newaxis], low, grid.shape)[0]


def _signed_distance(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """mm to the nearest voxel of the other kind: positive inside, negative outside, zero midway between centres."""
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return inside - outside


def _stored_volume(ct: CTVolume, mask: NDArray[np.bool_], box: GridBox) -> float:
    """mm3 of a mask on the stored grid, each slice as thick as half the way to both its neighbours."""
    step = ct.spacing_mm[0]
    steps = np.diff(ct.positions_mm, prepend=ct.positions_mm[0] - step, append=ct.positions_mm[-1] + step)
    thick = (steps[:-1] + steps[1:]) / 2 / step
    layers = np.arange(box.low[2], box.high[2] + 1)
    known = (layers >= 0) & (layers < len(thick))
    share = np.where(known, thick[np.clip(layers, 0, len(thick) - 1)], 1.0)
    return float(mask.sum(axis=(1, 2)) @ share * ct.voxel_mm3)


def _reach(ct: CTVolume, grid: CropGrid, first: NDArray, last: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Grid indices (from, up to) that cover a box of stored voxels, wherever it lies."""
    corners = np.array([[(first, last)[bit][axis] for axis, bit in enumerate(bits)] for bits in np.ndindex(2, 2, 2)])
    inverse = np.linalg.inv(grid.affine)
    index = ct.stored_index_to_mm(corners.astype(np.float64)) @ inverse[:3, :3].T + inverse[:3, 3]
    return np.floor(index.min(axis=0)).astype(np.int64), np.ceil(index.max(axis=0)).astype(np.int64) + 1
