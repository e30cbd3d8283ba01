"""Enhanced (multi-frame) CT: one header per frame, gathered from the functional groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import (
    SliceHeader,
    StoredPixels,
    common_fields,
    numbers,
    orientation_of,
    raw_text,
    read_header,
    rescale_of,
    slice_header,
    spacing_of,
    thickness_of,
)

_FRAME_TRAITS = {"TemporalPositionIdentifier": "TemporalPositionIndex", "AcquisitionNumber": "FrameAcquisitionNumber"}


def headers_of(path: Path) -> list[SliceHeader]:
    """One :class:`SliceHeader` per frame of a file; a single-frame image gives one.

    Every value is converted here, so that a damaged one is this file's DataError and nobody else's exception.
    """
    try:
        with disable_value_validation():  # what is odd and no harm is not remarked on slice by slice
            header, pixels = read_header(path)
            return _frames(path, header, pixels)
    except DataError:
        raise
    except Exception as error:  # pydicom raises anything on damaged bytes
        raise DataError(f"{path.name}: header cannot be read ({type(error).__name__}: {error})") from error


def _frames(path: Path, header: pydicom.Dataset, pixels: StoredPixels) -> list[SliceHeader]:
    if "PerFrameFunctionalGroupsSequence" not in header:
        if pixels.frames > 1:
            raise DataError(f"{path.name}: has several frames but no positions for them (not enhanced CT)")
        return [slice_header(path, header, pixels)]
    frames = list(header.PerFrameFunctionalGroupsSequence)
    if len(frames) != int(header.get("NumberOfFrames") or 0):
        raise DataError(
            f"{path.name}: NumberOfFrames is {header.get('NumberOfFrames')}, but {len(frames)} are described"
        )
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), pydicom.Dataset())
    common = common_fields(path, header, pixels)
    return [_frame_header(path, index, frame, shared, common) for index, frame in enumerate(frames)]


def _frame_header(path: Path, index: int, frame: pydicom.Dataset, shared: pydicom.Dataset, common: dict) -> SliceHeader:
    place = _group(path, frame, shared, "PlanePositionSequence")
    along_row, along_column = orientation_of(path, _group(path, frame, shared, "PlaneOrientationSequence"))
    measures = _group(path, frame, shared, "PixelMeasuresSequence")
    rescale = _group(path, frame, shared, "PixelValueTransformationSequence", required=False)
    kinds = _group(path, frame, shared, "CTImageFrameTypeSequence", required=False)
    content = _group(path, frame, shared, "FrameContentSequence", required=False)
    traits = {**common["traits"], "ImageType": raw_text(kinds, "FrameType") or common["traits"]["ImageType"]}
    traits |= {name: raw_text(content, field) for name, field in _FRAME_TRAITS.items() if field in content}
    return SliceHeader(
        path=path,
        position=np.array(numbers(path, place, "ImagePositionPatient", 3)),
        along_row=along_row,
        along_column=along_column,
        pixel_spacing_mm=spacing_of(path, measures),
        slice_thickness_mm=thickness_of(measures),
        **rescale_of(path, rescale),
        frame=index,
        **{**common, "instance_number": index + 1, "traits": traits},
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
