"""Enhanced (multi-frame) CT: one header per frame, gathered from the functional groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import (
    SliceHeader,
    common_fields,
    numbers,
    optional_number,
    orientation_of,
    slice_header,
    spacing_of,
)


def headers_of(path: Path, header: pydicom.Dataset) -> list[SliceHeader]:
    """One :class:`SliceHeader` per frame; a single-frame image gives one."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise DataError(f"{path.name}: has several frames but no positions for them (not enhanced CT)")
        return [slice_header(path, header)]
    frames = list(header.PerFrameFunctionalGroupsSequence)
    if len(frames) != int(header.get("NumberOfFrames") or 0):
        raise DataError(
            f"{path.name}: NumberOfFrames is {header.get('NumberOfFrames')}, but {len(frames)} are described"
        )
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), pydicom.Dataset())
    common = common_fields(path, header)
    return [_frame_header(path, index, frame, shared, common) for index, frame in enumerate(frames)]


def _frame_header(path: Path, index: int, frame: pydicom.Dataset, shared: pydicom.Dataset, common: dict) -> SliceHeader:
    place = _group(path, frame, shared, "PlanePositionSequence")
    along_row, along_column = orientation_of(path, _group(path, frame, shared, "PlaneOrientationSequence"))
    measures = _group(path, frame, shared, "PixelMeasuresSequence")
    rescale = _group(path, frame, shared, "PixelValueTransformationSequence", required=False)
    kinds = _group(path, frame, shared, "CTImageFrameTypeSequence", required=False).get("FrameType") or []
    return SliceHeader(
        path=path,
        position=np.array(numbers(path, place, "ImagePositionPatient", 3)),
        along_row=along_row,
        along_column=along_column,
        pixel_spacing_mm=spacing_of(path, measures),
        slice_thickness_mm=optional_number(path, measures, "SliceThickness", float("nan")),
        slope=optional_number(path, rescale, "RescaleSlope", None),
        intercept=optional_number(path, rescale, "RescaleIntercept", None),
        frame=index,
        **{
            **common,
            "instance_number": index + 1,
            "localizer": common["localizer"] or "LOCALIZER" in [str(kind).upper() for kind in kinds],
        },
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
