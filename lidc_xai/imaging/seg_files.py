"""The segments of a DICOM SEG, read by highdicom once its sizes and places have been checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from lidc_xai.bounded import unpacked_limit
from lidc_xai.dicom_stream import open_dicom, pixel_place
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import check_affine

_MOST_GRID = 4
"""The grid has at most this many planes for one that a frame gives."""
_SAME_PLACE_MM = 1e-3


def read_seg(path: Path) -> Iterator[tuple[str, str, NDArray[np.bool_], NDArray[np.float64]]]:
    """Name, label, mask (z, y, x) and affine (i, j, k, 1) -> LPS mm of every segment, one after the other.

    DataError where the file is damaged, says that it holds more than it can, or is no evenly spaced volume.
    """
    from highdicom.seg import segread  # takes seconds to import

    try:
        _check(path)
        stream, _ = open_dicom(path)
        with stream:
            segmentation = segread(stream)
            for number in segmentation.segment_numbers:
                label = str(segmentation.get_segment_description(number).segment_label)
                volume = segmentation.get_volume(segment_numbers=[number], rescale_fractional=True)
                # highdicom's indices are (slice, row, column), ours (column, row, slice).
                affine = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
                check_affine(affine, path)
                yield f"segment{number}-{label}", label, np.asarray(volume.array)[..., 0] >= 0.5, affine
    except DataError:
        raise
    except Exception as error:  # highdicom's checks raise many kinds
        raise DataError(f"{path}: SEG cannot be read as an evenly spaced volume ({error})") from error


def _check(path: Path) -> None:
    stream, syntax = open_dicom(path)
    with stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True)
        frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
        pixels = frames * rows * columns
        place = pixel_place(path, stream, syntax, (pixels * int(header.BitsAllocated) + 7) // 8)
    planes = _planes(header)
    if max(pixels, planes * rows * columns) * 4 > unpacked_limit(place.length):
        words = f"{frames} frames of {rows} x {columns} on {planes} planes"
        raise DataError(f"{path}: says {words}, more than its {place.length:,} bytes can hold")


def _planes(header: pydicom.Dataset) -> int:
    """How many planes the grid of the frames has. DataError where most of them would be empty."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    places, normal = [], None
    for frame in header.get("PerFrameFunctionalGroupsSequence") or []:
        position = _item(frame, shared, "PlanePositionSequence")
        orientation = _item(frame, shared, "PlaneOrientationSequence")
        if position is None or orientation is None:
            continue
        values = np.array([float(value) for value in orientation.ImageOrientationPatient]).reshape(2, 3)
        normal = np.cross(*values) if normal is None else normal
        places.append(float(np.array([float(value) for value in position.ImagePositionPatient]) @ normal))
    if not np.isfinite(places).all():
        raise DataError("ImagePositionPatient is no number")
    different = np.unique(np.round(places, 3))
    if len(different) < 2:
        return 1
    step = max(float(np.diff(different).min()), _SAME_PLACE_MM)
    planes = (different[-1] - different[0]) / step + 1
    if planes > _MOST_GRID * len(different) + 512:
        raise DataError(
            f"{len(different)} planes of SEG over {different[-1] - different[0]:.1f} mm, {step:.3g} mm apart: too few"
        )
    return int(planes)


def _item(frame: pydicom.Dataset, shared: pydicom.Dataset, name: str) -> Any:
    for place in (frame, shared):
        if place.get(name):
            return place.get(name)[0]
    return None
