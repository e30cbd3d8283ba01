"""A crop simulated directly: the same anatomy, nodule, blur and noise as in a series, but only the box around it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.imaging.contours import consensus_mask
from lidc_xai.imaging.crop import consensus_centre, crop_nodule, native_masks
from lidc_xai.imaging.nodule_crop import NoduleCrop
from lidc_xai.imaging.simulate.expression import with_ratings
from lidc_xai.imaging.simulate.grid import IMAGE_PIXELS, Grid
from lidc_xai.imaging.simulate.lesion import Drawn
from lidc_xai.imaging.simulate.outline import Outline, nodule_outline, slice_step
from lidc_xai.imaging.simulate.series import as_volume, make_scene, render
from lidc_xai.imaging.volume import CTVolume

AROUND_MM = 18.0
"""Vessels end up to this far outside the box, so that some run through it."""


def simulate_crop(
    nodule: Nodule,
    seed: int = 0,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    ratings: Mapping[str, float] | None = None,
    *,
    without: Collection[str] = (),
    switched_off: Collection[str] = (),
) -> tuple[NoduleCrop, dict[str, NDArray[np.bool_]]]:
    """One nodule in its simulated surroundings, cropped as a real one is, and by biomarker the voxels that carry it.

    The box is rendered on the scan's own pixels and slices and then goes through
    :func:`~lidc_xai.imaging.crop.crop_nodule`. Options as in :func:`~lidc_xai.imaging.simulate.series.simulate_ct`; the
    result depends on ``seed`` and the nodule alone.
    """
    nodule = with_ratings(nodule, ratings or {})
    outline = nodule_outline(nodule)
    volume, slices = _empty_series(nodule, outline, size_mm)
    masks, box = native_masks(volume, nodule)
    grid = _window(volume, nodule, consensus_centre(volume, nodule, consensus_mask(masks), box), size_mm, slices)
    low = np.array([grid.x_mm[0], grid.y_mm[0], grid.z_mm[0]]) - AROUND_MM
    high = np.array([grid.x_mm[-1], grid.y_mm[-1], grid.z_mm[-1]]) + AROUND_MM
    scene = make_scene([nodule], [outline], seed, nodule.nodule_id, low, high, without, switched_off)
    array, drawn = render(scene, grid)
    where = slice(grid.first_slice - slices[0], grid.first_slice - slices[0] + len(array))
    volume.stored[where, grid.j0 : grid.j0 + grid.rows, grid.i0 : grid.i0 + grid.columns] = array
    crop = crop_nodule(volume, nodule, size_mm=size_mm, spacing_mm=spacing_mm)
    return crop, _causes(drawn[nodule.nodule_id], grid, crop)


def _empty_series(nodule: Nodule, outline: Outline, size_mm: float) -> tuple[CTVolume, NDArray[np.intp]]:
    """The recorded slices around the nodule, whole but empty (pages that nobody writes take no memory)."""
    z = np.unique(nodule.slice_positions_mm)
    reach = size_mm / 2
    slices = np.flatnonzero((z >= outline.z_mm[0] - reach) & (z <= outline.z_mm[-1] + reach))
    grid = Grid(
        nodule.pixel_spacing_mm, nodule.slice_thickness_mm, z[slices], int(slices[0]), 0, 0, IMAGE_PIXELS, IMAGE_PIXELS
    )
    return as_volume(nodule, grid, np.zeros(grid.shape, np.float32)), slices


def _window(
    volume: CTVolume, nodule: Nodule, centre: NDArray[np.float64], size_mm: float, slices: NDArray[np.intp]
) -> Grid:
    """The stored pixels and slices of the box and the neighbours that interpolation asks for."""
    spacing = nodule.pixel_spacing_mm
    origin = -(IMAGE_PIXELS - 1) / 2 * spacing
    first = np.clip(np.floor((centre[:2] - size_mm / 2 - origin) / spacing) - 2, 0, IMAGE_PIXELS - 1).astype(int)
    last = np.clip(np.ceil((centre[:2] + size_mm / 2 - origin) / spacing) + 2, 0, IMAGE_PIXELS - 1).astype(int)
    near = np.flatnonzero(np.abs(volume.slice_z_mm - centre[2]) <= size_mm / 2 + 2 * slice_step(nodule))
    return Grid(
        spacing, nodule.slice_thickness_mm, volume.slice_z_mm[near], int(slices[near[0]]), int(first[0]), int(first[1]),
        int(last[1] - first[1]) + 1, int(last[0] - first[0]) + 1,
    )  # fmt: skip


def _causes(drawn: Drawn, grid: Grid, crop: NoduleCrop) -> dict[str, NDArray[np.bool_]]:
    """Cause masks on the crop's grid: interpolated between slices, so that thin spicules stay."""
    depth, height, width = crop.ct.shape
    steps = np.diag(crop.affine)[:3]
    x, y, z = (crop.affine[a, 3] + steps[a] * np.arange(n) for a, n in enumerate((width, height, depth)))
    k = np.interp(z, grid.z_mm, np.arange(len(grid.z_mm)), left=-1, right=-1)
    where = np.meshgrid(k, (y - grid.y0_mm) / grid.spacing_mm, (x - grid.x0_mm) / grid.spacing_mm, indexing="ij")
    causes = {}
    for name, mask in drawn.causes.items():
        whole = np.zeros(grid.shape, np.float32)
        whole[drawn.box] = mask
        causes[name] = map_coordinates(whole, where, order=1, mode="constant") > 0.4
    return {name: mask for name, mask in causes.items() if mask.any()}
