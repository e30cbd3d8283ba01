"""Pixels of CT slices as Hounsfield units, decoded by GDCM through SimpleITK (every transfer syntax it knows)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import SliceHeader
from lidc_xai.imaging.ct.nifti import read_image
from lidc_xai.imaging.ct.volume import AIR_HU

LOWEST_HU = -1024.0
"""Nothing is less dense than vacuum; what lies below was never measured (outside the scanner's field of view)."""


def read_slices(slices: Sequence[SliceHeader]) -> tuple[NDArray[np.float32], dict[int, str], list[str]]:
    """HU of all slices (n, rows, columns), the slices that could not be decoded (place -> reason), and issues."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # GDCM's remarks about odd headers go to stderr otherwise
    array = np.empty((len(slices), slices[0].rows, slices[0].columns), dtype=np.float32)
    failed: dict[int, str] = {}
    padded = low = 0
    by_file: dict[Path, list[int]] = defaultdict(list)
    for place, one in enumerate(slices):
        by_file[one.path].append(place)
    for path, places in by_file.items():
        try:
            frames = _decode(path, [slices[place] for place in places])
        except DataError as error:
            failed |= dict.fromkeys(places, str(error))
            continue
        for place, values in zip(places, frames, strict=True):
            padded += _fill_padding(values, slices[place])
            low += int(np.count_nonzero(values < LOWEST_HU))
            np.maximum(values, LOWEST_HU, out=array[place])
    return array, failed, _remarks(padded, low, array.size)


def _decode(path: Path, slices: Sequence[SliceHeader]) -> list[NDArray[np.float32]]:
    """HU of one file's slices, in the order asked.

    ITK rescales every frame of an enhanced image by the first frame's values; where they differ, the stored values are
    taken through pydicom and rescaled here.
    """
    if len({(one.slope, one.intercept) for one in slices}) > 1:
        values = _stored_frames(path).astype(np.float64)
        scales = {one.frame: (_slope(one), _intercept(one)) for one in slices}
        values = np.stack([values[one.frame] * scales[one.frame][0] + scales[one.frame][1] for one in slices])
        return list(values.astype(np.float32))
    values = sitk.GetArrayFromImage(read_image(path))
    shape = (slices[0].rows, slices[0].columns)
    if values.shape[-2:] != shape or values.ndim > 3:
        raise DataError(f"{path.name}: decodes to {values.shape}, not {shape[0]} x {shape[1]} pixels")
    frames = values.reshape(-1, *shape)
    return [frames[one.frame].astype(np.float32) for one in slices]


def _stored_frames(path: Path) -> NDArray[np.integer]:
    try:
        return pydicom.dcmread(path).pixel_array
    except Exception as error:  # pydicom's decoders raise whatever their library raises
        reason = f"frames with different rescale cannot be decoded ({error})"
        raise DataError(f"{path.name}: {reason}; store them uncompressed (gdcmconv --raw)") from error


def _fill_padding(values: NDArray[np.float32], header: SliceHeader) -> int:
    """Put air where the header says that nothing was measured; returns the number of such pixels."""
    if header.padding is None:
        return 0
    low, high = sorted(_slope(header) * value + _intercept(header) for value in header.padding)
    outside = (values >= low - 1e-3) & (values <= high + 1e-3)
    values[outside] = AIR_HU
    return int(np.count_nonzero(outside))


def _slope(header: SliceHeader) -> float:
    return 1.0 if header.slope is None else header.slope


def _intercept(header: SliceHeader) -> float:
    return 0.0 if header.intercept is None else header.intercept


def _remarks(padded: int, low: int, total: int) -> list[str]:
    remarks = []
    if padded:
        remarks.append(f"padding value in {padded / total:.1%} of pixels read as {AIR_HU:.0f} HU")
    if low:
        remarks.append(f"{low / total:.1%} of pixels below {LOWEST_HU:.0f} HU (outside the field of view) raised to it")
    return remarks
