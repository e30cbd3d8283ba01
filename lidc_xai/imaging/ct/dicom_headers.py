"""What one CT slice says about itself, and whether its pixels are all there."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID, ImplicitVRLittleEndian

from lidc_xai.errors import DataError

_TAGS = [
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "PatientID", "ImageType", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
    "BitsAllocated", "SamplesPerPixel", "PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "SeriesDescription", "ImageComments", "Manufacturer",
    "ManufacturerModelName",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SOPClassUID",
]  # fmt: skip
_SHORT_TAG, _LONG_TAG = 8, 12  # bytes before the pixels: tag and length, with explicit VR also that
_FRAGMENT, _END_OF_FRAGMENTS = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_SIMULATED_MARKS = ("ImageType", "SeriesDescription", "ImageComments", "Manufacturer", "PatientID")


@dataclass(frozen=True)
class SliceHeader:
    """Place, scale and identity of one slice.

    ``position``: (3,) LPS mm of the middle of the first stored pixel. ``along_row``, ``along_column``: unit vectors of
    rising column and rising row index. ``pixel_spacing_mm``: between rows, between columns. ``padding``: lowest and
    highest stored value that means "no measurement", if declared. ``frame``: index within a multi-frame file.
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
    localizer: bool
    patient_id: str
    study_uid: str
    simulated: bool
    scanner: str = ""
    frame: int = 0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slice: right-handed with the row and column directions."""
        return np.cross(self.along_row, self.along_column)


def _scanner(header: pydicom.Dataset) -> str:
    """Manufacturer and model, as far as they are recorded."""
    parts = (str(header.get(name, "") or "").strip() for name in ("Manufacturer", "ManufacturerModelName"))
    return " ".join(part for part in parts if part)


def read_header(path: Path) -> pydicom.Dataset:
    """The header of one file, checked to be followed by all its pixels.

    Raises DataError with the reason where it cannot be read, has no image, or is truncated.
    """
    try:
        with path.open("rb") as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            _check_image(path, header)
            _check_whole(path, header, stream)
    except DataError:
        raise
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise DataError(f"{path.name}: header cannot be read ({error})") from error
    return header


def _check_image(path: Path, header: pydicom.Dataset) -> None:
    for name in ("SOPInstanceUID", "Rows", "Columns", "BitsAllocated"):
        if not header.get(name):
            raise DataError(f"{path.name}: header has no {name}")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise DataError(f"{path.name}: is a colour image, not CT values")


def _check_whole(path: Path, header: pydicom.Dataset, stream: BinaryIO) -> None:
    """Refuse a file that ends before its pixels do; ``stream`` stands at the pixels' tag."""
    syntax = UID(str(header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))
    size = os.fstat(stream.fileno()).st_size
    if syntax.is_deflated:  # the stream was unpacked as a whole while the header was read
        return
    if syntax.is_encapsulated:
        if not _all_fragments(stream, size):
            raise DataError(f"{path.name}: is truncated (its compressed pixels have no end)")
        return
    start = stream.tell() + (_SHORT_TAG if syntax.is_implicit_VR else _LONG_TAG)
    frames = int(header.get("NumberOfFrames") or 1)
    expected = frames * header.Rows * header.Columns * header.BitsAllocated // 8
    if size - start < expected:
        raise DataError(f"{path.name}: is truncated ({max(0, size - start)} of {expected} bytes of pixels)")


def _all_fragments(stream: BinaryIO, size: int) -> bool:
    """Whether the fragments of compressed pixels go on to the item that ends them."""
    at = stream.tell() + _LONG_TAG
    while at + _SHORT_TAG <= size:
        stream.seek(at)
        group, element, length = struct.unpack("<HHL", stream.read(_SHORT_TAG))
        if (group, element) == _END_OF_FRAGMENTS:
            return True
        if (group, element) != _FRAGMENT:
            return False
        at += _SHORT_TAG + length
    return False


def slice_header(path: Path, header: pydicom.Dataset) -> SliceHeader:
    """The fields of a single-frame CT image. Raises DataError naming the field that is missing or wrong."""
    along_row, along_column = orientation_of(path, header)
    return SliceHeader(
        path=path,
        position=np.array(numbers(path, header, "ImagePositionPatient", 3)),
        along_row=along_row,
        along_column=along_column,
        pixel_spacing_mm=spacing_of(path, header),
        slice_thickness_mm=optional_number(path, header, "SliceThickness", float("nan")),
        slope=optional_number(path, header, "RescaleSlope", None),
        intercept=optional_number(path, header, "RescaleIntercept", None),
        **common_fields(path, header),
    )


def common_fields(path: Path, header: pydicom.Dataset) -> dict[str, Any]:
    """Fields that single- and multi-frame images keep at the same place."""
    image_type = [str(word).upper() for word in _as_list(header.get("ImageType"))]
    marks = " ".join(str(header.get(name, "")) for name in _SIMULATED_MARKS)
    return {
        "sop_instance_uid": str(header.SOPInstanceUID),
        "instance_number": int(optional_number(path, header, "InstanceNumber", 0)),
        "rows": int(header.Rows),
        "columns": int(header.Columns),
        "padding": _padding(path, header),
        "localizer": "LOCALIZER" in image_type,
        "patient_id": str(header.get("PatientID", "") or ""),
        "scanner": _scanner(header),
        "study_uid": str(header.get("StudyInstanceUID", "") or ""),
        "simulated": "SIMULATED" in marks.upper(),
    }


def orientation_of(path: Path, header: pydicom.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of ImageOrientationPatient: of rising column, of rising row. DataError where they are no frame."""
    values = np.array(numbers(path, header, "ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(values, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(values[0] @ values[1]) > 1e-2:
        raise DataError(f"{path.name}: ImageOrientationPatient {values.ravel().tolist()} is not two unit vectors")
    row = values[0] / lengths[0]
    column = values[1] - (values[1] @ row) * row
    return row, column / np.linalg.norm(column)


def spacing_of(path: Path, header: pydicom.Dataset) -> tuple[float, float]:
    """PixelSpacing in mm: between rows, between columns."""
    between_rows, between_columns = numbers(path, header, "PixelSpacing", 2)
    if min(between_rows, between_columns) <= 0:
        raise DataError(f"{path.name}: PixelSpacing {between_rows} x {between_columns} mm is not positive")
    return between_rows, between_columns


def numbers(path: Path, header: pydicom.Dataset, name: str, count: int) -> list[float]:
    """``count`` finite numbers of one DICOM attribute, else a DataError."""
    try:
        values = [float(value) for value in _as_list(header.get(name))]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path.name}: {name} is not a number ({error})") from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{path.name}: {name} has {len(values)} of {count} numbers")
    return values


def optional_number(path: Path, header: pydicom.Dataset, name: str, default: Any) -> Any:
    """One number, or ``default`` where the attribute is absent or empty."""
    if not _as_list(header.get(name)):
        return default
    return numbers(path, header, name, 1)[0]


def _padding(path: Path, header: pydicom.Dataset) -> tuple[float, float] | None:
    first = optional_number(path, header, "PixelPaddingValue", None)
    if first is None:
        return None
    last = optional_number(path, header, "PixelPaddingRangeLimit", first)
    # Written as unsigned although the pixels are signed (63536 for -2000) in many LIDC series.
    bits, signed = int(header.BitsAllocated), int(header.get("PixelRepresentation") or 0) == 1
    first, last = (value - 2**bits if signed and value >= 2 ** (bits - 1) else value for value in (first, last))
    return min(first, last), max(first, last)


def _as_list(value: Any) -> Sequence[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
