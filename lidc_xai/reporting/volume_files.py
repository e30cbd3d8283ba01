"""Maps, masks and CT as NIfTI or NRRD in the patient's coordinates, for 3D Slicer, ITK-SNAP and scripts.

A map file holds NaN where no plane was evaluated; ``…_evaluated`` counts the planes that cut each voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, write_json
from lidc_xai.imaging.crops.contours import consensus_mask
from lidc_xai.imaging.ct.formats.volume_file import to_image, write_image
from lidc_xai.progress import track
from lidc_xai.ratings import RESEARCH_USE_ONLY, SCALES
from lidc_xai.reporting.nodule.facts import UNITS
from lidc_xai.reporting.parts import MapsByMethod, ReportParts
from lidc_xai.reporting.scans import Scans, box_corners, grid_points
from lidc_xai.reporting.values import made_up
from lidc_xai.skipped import Skipped, write_skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps

FORMATS = ("nii.gz", "nrrd")
GRIDS = ("crop", "scanner")
_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Per view the index (0 = i, 1 = j, 2 = k) that is cut, and those of a plane's rows and columns."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote, and what it left out and why."""

    paths: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def export_nifti(
    store: CropStore,
    out: Path | str,
    maps: MapsByMethod | None = None,
    nodule_ids: Sequence[str] | None = None,
    grid: str = "crop",
    dicom: Path | str | None = None,
    formats: Sequence[str] = ("nii.gz",),
) -> ExportResult:
    """Write ``out/<nodule_id>/`` with ``<method>_<output>``, ``<method>_evaluated``, ``consensus``, ``reader_<n>``,
    ``ct`` and a description (``maps.json``). A mean over models also has ``<method>_<output>_standard_error`` and
    ``…_stable`` (1 where the sign is stable).

    ``grid``: "crop" (the crop's own isotropic grid) or "scanner" (the voxels of the scan under ``dicom``, over the
    crop's box, so that a file lies on the scan voxel for voxel). ``formats``: of ``nii.gz`` and ``nrrd``. A nodule
    whose scan is not there is left out and named.

    >>> len(export_nifti(store, folder / "nifti", nodule_ids=store.nodule_ids[:1]).paths) > 0
    True
    """
    if grid not in GRIDS:
        raise UsageError(f"grid {grid!r} is not known; choose one of {', '.join(GRIDS)}")
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        raise UsageError(f"format {', '.join(wrong) or 'missing'}: choose from {', '.join(FORMATS)}")
    if grid == "scanner" and dicom is None:
        raise UsageError("grid scanner needs the DICOM folder that the store was made from (--dicom)")
    scans = None if grid == "crop" else Scans(dicom or "")
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    parts = ReportParts(maps=maps or {})
    result = ExportResult()
    for nodule_id in track(ids, "export", len(ids)):
        folder = Path(out) / nodule_id
        try:
            result.paths.extend(_export_one(store, nodule_id, folder, parts.maps_of(nodule_id), scans, formats))
        except DataError as error:
            result.skipped.append(Skipped(nodule_id, "export", str(error)))
    write_skipped(out, result.skipped)
    return result


def _export_one(
    store: CropStore,
    nodule_id: str,
    folder: Path,
    maps: Mapping[str, NoduleMaps],
    scans: Scans | None,
    formats: Sequence[str],
) -> list[Path]:
    crop = store.load(nodule_id)
    row = store.row(nodule_id)
    mark = made_up(row)
    affine, volumes = crop.affine, {"ct": crop.ct, **_masks(crop)}
    if scans is not None:
        affine, volumes = _scanner_grid(store, nodule_id, crop, scans)
    points = grid_points(volumes["ct"].shape, affine)
    described: dict[str, Any] = {}
    for method, item in maps.items():
        for (end, layer), output in product(item.layers().items(), item.output_names):
            values, count = map_on_grid(layer, output, crop.ct.shape, crop.affine, points, affine[:3, :3])
            volumes[f"{method}_{output}{end}"] = values
            if not end:
                described[f"{method}_{output}"] = _description(item, output)
        volumes[f"{method}_evaluated"] = count
    paths = []
    words = (f"{mark}. " if mark else "") + RESEARCH_USE_ONLY
    for name, array in volumes.items():
        image = to_image(array, affine)
        image.SetMetaData("ITK_FileNotes", words[:79])
        for ending in formats:
            path = folder / f"{name}.{ending}"
            with atomic_path(path) as temporary:
                write_image(image, temporary)
            paths.append(path)
    known = {"note": words, "nodule_id": nodule_id, "simulated": bool(row["simulated"]), "edited": row["edited"]}
    write_json(folder / "maps.json", {**known, "maps": described})
    return [*paths, folder / "maps.json"]


