"""``read_volume``: the voxels of a NIfTI, NRRD or MetaImage file, where they lie, and what was odd about it."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.bounded import BoundedFile, read_up_to
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import VolumeHeader, check_affine
from lidc_xai.imaging.ct.formats.metaimage_header import metaimage_header
from lidc_xai.imaging.ct.formats.nifti_header import LONGEST_HEADER, nifti_header
from lidc_xai.imaging.ct.formats.nrrd_header import nrrd_header

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mhd", ".mha")
_GZIP = b"\x1f\x8b"
_TRAILING = 4096


def is_volume_file(path: Path | str) -> bool:
    """Whether the name is that of a volume file."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def read_header(path: Path | str) -> VolumeHeader:
    """The header alone, checked against what the file can hold. DataError where it cannot be true."""
    path = Path(path)
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            head, packed = _nifti_head(path)
            header = nifti_header(path, head, packed)
        elif name.endswith((".mhd", ".mha")):
            header = metaimage_header(path)
        else:
            header = nrrd_header(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error
    header.check_sizes(path)
    return header


def read_volume(path: Path | str) -> tuple[NDArray[Any], VolumeHeader]:
    """Voxels with the last axis first, in the machine's byte order, and the header.

    Integers stay what they are; values with a scale become float32. DataError (one line, with the reason) for a
    damaged or incomplete file, or one that says it holds more than it can.
    """
    path = Path(path)
    header = read_header(path)
    try:
        values = _voxels(header)
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error
    if len(values) < header.count:
        held, wanted = len(values) * header.dtype.itemsize, header.bytes
        raise DataError(f"{path}: cannot be read as an image (has {held} of {wanted} bytes of voxels)")
    values = values.reshape(header.sizes[::-1])
    if header.scale is not None:
        values = (values * header.scale[0] + header.scale[1]).astype(np.float32)
    return values, header


def read_single_volume(path: Path | str) -> tuple[NDArray[Any], VolumeHeader]:
    """As :func:`read_volume`, for a file that must hold one plausible volume: (z, y, x)."""
    header = read_header(path)
    if len(header.sizes) != 3 or header.list_axis is not None:
        raise DataError(f"{path}: is not one 3D volume of single values (size {header.sizes})")
    check_affine(header.affine, path)
    return read_volume(path)


def _nifti_head(path: Path) -> tuple[bytes, bool]:
    with BoundedFile(path) as stream:
        head = stream.read(LONGEST_HEADER)
    if head[:2] != _GZIP:
        return head, False
    with gzip.open(path) as unpacked:
        return unpacked.read(LONGEST_HEADER), True


def _voxels(header: VolumeHeader) -> NDArray[Any]:
    """All values in one row, as many as there are."""
    if header.encoding == "raw":
        with BoundedFile(header.data) as stream:
            stream.seek(header.offset)
            return _native(np.fromfile(stream, header.dtype, header.count))
    with BoundedFile(header.data) as stream:
        if header.encoding == "text":
            stream.seek(header.offset)
            text = stream.read().decode("latin-1")
            return np.fromstring(text, np.float64, header.count, sep=" ").astype(header.dtype.newbyteorder("="))
        whole = header.encoding == "gzip" and header.data.name.lower().endswith((".nii", ".nii.gz"))
        skip = header.offset if whole else 0
        if not whole:
            stream.seek(header.offset)
        read = _unpacker(header, stream)
        data = read_up_to(read, skip + header.bytes)
        read(_TRAILING)  # at the end of the stream its check sum is compared
    held = max(0, len(data) - skip) // header.dtype.itemsize
    return _native(np.frombuffer(data, header.dtype, held, skip)) if held else np.empty(0, header.dtype)


def _unpacker(header: VolumeHeader, stream: BoundedFile) -> Callable[[int], bytes]:
    if header.encoding == "gzip":
        return gzip.GzipFile(fileobj=stream).read
    if header.encoding == "bzip2":
        return bz2.BZ2File(stream).read
    unpack = zlib.decompressobj(32 + zlib.MAX_WBITS)  # MetaImage's may be zlib's or gzip's

    def read(count: int) -> bytes:
        while not unpack.eof:
            packed = unpack.unconsumed_tail or stream.read(2**16)
            if not packed:
                raise EOFError("its packed voxels have no end")
            part = unpack.decompress(packed, count)
            if part:
                return part
        return b""

    return read


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
