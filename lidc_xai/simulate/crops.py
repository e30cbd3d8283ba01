"""A crop simulated directly (the same anatomy, nodule, blur and noise as in a series, but only the box around it), and
a store of such crops: written in parallel, continued after an interruption.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.annotations.tables import nodule_row, nodule_votes
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.contours import GridBox, consensus_mask
from lidc_xai.imaging.crops.crop import CropOptions, consensus_centre, native_masks
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.progress import track
from lidc_xai.simulate.grid import IMAGE_PIXELS, Grid
from lidc_xai.simulate.nodule.expression import independent_ratings, with_ratings
from lidc_xai.simulate.nodule.lesion import Drawn
from lidc_xai.simulate.nodule.outline import Outline, nodule_outline, slice_step
from lidc_xai.simulate.series import as_volume, make_scene, render, whole_slices

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

    The box is rendered on the scan's own pixels and slices and is cropped by the code of
    :func:`~lidc_xai.imaging.crops.crop.crop_nodule`. Options as in :func:`~lidc_xai.simulate.series.simulate_ct`; the
    result depends on ``seed`` and the nodule alone.

    >>> crop, causes = simulate_crop(nodule, seed=1)
    >>> crop.ct.shape, crop.consensus.any().item()
    ((32, 32, 32), True)
    """
    options = CropOptions(size_mm, spacing_mm)
    nodule = with_ratings(nodule, ratings or {})
    outline = nodule_outline(nodule)
    series = _empty_series(nodule, outline, size_mm)
    masks, box = native_masks(series, nodule)
    centre = consensus_centre(series, nodule, consensus_mask(masks), box)
    grid, box = _window(series, nodule, box, centre, size_mm)
    low, high = grid.corners_mm
    around = (low - AROUND_MM, high + AROUND_MM)
    scene = make_scene([nodule], [outline], seed, nodule.nodule_id, *around, without, switched_off)
    array, drawn = render(scene, grid)
    volume = as_volume(nodule, grid, array)
    crop = options.cut_marked(volume, masks, box, centre, nodule.nodule_id)
    return crop, _causes(drawn[nodule.nodule_id], grid, crop)


def _empty_series(nodule: Nodule, outline: Outline, size_mm: float) -> CTVolume:
    """The series without pixels, which take no memory: enough to find the masks and the middle."""
    grid = whole_slices(nodule, outline.z_mm[0] - size_mm / 2, outline.z_mm[-1] + size_mm / 2)
    return as_volume(nodule, grid, np.broadcast_to(np.float32(0), grid.shape))


def _window(
    series: CTVolume, nodule: Nodule, box: GridBox, centre: NDArray[np.float64], size_mm: float
) -> tuple[Grid, GridBox]:
    """The stored pixels and slices of the crop, with the neighbours that interpolation asks for, and ``box`` in them.

    All slices of ``box`` are there too, whatever the size of the crop.
    """
    spacing, half = nodule.pixel_spacing_mm, size_mm / 2
    z = series.slice_z_mm
    near = np.flatnonzero(np.abs(z - centre[2]) <= half + 2 * slice_step(nodule))
    first_k, last_k = min(int(near[0]), box.low[2]), max(int(near[-1]), box.high[2])
    ij = (centre[:2] - series.affine[:2, 3]) / spacing
    first = np.clip(np.floor(ij - half / spacing) - 2, 0, IMAGE_PIXELS - 1).astype(int)
    last = np.clip(np.ceil(ij + half / spacing) + 2, 0, IMAGE_PIXELS - 1).astype(int)
    first_slice = int(np.abs(np.unique(nodule.slice_positions_mm) - z[first_k]).argmin())
    columns, rows = (last - first + 1).tolist()
    grid = Grid(
        spacing, nodule.slice_thickness_mm, z[first_k : last_k + 1], first_slice, int(first[0]), int(first[1]),
        rows, columns,
    )  # fmt: skip
    shift = np.array([first[0], first[1], first_k])
    low, high = ((np.array(corner) - shift).tolist() for corner in (box.low, box.high))
    return grid, GridBox((low[0], low[1], low[2]), (high[0], high[1], high[2]))


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


def simulate_store(
    out: Path | str,
    nodules: Sequence[Nodule],
    seed: int = 0,
    size_mm: float = 32.0,
    *,
    spacing_mm: float = 1.0,
    jobs: int = 1,
    independent: bool = False,
    ratings: Mapping[str, Mapping[str, float]] | None = None,
    without: Collection[str] = (),
    switched_off: Collection[str] = (),
) -> CropStore:
    """A store with one simulated crop per nodule, its cause masks beside it, ``simulated`` set in the manifest.

    ``independent``: ratings drawn independently of each other (``independent_ratings``); ``ratings``: nodule_id ->
    rating -> value, set by hand; else the readers' own. A nodule's crop depends on ``seed`` and the nodule alone, so
    neither order nor ``jobs`` changes it. An unfinished store made with the same settings is continued.

    >>> simulated = simulate_store(folder / "simulated", [nodule])
    >>> simulated.nodule_ids, bool(simulated.manifest["simulated"].all())
    (['LIDC-IDRI-0475-s1-n0'], True)
    """
    if independent and ratings:
        raise UsageError("independent=True draws the ratings; leave out ratings, or the other way round")
    chosen: Mapping[str, Mapping[str, float]] = independent_ratings(nodules, seed) if independent else ratings or {}
    rule = {
        "kind": "simulated", "seed": seed, "independent": independent,
        "ratings": {nodule_id: dict(values) for nodule_id, values in (ratings or {}).items()},
        "without": sorted(without), "switched_off": sorted(switched_off),
    }  # fmt: skip
    writer = StoreWriter(out, size_mm=size_mm, spacing_mm=spacing_mm, rule=rule)
    options = {"size_mm": size_mm, "spacing_mm": spacing_mm, "without": without, "switched_off": switched_off}
    todo = [nodule for nodule in nodules if not writer.done(nodule.nodule_id)]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_write_one)(writer, nodule, seed, chosen.get(nodule.nodule_id, {}), options) for nodule in todo
    )
    for nodule_id, reason in track(work, "simulating crops", total=len(todo)):
        if reason:
            writer.skip(nodule_id, "simulate", reason)
    return writer.finish()


def _write_one(
    writer: StoreWriter, nodule: Nodule, seed: int, ratings: Mapping[str, float], options: dict[str, Any]
) -> tuple[str, str]:
    """Simulate and write one nodule; returns its id and, where it cannot be cropped, the reason."""
    try:
        crop, causes = simulate_crop(nodule, seed, ratings=ratings, **options)
    except DataError as error:
        return nodule.nodule_id, str(error)
    rated = with_ratings(nodule, ratings)
    row = {**nodule_row(rated), "hu_calibrated": True, "simulated": True}
    writer.write(crop, row, nodule_votes(rated), causes)
    return nodule.nodule_id, ""
