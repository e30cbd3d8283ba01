"""Arrays with an LPS affine as NIfTI files and back, through SimpleITK (which turns LPS into NIfTI's RAS)."""

from __future__ import annotations

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
    """Read one image file; a damaged or foreign one is a :class:`DataError` in one line."""
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(f"{path}: cannot be read as an image ({lines[-1] if lines else 'unknown reason'})") from error


def read_nifti(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Array (z, y, x) or (R, z, y, x), and the affine (i, j, k, 1) -> LPS mm."""
    image = read_image(path)
    return sitk.GetArrayFromImage(image), image_affine(image)