def _masks(crop: NoduleCrop) -> dict[str, NDArray]:
    masks = {} if crop.consensus is None else {"consensus": crop.consensus}
    readers = [] if crop.reader_masks is None else list(crop.reader_masks)
    return masks | {f"reader_{number}": mask for number, mask in enumerate(readers, start=1)}


def _scanner_grid(
    store: CropStore, nodule_id: str, crop: NoduleCrop, scans: Scans
) -> tuple[NDArray, dict[str, NDArray]]:
    """The voxels of the scan that touch the crop's box: their affine, and CT and masks there."""
    volume = scans.volume(crop.series_uid)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        raise DataError(f"{nodule_id}: the scan's gantry is tilted, which NIfTI and NRRD cannot hold; use grid crop")
    inverse = np.linalg.inv(volume.affine)
    index = box_corners(crop) @ inverse[:3, :3].T + inverse[:3, 3]
    shape = np.array(volume.array.shape[::-1])
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int), 0, shape - 1)
    part = tuple(slice(start, stop + 1) for start, stop in zip(low[::-1], high[::-1], strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.affine[:3, :3] @ low + volume.affine[:3, 3]
    volumes: dict[str, NDArray] = {"ct": volume.array[part]}
    if volume.stored is volume.array:
        masks, where, _ = scans.masks(store, nodule_id)
        if len(masks):
            whole = np.zeros((len(masks), *volumes["ct"].shape), dtype=bool)
            first, last = max(where.start, part[0].start), min(where.stop, part[0].stop)
            inside = masks[:, first - where.start : last - where.start, part[1], part[2]]
            whole[:, first - part[0].start : last - part[0].start] = inside
            volumes["consensus"] = consensus_mask(whole)
            volumes |= {f"reader_{number}": mask for number, mask in enumerate(whole, start=1)}
    return affine, volumes


def _description(maps: NoduleMaps, output: str) -> dict[str, Any]:
    scale = SCALES[output]
    return {
        "method": maps.method,
        "engine": maps.engine,
        "options": maps.options,
        "unit": UNITS[output],
        "positive": scale.towards(1),
        "negative": scale.towards(-1),
        "not_evaluated": "NaN",
        "planes": [{"view": v, "index": int(i)} for v, i in zip(maps.views, maps.indices, strict=True)],
        "token_mm": list(maps.token_mm),
        "score": [float(value) for value in maps.values[:, maps.output_names.index(output)]],
        "repeatability": None if maps.repeatability is None else maps.repeatability.of(output),
    }


def map_on_grid(
    maps: NoduleMaps,
    output: str,
    crop_shape: tuple[int, int, int],
    crop_affine: NDArray,
    points_mm: NDArray,
    voxel_axes: NDArray,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scores of ``output`` at voxels, and how many evaluated planes cut each voxel.

    A voxel takes part in a plane where the plane cuts through it. There it has the score of the token it lies in
    (nearest neighbour: nothing is invented between tokens); where several planes cut it, their mean. Voxels that no
    plane cuts, or outside the crop, were never evaluated: NaN, not zero.

    ``crop_shape`` (z, y, x) and ``crop_affine`` ((i, j, k, 1) -> LPS mm): the crop that was explained. ``points_mm``
    (..., 3): the voxels' centres in LPS mm; ``voxel_axes`` (3, 3): columns are the voxel's edges in mm. Returns float32
    (...) with NaN where nothing was evaluated, and uint8 (...).
    """
    if output not in maps.output_names:
        raise UsageError(f"output {output!r} is not in the maps of {maps.nodule_id}: {', '.join(maps.output_names)}")
    column = maps.output_names.index(output)
    inverse = np.linalg.inv(crop_affine)
    index = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    index = np.round(index, 6)  # a centre that lies on a plane or an edge stays there whatever the rounding of mm
    reach = np.maximum(np.abs(inverse[:3, :3] @ voxel_axes).sum(axis=1), 1.0) / 2
    total = np.zeros(index.shape[:-1])
    count = np.zeros(index.shape[:-1], dtype=np.uint8)
    sizes = crop_shape[::-1]
    for place, (view, at) in enumerate(zip(maps.views, maps.indices, strict=True)):
        cut, rows, columns = _AXES[view]
        scores = maps.relevance[place, column]
        row = np.floor((index[..., rows] + 0.5) / sizes[rows] * scores.shape[0]).astype(int)
        col = np.floor((index[..., columns] + 0.5) / sizes[columns] * scores.shape[1]).astype(int)
        distance = index[..., cut] - at
        there = (distance >= -reach[cut]) & (distance < reach[cut])
        there &= (row >= 0) & (row < scores.shape[0]) & (col >= 0) & (col < scores.shape[1])
        total[there] += scores[row[there], col[there]]
        count[there] += 1
    with np.errstate(invalid="ignore"):
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return values.astype(np.float32), count
