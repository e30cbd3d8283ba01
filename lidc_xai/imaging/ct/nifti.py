"""Arrays with an LPS affine as NIfTI files and back, through SimpleITK (which turns LPS into NIfTI's RAS)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lidc_xai.errors import DataError


def to_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A 3D image from ``array`` (z, y, x) and an orthogonal ``affine`` (i, j, k, 1) -> LPS mm; bool becomes uint8."""
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    image.SetDirection([float(value) for value in (affine[:3, :3] / spacing).ravel()])
    return image


def image_affine(image: sitk.Image) -> np.ndarray:
    """4x4 (i, j, k, 1) -> LPS mm of the first three axes of a SimpleITK image."""
    size = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return affine


def write_nifti(path: Path | str, array: np.ndarray, affine: np.ndarray) -> None:
    """Write (z, y, x), or (R, z, y, x) as a 4D file, gzip-compressed where the name ends in ``.gz``."""
    if array.ndim == 4:
        image = sitk.JoinSeries([to_image(part, affine) for part in array])
    else:
        image = to_image(array, affine)
    sitk.WriteImage(image, str(path), useCompression=str(path).endswith(".gz"))


def read_image(path: Path | str) -> sitk.Image:
    """Read one image file; a damaged, incomplete or foreign one is a :class:`DataError` in one line."""
    if str(path).lower().endswith((".nii", ".nii.gz")):
        nifti_voxels(path)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(f"{path}: cannot be read as an image ({lines[-1] if lines else 'unknown reason'})") from error


def nifti_voxels(path: Path | str) -> np.ndarray:
    """The voxels of a NIfTI file as they are stored (last axis first), checked to be all there.

    ITK fills what is missing from a truncated file with zeros, and turns NaN into zero, both without a word.
    """
    try:
        with open(path, "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as stream:
            data = stream.read()
        dimensions, kind, start = _nifti_header(data)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image (damaged or not NIfTI: {error})") from error
    shape = dimensions[::-1]
    expected = int(np.prod(shape)) * kind.itemsize
    if len(data) - start < expected:
        raise DataError(f"{path}: cannot be read as an image (has {len(data) - start} of {expected} bytes of voxels)")
    return np.frombuffer(data, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)


def _nifti_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Size along each axis, stored type, and where the voxels begin (NIfTI-1 and NIfTI-2, both byte orders)."""
    for order in "<>":
        (length,) = struct.unpack_from(f"{order}i", data, 0)
        if length == 348:
            dimensions = struct.unpack_from(f"{order}8h", data, 40)
            code, bits = struct.unpack_from(f"{order}2h", data, 70)
            (start,) = struct.unpack_from(f"{order}f", data, 108)
        elif length == 540:
            code, bits = struct.unpack_from(f"{order}2h", data, 12)
            dimensions = struct.unpack_from(f"{order}8q", data, 16)
            (start,) = struct.unpack_from(f"{order}q", data, 168)
        else:
            continue
        kind = {16: f"{order}f4", 64: f"{order}f8"}.get(code, f"V{max(1, bits // 8)}")
        return tuple(max(1, size) for size in dimensions[1 : dimensions[0] + 1]), np.dtype(kind), int(start)
    raise ValueError("no NIfTI header")


def read_nifti(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Array (z, y, x) or (R, z, y, x), and the affine (i, j, k, 1) -> LPS mm."""
    image = read_image(path)
    return sitk.GetArrayFromImage(image), image_affine(image)
