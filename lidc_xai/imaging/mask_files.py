"""Masks that somebody else drew: DICOM SEG, RTSTRUCT, or a label volume (NIfTI, NRRD, MHD), each on its own grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from scipy import ndimage
from skimage.draw import polygon2mask

from lidc_xai.dicom_stream import open_dicom
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import path_safe
from lidc_xai.imaging.crops.contours import GridBox
from lidc_xai.imaging.ct.formats.header import Segment, VolumeHeader, check_affine
from lidc_xai.imaging.ct.formats.volume_file import VOLUME_SUFFIXES, is_volume_file, read_header, read_volume
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.seg_files import read_seg

_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.7"
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_MOST_LABELS = 1000


@dataclass(frozen=True)
class NamedMask:
    """One drawn structure: ``mask`` (z, y, x) over ``box`` of the stored grid of ``grid`` (a volume without pixels)."""

    name: str
    mask: NDArray[np.bool_]
    box: GridBox
    grid: CTVolume
    label: str = ""
    """The structure's name as the file has it."""

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """LPS mm (3,) of the middle of the bounding box."""
        return self.grid.stored_index_to_mm(np.array([self.box.low, self.box.high], dtype=np.float64)).mean(axis=0)

    @property
    def extent_mm(self) -> float:
        """Longest side of the bounding box in mm, its outer voxels included."""
        return float((np.array(self.mask.shape) * self.grid.spacing_mm).max())


@dataclass(frozen=True)
class Structures:
    """What a mask file holds: structures, and (name, reason) for each that cannot be used."""

    masks: list[NamedMask]
    unusable: list[tuple[str, str]]


def referenced_series(path: Path | str) -> str | None:
    """SeriesInstanceUID of the images that a SEG or RTSTRUCT was drawn on, where it says so."""
    path = Path(path)
    if is_volume_file(path) or not path.is_file():
        return None
    header = _dicom(path)
    try:
        return _series_of(header)
    except Exception as error:  # pydicom converts a value when it is asked for
        raise DataError(f"{path}: cannot be read as DICOM ({error})") from error


def _series_of(header: pydicom.Dataset) -> str | None:
    for item in header.get("ReferencedSeriesSequence") or []:
        return str(item.SeriesInstanceUID)
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for item in study.get("RTReferencedSeriesSequence") or []:
                return str(item.SeriesInstanceUID)
    return None


def read_masks(path: Path | str, ct: CTVolume, components: bool = False) -> list[NamedMask]:
    """The structures of :func:`read_structures` that can be used; DataError where there is none."""
    structures = read_structures(path, ct, components)
    if not structures.masks:
        raise DataError(structures.unusable[0][1] if structures.unusable else f"{path}: marks no voxel")
    return structures.masks


