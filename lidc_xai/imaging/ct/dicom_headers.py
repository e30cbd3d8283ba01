"""What one CT slice says about itself, and whether its pixels are all there; of an enhanced (multi-frame) CT each frame
is a slice, its fields gathered from the functional groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.multival import MultiValue

from lidc_xai.dicom_stream import PixelPlace, check_codestream, pixel_place, read_dataset
from lidc_xai.errors import DataError

TRAITS = {
    "ImageType": "image type",
    "TemporalPositionIdentifier": "temporal position",
    "AcquisitionNumber": "acquisition number",
    "NominalPercentageOfCardiacPhase": "cardiac phase",
    "KVP": "kVp",
    "ConvolutionKernel": "kernel",
    "FilterType": "filter",
    "ReconstructionDiameter": "reconstruction diameter",
    "ContrastBolusAgent": "contrast",
    "StudyInstanceUID": "study",
    "FrameOfReferenceUID": "frame of reference",
    "SeriesNumber": "series number",
    "SeriesTime": "series time",
    "SliceThickness": "slice thickness",
    "AcquisitionDateTime": "acquisition time",
    "AcquisitionTime": "acquisition time",
    "ContentTime": "content time",
}
"""What can tell two volumes of one series apart, in the order in which it is asked, and its name in words."""

_TAGS = [
    "SOPInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation",
    "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "SeriesDescription", "ImageComments", "Manufacturer",
    "ManufacturerModelName", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SOPClassUID",
    *TRAITS,
]  # fmt: skip
_SIMULATED_MARKS = ("ImageType", "SeriesDescription", "ImageComments", "Manufacturer", "PatientID")
_FRAME_TRAITS = {"TemporalPositionIdentifier": "TemporalPositionIndex", "AcquisitionNumber": "FrameAcquisitionNumber"}
_IS_HU = ("", "HU", "US")  # US: unspecified, as older scanners write
_GREY = ("MONOCHROME1", "MONOCHROME2")
_CODESTREAM_HEAD = 2**16
_Group = Callable[..., pydicom.Dataset]


@dataclass(frozen=True)
class StoredPixels:
    """How a file keeps its pixels. ``bits``: allocated, stored, high bit; ``signed``: two's complement."""

    place: PixelPlace
    frames: int
    bits: tuple[int, int, int]
    signed: bool


