"""Masks that somebody else drew: DICOM SEG, RTSTRUCT, or a label volume (NIfTI, NRRD, MHD), each on its own grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from scipy import ndimage
from skimage.draw import polygon2mask

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.contours import GridBox
from lidc_xai.imaging.ct.formats.volume_file import VOLUME_SUFFIXES, is_volume_file
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.label_volumes import read_label_volume
from lidc_xai.imaging.names import path_safe

_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.7"
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True)
class NamedMask:
    """One drawn structure: ``mask`` (z, y, x) over ``box`` of the stored grid of ``grid`` (a volume without pixels)."""

    name: str
    mask: NDArray[np.bool_]
    box: GridBox
    grid: CTVolume

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """LPS mm (3,) of the middle of the bounding box."""
        return self.grid.stored_index_to_mm(np.array([self.box.low, self.box.high], dtype=np.float64)).mean(axis=0)

    @property
    def extent_mm(self) -> float:
        """Longest side of the bounding box in mm, its outer voxels included."""
        return float((np.array(self.mask.shape) * self.grid.spacing_mm).max())


def referenced_series(path: Path | str) -> str | None:
    """SeriesInstanceUID of the images that a SEG or RTSTRUCT was drawn on, where it says so."""
    path = Path(path)
    if is_volume_file(path) or not path.is_file():
        return None
    header = _dicom(path)
    for item in header.get("ReferencedSeriesSequence") or []:
        return str(item.SeriesInstanceUID)
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for item in study.get("RTReferencedSeriesSequence") or []:
                return str(item.SeriesInstanceUID)
    return None


def read_masks(path: Path | str, ct: CTVolume, components: bool = False) -> list[NamedMask]:
    """Every structure of a mask file: segments, regions of interest or label values above 0.

    ``components``: split each into its connected parts (26 neighbours), for files that mark all nodules alike.
    Raises UsageError for a missing file, DataError for one of another kind, a damaged or an empty one, and for one that
    was drawn on another series.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if is_volume_file(path):
        masks = _read_labels(path)
    else:
        header = _dicom(path)
        series = referenced_series(path)
        if series and ct.series_uid and series != ct.series_uid:
            raise DataError(f"{path}: was drawn on series {series}, this CT is series {ct.series_uid}")
        kind = str(header.get("SOPClassUID", ""))
        if kind in (_SEG, _LABELMAP_SEG):
            masks = _read_seg(path)
        elif kind == _RTSTRUCT:
            try:
                masks = _read_rtstruct(path, header, ct)
            except (AttributeError, TypeError, ValueError) as error:  # an attribute is missing or is no number
                raise DataError(f"{path}: RTSTRUCT cannot be read ({error})") from error
        else:
            raise DataError(f"{path}: is DICOM {header.get('Modality', 'of unknown kind')}, not SEG or RTSTRUCT")
    if components:
        masks = [part for one in masks for part in _parts(one)]
    if not masks:
        raise DataError(f"{path}: marks no voxel")
    return masks


def _dicom(path: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError as error:
        kinds = f"DICOM SEG, RTSTRUCT or a label volume ({', '.join(VOLUME_SUFFIXES)})"
        raise DataError(f"{path}: is no mask file; give {kinds}") from error
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise DataError(f"{path}: cannot be read as DICOM ({error})") from error


def _read_labels(path: Path) -> list[NamedMask]:
    structures, header = read_label_volume(path)
    return [_boxed(name, mask, header.affine, header.issues) for name, mask in structures if mask.any()]


def _read_seg(path: Path) -> list[NamedMask]:
    from highdicom.seg import segread  # takes seconds to import

    try:
        segmentation = segread(path)
        volume = segmentation.get_volume(rescale_fractional=True)
    except Exception as error:  # highdicom's checks raise many kinds
        raise DataError(f"{path}: SEG cannot be read as an evenly spaced volume ({error})") from error
    # highdicom's indices are (slice, row, column), ours (column, row, slice).
    affine = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    marked = np.asarray(volume.array) >= 0.5
    names = {
        number: segmentation.get_segment_description(number).segment_label for number in segmentation.segment_numbers
    }
    return [
        _boxed(f"segment{number}-{name}", marked[..., place], affine)
        for place, (number, name) in enumerate(names.items())
        if marked[..., place].any()
    ]


def _read_rtstruct(path: Path, header: pydicom.Dataset, ct: CTVolume) -> list[NamedMask]:
    """Regions of interest on the stored slices of ``ct``; several contours on one slice combine by exclusive or."""
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in header.get("StructureSetROISequence") or []}
    found = []
    for roi in header.get("ROIContourSequence") or []:
        number = int(roi.ReferencedROINumber)
        name = f"roi{number}-{names.get(number, '')}"
        polygons: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
        for contour in roi.get("ContourSequence") or []:
            if str(contour.get("ContourGeometricType", "")) != "CLOSED_PLANAR":
                continue
            index = ct.to_stored_index(np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3))
            k = index[:, 2].mean()
            if np.ptp(index[:, 2]) > 0.5 or not -0.5 <= k <= len(ct.stored) - 0.5:
                raise DataError(f"{path}: {name}: a contour does not lie on a slice of the CT (slice index {k:.2f})")
            polygons[round(k)].append(index[:, :2])
        if polygons:
            found.append(_rasterise(name, polygons, ct))
    return [one for one in found if one.mask.any()]


def _rasterise(name: str, polygons: dict[int, list[NDArray[np.float64]]], ct: CTVolume) -> NamedMask:
    points = np.concatenate([polygon for several in polygons.values() for polygon in several])
    low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
    box = GridBox((int(low[0]), int(low[1]), min(polygons)), (int(high[0]), int(high[1]), max(polygons)))
    mask = np.zeros(box.shape, dtype=bool)
    for k, several in polygons.items():
        for polygon in several:
            mask[k - box.low[2]] ^= polygon2mask(box.shape[1:], (polygon - low)[:, ::-1])
    return NamedMask(path_safe(name), mask, box, ct)


def _parts(whole: NamedMask) -> list[NamedMask]:
    labels, count = ndimage.label(whole.mask, structure=np.ones((3, 3, 3)))
    return [
        _cut(f"{whole.name}-{number}", labels == number, whole.box.low, whole.grid) for number in range(1, count + 1)
    ]


def _boxed(name: str, mask: NDArray[np.bool_], affine: NDArray[np.float64], issues: Sequence[str] = ()) -> NamedMask:
    # Only the geometry of this volume is used; its array takes no memory.
    grid = CTVolume(array=np.broadcast_to(np.float32(0), mask.shape), affine=affine, issues=list(issues))
    return _cut(path_safe(name), mask, (0, 0, 0), grid)


def _cut(name: str, mask: NDArray[np.bool_], start: tuple[int, int, int], grid: CTVolume) -> NamedMask:
    """The part of ``mask`` around its marked voxels; ``start``: (i, j, k) of its first voxel."""
    part = ndimage.find_objects(mask.astype(np.uint8))[0]
    low = tuple(int(one.start) + first for one, first in zip(part[::-1], start, strict=True))
    high = tuple(int(one.stop) - 1 + first for one, first in zip(part[::-1], start, strict=True))
    return NamedMask(name, mask[part], GridBox(low, high), grid)  # type: ignore[arg-type]
