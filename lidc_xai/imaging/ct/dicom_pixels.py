"""Pixels of CT slices as Hounsfield units.

Uncompressed pixels are taken from the file as they lie there. Compressed ones are decoded by GDCM (through SimpleITK)
out of a file of our own that has nothing but them: a damaged header never meets a native reader.

Pixels that were never measured: a declared padding value that means air or less (-1000 HU) is air wherever it stands.
One that a tissue has, too, is taken as padding only where it reaches a corner of the picture, outside the round field
of view: inside the body it is tissue.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pydicom.uid import MultiFrameGrayscaleByteSecondaryCaptureImageStorage as BYTES_CLASS
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage as WORDS_CLASS
from scipy import ndimage

from lidc_xai.bounded import unpacked_limit
from lidc_xai.dicom_stream import open_dicom
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import SliceHeader, StoredPixels
from lidc_xai.imaging.ct.volume import AIR_HU

LOWEST_HU = -1024.0
"""Nothing is less dense than vacuum; what lies below was never measured (outside the scanner's field of view)."""


@dataclass
class Padding:
    """Finds the padding of slice after slice, and counts it."""

    filled: int = 0
    kept: int = 0
    kept_hu: float = 0.0

    def outside(self, stored: NDArray[Any], header: SliceHeader) -> NDArray[np.bool_] | None:
        """Which of the stored values (rows, columns) are padding; None where none is declared."""
        if header.padding is None:
            return None
        low, high = header.padding
        # Whole numbers are compared as such: with a fraction the whole slice would become floats first.
        first, last = math.ceil(low), math.floor(high)
        declared = stored == first if first == last else (stored >= first) & (stored <= last)
        slope, intercept = header.slope or 1.0, header.intercept or 0.0
        highest = max(low * slope, high * slope) + intercept
        if highest <= AIR_HU:
            self.filled += int(np.count_nonzero(declared))
            return declared
        outside = _from_corners(declared)
        filled = int(np.count_nonzero(outside))
        self.filled += filled
        self.kept += int(np.count_nonzero(declared)) - filled
        self.kept_hu = highest
        return outside

    def remarks(self, pixels: int) -> list[str]:
        """What was found in ``pixels`` pixels, in words."""
        words = []
        if self.filled:
            words.append(f"padding value in {self.filled / pixels:.1%} of pixels read as {AIR_HU:.0f} HU")
        if self.kept:
            words.append(
                f"declared padding value {self.kept_hu:.0f} HU kept in {self.kept / pixels:.1%} of pixels: "
                "a tissue's value, not at the picture's corners"
            )
        return words


def _from_corners(declared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(declared)
    corners = np.unique(labels[[0, 0, -1, -1], [0, -1, 0, -1]])
    return np.isin(labels, corners[corners > 0])


def read_slices(slices: Sequence[SliceHeader]) -> tuple[NDArray[np.float32], dict[int, str], list[str]]:
    """HU of all slices (n, rows, columns), the slices that could not be decoded (place -> reason), and issues.

    DataError where they say that they unpack to more than their files can hold.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for place, one in enumerate(slices):
        by_file[one.path].append(place)
    _check_total(slices, by_file)
    array = np.empty((len(slices), slices[0].rows, slices[0].columns), dtype=np.float32)
    failed: dict[int, str] = {}
    padding = Padding()
    low = 0
    for path, places in by_file.items():
        try:
            frames = _stored(path, [slices[place] for place in places])
            for place, stored in zip(places, frames, strict=True):
                values = array[place]
                _rescale(stored, slices[place], values)
                outside = padding.outside(stored, slices[place])
                if outside is not None:
                    values[outside] = AIR_HU
                if values.min() < LOWEST_HU:
                    low += int(np.count_nonzero(values < LOWEST_HU))
                    np.maximum(values, LOWEST_HU, out=values)
        except Exception as error:  # whatever a decoder raises: the slices of this file alone are lost
            reason = str(error) if isinstance(error, DataError) else f"{path.name}: pixels cannot be decoded ({error})"
            failed |= dict.fromkeys(places, " ".join(reason.split()))
    remarks = padding.remarks(array.size)
    if low:
        remarks.append(
            f"{low / array.size:.1%} of pixels below {LOWEST_HU:.0f} HU (outside the field of view) raised to it"
        )
    return array, failed, remarks


def _check_total(slices: Sequence[SliceHeader], by_file: dict[Path, list[int]]) -> None:
    held = sum(slices[places[0]].pixels.place.length for places in by_file.values())
    wanted = len(slices) * slices[0].rows * slices[0].columns * 4
    if wanted > unpacked_limit(held):
        raise DataError(f"{slices[0].path.parent}: {held:,} bytes of pixels say that they unpack to {wanted:,}")


def _stored(path: Path, slices: Sequence[SliceHeader]) -> list[NDArray[Any]]:
    """Stored values of one file's slices, in the order asked."""
    first = slices[0]
    pixels, shape = first.pixels, (first.rows, first.columns)
    if pixels.place.syntax.is_encapsulated:
        frames = _decompress(path, pixels, shape)
        return [frames[one.frame] for one in slices]
    kind = np.dtype(
        f"{'<' if pixels.place.syntax.is_little_endian else '>'}{'i' if pixels.signed else 'u'}{pixels.bits[0] // 8}"
    )
    size = first.rows * first.columns * kind.itemsize
    stream, _ = open_dicom(path)
    with stream:
        values = []
        for one in slices:
            stream.seek(pixels.place.start + one.frame * size)
            values.append(_significant(np.frombuffer(stream.read(size), kind).reshape(shape), pixels))
    return values


def _significant(values: NDArray[Any], pixels: StoredPixels) -> NDArray[Any]:
    """The stored bits alone, in the machine's byte order: others may hold overlays."""
    allocated, stored, high = pixels.bits
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if stored == allocated:
        return values
    return (values << (allocated - 1 - high)) >> (allocated - stored)


def _rescale(stored: NDArray[Any], header: SliceHeader, out: NDArray[np.float32]) -> None:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if slope == 1 and stored.itemsize < 4:  # exact, and twice as fast
        np.add(stored, np.float32(intercept), out=out, dtype=np.float32)
    else:
        out[...] = stored * np.float64(slope) + intercept


def _decompress(path: Path, pixels: StoredPixels, shape: tuple[int, int]) -> NDArray[Any]:
    """Stored values (frames, rows, columns) of compressed pixels."""
    stream, syntax = open_dicom(path)
    with stream:
        stream.seek(pixels.place.start)
        items = stream.read(pixels.place.length)
    allocated, stored, high = pixels.bits
    plain = pydicom.Dataset()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    plain.file_meta.MediaStorageSOPClassUID = BYTES_CLASS if allocated == 8 else WORDS_CLASS
    plain.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    plain.SOPClassUID = plain.file_meta.MediaStorageSOPClassUID
    plain.SOPInstanceUID = plain.file_meta.MediaStorageSOPInstanceUID
    plain.SamplesPerPixel, plain.PhotometricInterpretation = 1, "MONOCHROME2"
    plain.Rows, plain.Columns = shape
    plain.NumberOfFrames = pixels.frames
    plain.BitsAllocated, plain.BitsStored, plain.HighBit = allocated, stored, high
    plain.PixelRepresentation = int(pixels.signed)
    plain.PixelData = items
    plain["PixelData"].VR = "OB"
    plain["PixelData"].is_undefined_length = True
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # GDCM's remarks about odd streams go to stderr otherwise
    with TemporaryDirectory() as folder:
        file = Path(folder, "pixels.dcm")
        plain.save_as(file, enforce_file_format=True)
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1].replace(str(file), path.name) if lines else "unknown reason"
            raise DataError(f"{path.name}: pixels cannot be decoded ({reason})") from error
    if values.size != pixels.frames * shape[0] * shape[1] or values.shape[-2:] != shape:
        raise DataError(f"{path.name}: decodes to {values.shape}, not {pixels.frames} x {shape[0]} x {shape[1]} pixels")
    return values.reshape(-1, *shape)