@dataclass(frozen=True)
class SliceHeader:
    """Place, scale and identity of one slice.

    ``position``: (3,) LPS mm of the middle of the first stored pixel. ``along_row``, ``along_column``: unit vectors of
    rising column and rising row index. ``pixel_spacing_mm``: between rows, between columns. ``padding``: lowest and
    highest stored value that means "no measurement", if declared. ``traits``: what tells volumes of one series apart,
    by name of the field. ``inverted``: shown with its lowest value in white (MONOCHROME1), which changes no HU.
    ``unspecified``: RescaleType US. ``frame``: index within a multi-frame file.
    """

    path: Path
    sop_instance_uid: str
    instance_number: int
    position: NDArray[np.float64]
    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]
    pixel_spacing_mm: tuple[float, float]
    rows: int
    columns: int
    slice_thickness_mm: float
    slope: float | None
    intercept: float | None
    padding: tuple[float, float] | None
    patient_id: str
    study_uid: str
    simulated: bool
    pixels: StoredPixels
    traits: Mapping[str, str]
    sop_class: str = ""
    inverted: bool = False
    unspecified: bool = False
    scanner: str = ""
    frame: int = 0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slice: right-handed with the row and column directions."""
        return np.cross(self.along_row, self.along_column)


def headers_of(path: Path) -> list[SliceHeader]:
    """One :class:`SliceHeader` per frame of a file; a single-frame image gives one.

    Every value is converted here, so that a damaged one is this file's DataError and nobody else's exception.
    """
    try:
        with disable_value_validation():  # what is odd and no harm is not remarked on slice by slice
            header, pixels = _read_header(path)
            return _frames(path, header, pixels)
    except DataError:
        raise
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise DataError(f"{path.name}: header cannot be read ({type(error).__name__}: {error})") from error


def _frames(path: Path, header: pydicom.Dataset, pixels: StoredPixels) -> list[SliceHeader]:
    if "PerFrameFunctionalGroupsSequence" not in header:
        if pixels.frames > 1:
            raise DataError(f"{path.name}: has several frames but no positions for them (not enhanced CT)")
        return [_slice_header(path, lambda name, required=True: header, _common_fields(path, header, pixels))]
    frames = list(header.PerFrameFunctionalGroupsSequence)
    if len(frames) != int(header.get("NumberOfFrames") or 0):
        raise DataError(
            f"{path.name}: NumberOfFrames is {header.get('NumberOfFrames')}, but {len(frames)} are described"
        )
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), pydicom.Dataset())
    common = _common_fields(path, header, pixels)
    groups = (partial(_group, path, frame, shared) for frame in frames)
    return [_frame_header(path, index, group, common) for index, group in enumerate(groups)]


def _frame_header(path: Path, index: int, group: _Group, common: dict[str, Any]) -> SliceHeader:
    kinds, content = (group(name, required=False) for name in ("CTImageFrameTypeSequence", "FrameContentSequence"))
    traits = {**common["traits"], "ImageType": _raw_text(kinds, "FrameType") or common["traits"]["ImageType"]}
    traits |= {name: _raw_text(content, field) for name, field in _FRAME_TRAITS.items() if field in content}
    return _slice_header(path, group, {**common, "frame": index, "instance_number": index + 1, "traits": traits})


def _slice_header(path: Path, group: _Group, common: dict[str, Any]) -> SliceHeader:
    """``group``: the fields of a functional group by its name; a single-frame image has all of them in its header."""
    place = group("PlanePositionSequence")
    along_row, along_column = _orientation(path, group("PlaneOrientationSequence"))
    measures = group("PixelMeasuresSequence")
    return SliceHeader(
        path=path,
        position=np.array(_numbers(path, place, "ImagePositionPatient", 3)),
        along_row=along_row,
        along_column=along_column,
        pixel_spacing_mm=_spacing(path, measures),
        slice_thickness_mm=_thickness(measures),
        **_rescale(path, group("PixelValueTransformationSequence", required=False)),
        **common,
    )


def _group(
    path: Path, frame: pydicom.Dataset, shared: pydicom.Dataset, name: str, required: bool = True
) -> pydicom.Dataset:
    """The one item of a functional group, of the frame itself or shared by all."""
    for place in (frame, shared):
        items = place.get(name)
        if items:
            return items[0]
    if required:
        raise DataError(f"{path.name}: frames have no {name}")
    return pydicom.Dataset()


def _read_header(path: Path) -> tuple[pydicom.Dataset, StoredPixels]:
    """The header of one file, checked to be followed by all its pixels, and how these are stored.

    Raises DataError with the reason where it has no image, or is truncated; anything on damaged bytes.
    """
    header, stream, syntax = read_dataset(path, _TAGS)
    with stream:
        _check_image(path, header)
        rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
        if min(rows, columns, frames) < 1:
            raise DataError(f"{path.name}: Rows {rows}, Columns {columns}, NumberOfFrames {frames}: no image")
        bits = _bits(path, header)
        place = pixel_place(path, stream, syntax, frames * rows * columns * bits[0] // 8)
        if syntax.is_encapsulated:
            stream.seek(place.start)
            check_codestream(
                path, syntax, stream.read(_CODESTREAM_HEAD), place.length, (frames, rows, columns), bits[0]
            )
    return header, StoredPixels(place, frames, bits, int(header.get("PixelRepresentation") or 0) == 1)


def _check_image(path: Path, header: pydicom.Dataset) -> None:
    for name in ("SOPInstanceUID", "Rows", "Columns", "BitsAllocated"):
        if not header.get(name):
            raise DataError(f"{path.name}: header has no {name}")
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2").upper()
    if int(header.get("SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        raise DataError(f"{path.name}: is a colour image, not CT values")


def _bits(path: Path, header: pydicom.Dataset) -> tuple[int, int, int]:
    """Bits allocated, bits stored and high bit."""
    allocated = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or allocated)
    high = int(header.get("HighBit") if header.get("HighBit") is not None else stored - 1)
    if allocated not in (8, 16, 32):
        raise DataError(f"{path.name}: BitsAllocated is {allocated}; 8, 16 and 32 are read")
    if not 1 <= stored <= high + 1 <= allocated:
        raise DataError(f"{path.name}: BitsStored {stored} and HighBit {high} do not fit in BitsAllocated {allocated}")
    return allocated, stored, high


def _common_fields(path: Path, header: pydicom.Dataset, pixels: StoredPixels) -> dict[str, Any]:
    """Fields that single- and multi-frame images keep at the same place."""
    maker = (str(header.get(name, "") or "").strip() for name in ("Manufacturer", "ManufacturerModelName"))
    marks = " ".join(str(header.get(name, "")) for name in _SIMULATED_MARKS)
    return {
        "sop_instance_uid": str(header.SOPInstanceUID),
        "instance_number": _instance_number(header),
        "rows": int(header.Rows),
        "columns": int(header.Columns),
        "padding": _padding(path, header, pixels),
        "patient_id": str(header.get("PatientID", "") or ""),
        "scanner": " ".join(part for part in maker if part),
        "study_uid": str(header.get("StudyInstanceUID", "") or ""),
        "simulated": "SIMULATED" in marks.upper(),
        "pixels": pixels,
        "traits": {name: _raw_text(header, name) for name in TRAITS},
        "sop_class": str(header.get("SOPClassUID", "") or ""),
        "inverted": header.get("PhotometricInterpretation") == "MONOCHROME1",
    }


def _rescale(path: Path, header: pydicom.Dataset) -> dict[str, Any]:
    """How stored values become HU. DataError where they become something else."""
    kind = str(header.get("RescaleType") or "").strip().upper()
    if kind not in _IS_HU:
        raise DataError(f"{path.name}: RescaleType is {kind}, not HU; give the series in Hounsfield units")
    if header.get("ModalityLUTSequence") and header.get("RescaleSlope") is None:
        raise DataError(f"{path.name}: has a ModalityLUTSequence instead of RescaleSlope; give the series in HU")
    slope = _optional_number(path, header, "RescaleSlope")
    if slope == 0:
        raise DataError(f"{path.name}: RescaleSlope is 0")
    intercept = _optional_number(path, header, "RescaleIntercept")
    return {"slope": slope, "intercept": intercept, "unspecified": kind == "US"}


def _thickness(header: pydicom.Dataset) -> float:
    """SliceThickness in mm, NaN where it is absent or no number: the slices' positions count, not it."""
    try:
        value = float(header.get("SliceThickness"))
    except (TypeError, ValueError):
        return math.nan
    return value if 0 < value < math.inf else math.nan


