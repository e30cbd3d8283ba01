"""The scans behind a store's nodules: for context around a crop, and for exports that refer to the source series."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.errors import DataError
from lidc_xai.imaging.crops.crop import crop_nodule, native_masks
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.ct.dicom_index import FolderIndex, SeriesFiles, indexed
from lidc_xai.imaging.ct.reading import read_series
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.prepare import plan_nodules

if TYPE_CHECKING:
    from lidc_xai.annotations.nodule import Nodule
    from lidc_xai.imaging.store.crop_store import CropStore

CONTEXT_MM = 72.0


class Scans:
    """CT series of a DICOM folder, DICOMDIR or zip, by SeriesInstanceUID. The scan that was read last stays in memory.

    A zip is unpacked into a temporary folder, which is there as long as this object is. Raises UsageError where
    ``folder`` is missing or holds no DICOM; ``volume`` and ``slices`` raise DataError for a series that is not there or
    cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._last: tuple[str, CTVolume] | None = None

    @cached_property
    def index(self) -> FolderIndex:
        """Which series lie there."""
        unpacked = ExitStack()
        index = unpacked.enter_context(indexed(self.folder))
        weakref.finalize(self, unpacked.close)
        return index

    @cached_property
    def nodules(self) -> dict[str, Nodule]:
        """Annotated nodules of these series, by id."""
        return {nodule.nodule_id: nodule for nodules in plan_nodules(self.index).nodules.values() for nodule in nodules}

    def volume(self, series_uid: str) -> CTVolume:
        """The CT of a series."""
        if self._last is None or self._last[0] != series_uid:
            self._last = None  # let the other scan go before this one is read
            self._last = (series_uid, read_series(self._files(series_uid)))
        return self._last[1]

    def slices(self, series_uid: str) -> list[pydicom.Dataset]:
        """Headers (no pixels) of the slices of ``volume(series_uid)``, in its order: ascending along the normal."""
        order = {uid: place for place, uid in enumerate(self.volume(series_uid).sop_instance_uids)}
        headers: dict[int, pydicom.Dataset] = {}
        for path in self._files(series_uid).paths:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            place = order.get(str(header.get("SOPInstanceUID", "")))
            if place is not None:
                headers.setdefault(place, header)
        if len(headers) != len(order) or any("NumberOfFrames" in header for header in headers.values()):
            raise DataError(f"{self.folder}: series {series_uid} is not one file per slice; objects cannot refer to it")
        return [headers[place] for place in range(len(headers))]

    def context(self, store: CropStore, nodule_id: str, size_mm: float = CONTEXT_MM) -> NoduleCrop | None:
        """A wider crop around a nodule with the store's consensus in it; ``None`` where its scan is not here."""
        series_uid = str(store.row(nodule_id)["series_uid"])
        if series_uid not in self.index.series:
            return None
        crop = store.load(nodule_id)
        wide = crop_nodule(self.volume(series_uid), crop.centre_mm, size_mm=size_mm, nodule_id=nodule_id)
        if crop.consensus is not None:
            wide.consensus = carried(crop.consensus, crop.affine, grid_points(wide.ct.shape, wide.affine))
        return wide

    def masks(self, store: CropStore, nodule_id: str) -> tuple[NDArray[np.bool_], slice, bool]:
        """Readers' masks (R, slices, rows, columns) on the stored pixels, of which slices, and whether exact.

        Exact: rasterised from the contours. Otherwise carried over from the crop, whose voxels are another grid.
        """
        volume = self.volume(str(store.row(nodule_id)["series_uid"]))
        nodule = self.nodules.get(nodule_id)
        if nodule is not None:
            try:
                masks, box = native_masks(volume, nodule)
            except DataError:  # the scan lacks slices of it, or was resampled: what the store holds is all there is
                pass
            else:
                (i, j, k), (i2, j2, k2) = box.low, box.high
                whole = np.zeros((*masks.shape[:2], *volume.stored.shape[1:]), dtype=bool)
                whole[:, :, j : j2 + 1, i : i2 + 1] = masks
                return whole, slice(k, k2 + 1), True
        crop = store.load(nodule_id)
        near = slices_near(crop, volume)
        if crop.reader_masks is None:
            return np.zeros((0, near.stop - near.start, *volume.stored.shape[1:]), dtype=bool), near, False
        points = stored_points(volume, near)
        return np.stack([carried(mask, crop.affine, points) for mask in crop.reader_masks]), near, False

    def _files(self, series_uid: str) -> SeriesFiles:
        files = self.index.ct.get(series_uid)
        if files is None:
            raise DataError(
                f"{self.folder}: has no CT series {series_uid}; give the folder that the store was made from"
            )
        return files


def slices_near(crop: NoduleCrop, volume: CTVolume) -> slice:
    """The stored slices whose thickness touches the crop's box."""
    index = volume.to_stored_index(box_corners(crop))[:, 2]
    last = len(volume.stored) - 1
    low, high = (int(np.clip(np.floor(edge + 0.5), 0, last)) for edge in (index.min(), index.max()))
    return slice(low, high + 1)


def box_corners(crop: NoduleCrop) -> NDArray[np.float64]:
    """The eight corners of the crop's box, LPS mm (8, 3)."""
    sides = [(-0.5, count - 0.5) for count in crop.ct.shape[::-1]]
    index = np.array(np.meshgrid(*sides)).reshape(3, -1).T
    return np.asarray(index @ crop.affine[:3, :3].T + crop.affine[:3, 3])


def stored_points(
    volume: CTVolume, slices: slice, rows: slice | None = None, columns: slice | None = None
) -> NDArray[np.float64]:
    """LPS mm (slices, rows, columns, 3) of stored pixels of a scan."""
    sides = [slices, rows or slice(0, volume.stored.shape[1]), columns or slice(0, volume.stored.shape[2])]
    k, j, i = np.meshgrid(*(np.arange(side.start, side.stop) for side in sides), indexing="ij")
    return volume.stored_index_to_mm(np.stack([i, j, k], axis=-1).astype(np.float64))


def carried(mask: NDArray, affine: NDArray, points_mm: NDArray) -> NDArray[np.bool_]:
    """Value of the nearest voxel of ``mask`` (z, y, x; ``affine``) at points (..., 3); False outside it."""
    inverse = np.linalg.inv(affine)
    index = (points_mm @ inverse[:3, :3].T + inverse[:3, 3])[..., ::-1]
    at = np.moveaxis(index, -1, 0)
    return map_coordinates(np.asarray(mask, np.uint8), at, order=0, mode="constant", cval=0).astype(bool)


def grid_points(shape: tuple[int, ...], affine: NDArray) -> NDArray[np.float64]:
    """LPS mm (z, y, x, 3) of the voxels of an array of ``shape`` whose ``affine`` is (i, j, k, 1) -> LPS mm."""
    k, j, i = np.meshgrid(*(np.arange(count) for count in shape), indexing="ij")
    return np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
