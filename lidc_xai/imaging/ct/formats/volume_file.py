"""``read_volume``: the voxels of a NIfTI, NRRD or MetaImage file, where they lie, and what was odd about it; and arrays
with an LPS affine as such files, which SimpleITK, that turns LPS into NIfTI's RAS, writes.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from lidc_xai.bounded import BoundedFile, read_up_to
from lidc_xai.errors import DataError, StorageError
from lidc_xai.imaging.ct.formats.header import VolumeHeader, check_affine
from lidc_xai.imaging.ct.formats.metaimage_header import metaimage_header
from lidc_xai.imaging.ct.formats.nifti_header import LONGEST_HEADER, nifti_header
from lidc_xai.imaging.ct.formats.nrrd_header import nrrd_header

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mhd", ".mha")
_GZIP = b"\x1f\x8b"
_TRAILING = 4096
_NIFTI_HEADER = 352


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


def to_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A 3D image from ``array`` (z, y, x) and an orthogonal ``affine`` (i, j, k, 1) -> LPS mm; bool becomes uint8."""
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    image.SetDirection([float(value) for value in (affine[:3, :3] / spacing).ravel()])
    return image


def write_nifti(path: Path | str, array: np.ndarray, affine: np.ndarray) -> None:
    """Write (z, y, x), or (R, z, y, x) as a 4D file, gzip-compressed where the name ends in ``.gz``."""
    if array.ndim == 4:
        image = sitk.JoinSeries([to_image(part, affine) for part in array])
    else:
        image = to_image(array, affine)
    write_image(image, path)


def write_image(image: sitk.Image, path: Path | str) -> None:
    """Write one image, compressed where the name ends in ``.gz`` or ``.nrrd``.

    ITK cuts a NIfTI short on a full disk without a word: what lies there is counted afterwards. Raises OSError (no
    space left) where it is not whole, StorageError where ITK says that it cannot be written.
    """
    name = str(path)
    try:
        sitk.WriteImage(image, name, useCompression=name.endswith((".gz", ".nrrd")))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else "ITK gives no reason"
        raise StorageError(f"{path}: cannot be written ({reason}); is the disk full? choose another --out") from error
    if not name.endswith((".nii", ".nii.gz")):
        return
    wanted = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if _bytes_in(Path(path)) < wanted + _NIFTI_HEADER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def _bytes_in(path: Path) -> int:
    """How much a file holds, unpacked; what cannot be unpacked counts for nothing."""
    if path.suffix != ".gz":
        return path.stat().st_size
    count = 0
    try:
        with gzip.open(path) as stream:
            while part := stream.read(1 << 20):
                count += len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return 0
    return count


def read_nifti(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Array (z, y, x) or (R, z, y, x), and the affine (i, j, k, 1) -> LPS mm."""
    array, header = read_volume(path)
    return array, header.affine
