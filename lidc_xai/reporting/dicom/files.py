"""Maps, masks, ratings and predictions as DICOM objects beside their source series."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
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
from lidc_xai.reporting.dicom.objects import (
    Session,
    Source,
    Sphere,
    key_image,
    model_session,
    parametric_map,
    reader_sessions,
    segmentation,
    structured_report,
)
from lidc_xai.reporting.parts import MapsByMethod, ReportParts, origin_of
from lidc_xai.reporting.scans import Scans, box_corners, slices_near, stored_points
from lidc_xai.reporting.values import made_up, number
from lidc_xai.reporting.volume_files import ExportResult, map_on_grid
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
    """Write ``out/<nodule_id>/``: ``seg.dcm`` (readers and consensus, or the given outline),
    ``map_<method>_<output>.dcm`` (of a mean over models also ``…_standard_error`` and ``…_stable``), ``sr.dcm`` and
    ``key.dcm``.

    ``dicom``: the folder with the source series; every object is in its study and frame of reference and refers to its
    slices. Maps lie on the slices' own pixels over the crop's box, NaN where nothing was evaluated. A nodule without
    an outline has its predictions at a sphere of the predicted diameter; ``key.dcm`` names the slice to open, where
    there are predictions. An object that the series lacks something for, and a nodule whose series is not there (or
    not one file per slice), is named in ``skipped.csv``.

    >>> prepared = prepare_dicom(dicom, folder / "prepared")
    >>> len(export_dicom(CropStore(folder / "prepared"), folder / "out", dicom).paths) > 0
    True
    """
    scans = Scans(dicom)
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    parts = ReportParts(predictions, maps or {})
    result = ExportResult()
    for nodule_id in track(ids, "export", len(ids)):
        try:
            with warnings.catch_warnings():  # pseudonyms of LIDC are names of one component
                warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name")
                objects, lost = _objects(store, nodule_id, scans, parts, model_name)
            result.paths.extend(_write(objects, Path(out) / nodule_id))
            result.skipped.extend(Skipped(nodule_id, name, reason) for name, reason in lost.items())
        except DataError as error:
            result.skipped.append(Skipped(nodule_id, "export", str(error)))
    write_skipped(out, result.skipped)
    return result


def _objects(
    store: CropStore, nodule_id: str, scans: Scans, parts: ReportParts, model_name: str
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """A nodule's objects by name, and those that cannot be made with the reason."""
    crop, row = store.load(nodule_id), store.row(nodule_id)
    volume = scans.volume(crop.series_uid)
    slices = [completed(one, volume.spacing_mm[0]) for one in scans.slices(crop.series_uid)]
    mark, foreign = made_up(row), origin_of(store) == "own"
    near, (rows, columns) = slices_near(crop, volume), _pixels_near(crop, volume)
    source = Source(slices[near], nodule_id, mark)
    points = stored_points(volume, near, rows, columns)
    making = _Making()
    for method, item in parts.maps_of(nodule_id).items():
        for (end, layer), output in product(item.layers().items(), item.output_names):
            values, _ = map_on_grid(layer, output, crop.ct.shape, crop.affine, points, volume.affine[:3, :3])
            first = (rows.start, columns.start)
            making.add(
                f"map_{method}_{output}{end}", partial(parametric_map, source, method, output, values, first, end)
            )
    prediction = parts.prediction(nodule_id)
    masks, where, exact = scans.masks(store, nodule_id)
    if masks.any():
        source = Source(slices[where], nodule_id, mark)
        consensus = consensus_mask(masks)
        masks = masks[:0] if foreign else masks
        seg = making.add("seg", lambda: segmentation(source, masks, consensus, exact))
        sessions = _sessions(store, nodule_id, len(masks), prediction, model_name)
        volumes = [float(mask.sum() * volume.voxel_mm3) for mask in (*masks, consensus)]
        if seg is not None and not sessions:
            sessions = [Session("Outline", [], [], 1)]
        if sessions:
            making.add("sr", lambda: structured_report(source, sessions, seg, volumes))
    elif prediction is not None:
        diameter = number(prediction, "diameter")
        x, y, z = crop.centre_mm.tolist()
        place = Sphere((x, y, z), None if diameter is None else diameter / 2)
        session = model_session(prediction, model_name, None)
        making.add("sr", lambda: structured_report(source, [session], place=place))
    else:
        making.lost["segmentation"] = "no outline and no prediction: no SEG and no SR"
    if prediction is None:
        return making.made, making.lost
    centre = int(np.clip(np.floor(volume.to_stored_index(crop.centre_mm[None])[0, 2] + 0.5), 0, len(slices) - 1))
    making.add("key", lambda: key_image(Source(slices, nodule_id, mark), centre))
    return making.made, making.lost


def _sessions(
    store: CropStore, nodule_id: str, readers: int, prediction: Mapping[str, Any] | None, model_name: str
) -> list[Session]:
    votes = store.votes[store.votes["nodule_id"] == nodule_id].sort_values("reader")
    rated = [{str(key): value for key, value in vote.items()} for vote in votes.to_dict("records")]
    sessions = reader_sessions(rated[:readers])
    if prediction is not None:
        sessions.append(model_session(prediction, model_name, readers + 1))
    return sessions


@dataclass
class _Making:
    """Objects of a nodule, each on its own: what a series lacks for one of them does not end the others."""

    made: dict[str, Dataset] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Any]) -> Any:
        """Make and keep one object; ``None`` where the series lacks what it needs."""
        try:
            self.made[name] = make()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.lost[name] = f"{name}.dcm cannot be made from this series: {str(error).splitlines()[0]}"
        return self.made.get(name)


_TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
"""Attributes that must be there and may be empty: de-identified series often lack them."""


def completed(header: Dataset, step_mm: float) -> Dataset:
    """A slice's header with what the objects copy from it: empty where it is allowed to be, the slices' own step."""
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, "")
    if not header.get("SliceThickness"):
        header.SliceThickness = f"{step_mm:.6g}"
    return header


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