def read_structures(path: Path | str, ct: CTVolume, components: bool = False) -> Structures:
    """Every structure of a mask file: segments, regions of interest or label values above 0.

    ``components``: split each into its connected parts (26 neighbours), for files that mark all nodules alike.
    A structure that cannot be used (empty, not on the CT's slices, damaged) costs the others nothing. Raises UsageError
    for a missing file, DataError for one of another kind, a damaged one, and one that was drawn on another series.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if is_volume_file(path):
        structures = _read_labels(path)
    else:
        with disable_value_validation():  # what is odd and no harm is not remarked on
            structures = _read_dicom(path, ct)
    if components:
        return Structures([part for one in structures.masks for part in _parts(one)], structures.unusable)
    return structures


def _read_dicom(path: Path, ct: CTVolume) -> Structures:
    header = _dicom(path)
    series = referenced_series(path)
    if series and ct.series_uid and series != ct.series_uid:
        raise DataError(f"{path}: was drawn on series {series}, this CT is series {ct.series_uid}")
    kind = str(header.get("SOPClassUID", ""))
    if kind in (_SEG, _LABELMAP_SEG):
        return _of_grids(read_seg(path))
    if kind == _RTSTRUCT:
        return _read_rtstruct(path, header, ct)
    raise DataError(f"{path}: is DICOM {header.get('Modality', 'of unknown kind')}, not SEG or RTSTRUCT")


def _dicom(path: Path) -> pydicom.Dataset:
    try:
        stream, _ = open_dicom(path)
        with stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
        for name in ("SOPClassUID", "Modality"):  # converted here, where a damaged one is met
            header.get(name)
        return header
    except DataError:
        raise
    except InvalidDicomError as error:
        kinds = f"DICOM SEG, RTSTRUCT or a label volume ({', '.join(VOLUME_SUFFIXES)})"
        raise DataError(f"{path}: is no mask file; give {kinds}") from error
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise DataError(f"{path}: cannot be read as DICOM ({error})") from error


def _read_labels(path: Path) -> Structures:
    structures, header = read_label_volume(path)
    return _of_grids(((name, label, mask, header.affine) for name, label, mask in structures), header.issues)


def _of_grids(
    structures: Iterable[tuple[str, str, NDArray[np.bool_], NDArray[np.float64]]], issues: Sequence[str] = ()
) -> Structures:
    """Structures (name, label, mask, affine), one whole mask in memory at a time; an empty one cannot be used."""
    usable = Structures([], [])
    for name, label, mask, affine in structures:
        if mask.any():
            usable.masks.append(_boxed(name, mask, affine, issues, label))
        else:
            usable.unusable.append((label, f"{label!r} marks no voxel"))
    return usable


def _read_rtstruct(path: Path, header: pydicom.Dataset, ct: CTVolume) -> Structures:
    """Regions of interest on the stored slices of ``ct``, each on its own."""
    names: dict[int, str] = {}
    structures = Structures([], [])
    try:
        for item in header.get("StructureSetROISequence") or []:
            names[int(item.ROINumber)] = str(item.get("ROIName", ""))
        rois = list(header.get("ROIContourSequence") or [])
    except Exception as error:  # pydicom converts values when they are asked for, and raises many kinds
        raise DataError(f"{path}: RTSTRUCT cannot be read ({error})") from error
    for place, roi in enumerate(rois, start=1):
        label = f"region {place}"
        try:
            number = int(roi.ReferencedROINumber)
            label = names.get(number) or f"roi{number}"
            structures.masks.append(_read_roi(f"roi{number}-{names.get(number, '')}", label, roi, ct))
        except Exception as error:  # the same; it concerns this region alone
            text = str(error) if isinstance(error, DataError) else f"cannot be read ({error})"
            structures.unusable.append((label, f"{path.name}: {label}: {text}"))
    return structures


def _read_roi(name: str, label: str, roi: pydicom.Dataset, ct: CTVolume) -> NamedMask:
    """One region; several contours on one slice combine by exclusive or. DataError where nothing can be drawn."""
    polygons: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    kinds = set()
    for contour in roi.get("ContourSequence") or []:
        kinds.add(str(contour.get("ContourGeometricType", "")))
        if str(contour.get("ContourGeometricType", "")) != "CLOSED_PLANAR":
            continue
        points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
        if not np.isfinite(points).all() or not len(points):
            raise DataError("a contour's points are no numbers")
        index = ct.to_stored_index(points)
        k = index[:, 2].mean()
        if np.ptp(index[:, 2]) > 0.5 or not -0.5 <= k <= len(ct.stored) - 0.5:
            raise DataError(f"a contour does not lie on a slice of the CT (slice index {k:.2f})")
        size = np.array(ct.stored.shape[:0:-1])
        if (index[:, :2] < -size / 2).any() or (index[:, :2] > size * 1.5).any():
            raise DataError(f"a contour reaches far beyond the CT (to pixel {np.abs(index[:, :2]).max():.0f})")
        polygons[round(k)].append(index[:, :2])
    if not polygons:
        raise DataError(f"has no closed contour ({', '.join(sorted(kinds)) or 'no contour at all'})")
    drawn = _rasterise(name, polygons, ct)
    if not drawn.mask.any():
        raise DataError("its contours enclose no pixel")
    return replace(drawn, label=label)


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
    parts = [
        _cut(f"{whole.name}-{number}", labels == number, whole.box.low, whole.grid) for number in range(1, count + 1)
    ]
    return [replace(part, label=whole.label) for part in parts]


def _boxed(
    name: str, mask: NDArray[np.bool_], affine: NDArray[np.float64], issues: Sequence[str], label: str
) -> NamedMask:
    # Only the geometry of this volume is used; its array takes no memory.
    grid = CTVolume(array=np.broadcast_to(np.float32(0), mask.shape), affine=affine, issues=list(issues))
    return replace(_cut(path_safe(name), mask, (0, 0, 0), grid), label=label)


def _cut(name: str, mask: NDArray[np.bool_], start: tuple[int, int, int], grid: CTVolume) -> NamedMask:
    """The part of ``mask`` around its marked voxels; ``start``: (i, j, k) of its first voxel."""
    part = ndimage.find_objects(mask.astype(np.uint8))[0]
    low = tuple(int(one.start) + first for one, first in zip(part[::-1], start, strict=True))
    high = tuple(int(one.stop) - 1 + first for one, first in zip(part[::-1], start, strict=True))
    return NamedMask(name, mask[part], GridBox(low, high), grid)  # type: ignore[arg-type]


def read_label_volume(path: Path) -> tuple[Iterator[tuple[str, str, NDArray[np.bool_]]], VolumeHeader]:
    """Name, label and mask (z, y, x) of every structure, one after the other, and the header with affine and issues.

    Structures are 3D Slicer's segments where the file names them, and every other value above 0 is ``label<value>``.
    DataError for a file that is not one volume of whole numbers, or has more than 1000 different ones.
    """
    header = read_header(path)
    if len(header.sizes) != (3 if header.list_axis is None else 4):
        raise DataError(f"{path}: is not one 3D volume of labels (size {header.sizes})")
    check_affine(header.affine, path)
    values, header = read_volume(path)
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise DataError(f"{path}: has values that are no whole numbers; a label volume is expected")
    if header.list_axis is None:
        layers = values[np.newaxis]
    elif header.segments:  # the last axis of the file comes first here
        layers = np.moveaxis(values, values.ndim - 1 - header.list_axis, 0)
    else:
        raise DataError(f"{path}: is not one 3D volume of labels (size {header.sizes}, and no segments are named)")
    return _structures(path, layers, header.segments), header


def _structures(
    path: Path, layers: NDArray[np.generic], segments: list[Segment]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    named = {(one.layer, one.label) for one in segments}
    unnamed = []
    for layer, values in enumerate(layers):
        present = [int(value) for value in np.unique(values) if value > 0]
        if len(present) > _MOST_LABELS:
            raise DataError(f"{path}: has {len(present)} different values; this is an image, not labels")
        suffix = f"-layer{layer}" if len(layers) > 1 else ""
        unnamed += [(f"label{value}{suffix}", layer, value) for value in present if (layer, value) not in named]
    for number, one in enumerate(segments, start=1):
        if 0 <= one.layer < len(layers):
            yield f"segment{number}-{one.name}", one.name, layers[one.layer] == one.label
    for name, layer, value in unnamed:
        yield name, name, layers[layer] == value
