"""Maps, masks, ratings and predictions as DICOM objects beside their source series."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydicom import Dataset

from lidc_xai.errors import DataError
from lidc_xai.files import atomic_path
from lidc_xai.imaging.crops.contours import consensus_mask
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.progress import track
from lidc_xai.reporting.dicom.objects import Source, parametric_map, segmentation, structured_report
from lidc_xai.reporting.map_grid import map_on_grid
from lidc_xai.reporting.parts import MapsByMethod, ReportParts
from lidc_xai.reporting.scans import Scans, box_corners, slices_near, stored_points
from lidc_xai.reporting.volume_files import ExportResult
from lidc_xai.skipped import Skipped, write_skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore


def export_dicom(
    store: CropStore,
    out: Path | str,
    dicom: Path | str,
    maps: MapsByMethod | None = None,
    predictions: pd.DataFrame | None = None,
    nodule_ids: Sequence[str] | None = None,
    model_name: str = "nodule model",
) -> ExportResult:
    """Write ``out/<nodule_id>/``: ``seg.dcm`` (readers and consensus), ``map_<method>_<output>.dcm``, ``sr.dcm``.

    ``dicom``: the folder with the source series; every object is in its study and frame of reference and refers to its
    slices. Maps lie on the slices' own pixels over the crop's box, NaN where nothing was evaluated. A nodule whose
    series is not there (or not one file per slice), or that has no contours for a segmentation, is named in
    ``skipped.csv``.
    """
    scans = Scans(dicom)
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    parts = ReportParts(predictions, maps or {})
    result = ExportResult()
    for nodule_id in track(ids, "export", len(ids)):
        try:
            with warnings.catch_warnings():  # pseudonyms of LIDC are names of one component
                warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name")
                objects = _objects(store, nodule_id, scans, parts, model_name)
            result.paths.extend(_write(objects, Path(out) / nodule_id))
        except DataError as error:
            result.skipped.append(Skipped(nodule_id, "export", str(error)))
            continue
        if "seg" not in objects:
            result.skipped.append(Skipped(nodule_id, "segmentation", "no reader marked a pixel: no SEG and no SR"))
    write_skipped(out, result.skipped)
    return result


def _objects(store: CropStore, nodule_id: str, scans: Scans, parts: ReportParts, model_name: str) -> dict[str, Dataset]:
    crop, row = store.load(nodule_id), store.row(nodule_id)
    volume = scans.volume(crop.series_uid)
    slices = scans.slices(crop.series_uid)
    simulated = bool(row["simulated"])
    near, (rows, columns) = slices_near(crop, volume), _pixels_near(crop, volume)
    source = Source(slices[near], nodule_id, simulated)
    points = stored_points(volume, near, rows, columns)
    found: dict[str, Dataset] = {}
    for method, item in parts.maps_of(nodule_id).items():
        for output in item.output_names:
            values, _ = map_on_grid(item, output, crop.ct.shape, crop.affine, points, volume.affine[:3, :3])
            found[f"map_{method}_{output}"] = parametric_map(
                source, method, output, values, (rows.start, columns.start)
            )
    masks, where, exact = scans.masks(store, nodule_id)
    if masks.any():
        source = Source(slices[where], nodule_id, simulated)
        consensus = consensus_mask(masks)
        seg = segmentation(source, masks, consensus, exact)
        votes = store.votes[store.votes["nodule_id"] == nodule_id].sort_values("reader")
        rated = [{str(key): value for key, value in vote.items()} for vote in votes.to_dict("records")]
        volumes = [float(mask.sum() * volume.voxel_mm3) for mask in (*masks, consensus)]
        found["seg"] = seg
        found["sr"] = structured_report(
            source, seg, volumes, rated[: len(masks)], parts.prediction(nodule_id), model_name
        )
    return found


def _pixels_near(crop: NoduleCrop, volume: CTVolume) -> tuple[slice, slice]:
    """Rows and columns of the stored pixels that touch the crop's box."""
    index = volume.to_stored_index(box_corners(crop))[:, :2]
    last = np.array(volume.stored.shape[:0:-1]) - 1
    low = np.clip(np.floor(index.min(axis=0) + 0.5).astype(int), 0, last)
    high = np.clip(np.floor(index.max(axis=0) + 0.5).astype(int), 0, last)
    return slice(int(low[1]), int(high[1]) + 1), slice(int(low[0]), int(high[0]) + 1)


def _write(objects: Mapping[str, Any], folder: Path) -> list[Path]:
    paths = []
    for name, dataset in objects.items():
        path = folder / f"{name}.dcm"
        with atomic_path(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
        paths.append(path)
    return paths
