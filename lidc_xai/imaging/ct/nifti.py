"""Arrays with an LPS affine as NIfTI files and back; SimpleITK, which turns LPS into NIfTI's RAS, writes them."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lidc_xai.errors import StorageError
from lidc_xai.imaging.ct.formats.volume_file import read_volume

_NIFTI_HEADER = 352


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