def _raw_text(header: pydicom.Dataset, name: str) -> str:
    """A field as it stands in the file, to be compared and shown, "" where absent."""
    if name not in header:
        return ""
    value = header.get_item(name).value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip("\0 ").upper()
    return "\\".join(map(str, value)).upper() if isinstance(value, (list, MultiValue)) else str(value or "")


def _instance_number(header: pydicom.Dataset) -> int:
    """InstanceNumber, 0 where it is absent or no whole number: slices are ordered by position."""
    try:
        return int(header.get("InstanceNumber") or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _orientation(path: Path, header: pydicom.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of ImageOrientationPatient: of rising column, of rising row. DataError where they are no frame."""
    values = np.array(_numbers(path, header, "ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(values, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(values[0] @ values[1]) > 1e-2:
        raise DataError(f"{path.name}: ImageOrientationPatient {values.ravel().tolist()} is not two unit vectors")
    row = values[0] / lengths[0]
    column = values[1] - (values[1] @ row) * row
    return row, column / np.linalg.norm(column)


def _spacing(path: Path, header: pydicom.Dataset) -> tuple[float, float]:
    """PixelSpacing in mm: between rows, between columns."""
    between_rows, between_columns = _numbers(path, header, "PixelSpacing", 2)
    if min(between_rows, between_columns) <= 0:
        raise DataError(f"{path.name}: PixelSpacing {between_rows} x {between_columns} mm is not positive")
    return between_rows, between_columns


def _numbers(path: Path, header: pydicom.Dataset, name: str, count: int) -> list[float]:
    """``count`` finite numbers of one DICOM attribute, else a DataError."""
    try:
        values = [float(value) for value in _as_list(header.get(name))]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path.name}: {name} is not a number ({error})") from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{path.name}: {name} has {len(values)} of {count} numbers")
    return values


def _optional_number(path: Path, header: pydicom.Dataset, name: str) -> float | None:
    return _numbers(path, header, name, 1)[0] if _as_list(header.get(name)) else None


def _padding(path: Path, header: pydicom.Dataset, pixels: StoredPixels) -> tuple[float, float] | None:
    first = _optional_number(path, header, "PixelPaddingValue")
    if first is None:
        return None
    limit = _optional_number(path, header, "PixelPaddingRangeLimit")
    last = first if limit is None else limit
    # Written as unsigned although the pixels are signed (63536 for -2000) in many LIDC series.
    bits = pixels.bits[0]
    first, last = (value - 2**bits if pixels.signed and value >= 2 ** (bits - 1) else value for value in (first, last))
    return min(first, last), max(first, last)


def _as_list(value: Any) -> Sequence[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
