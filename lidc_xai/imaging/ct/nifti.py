"""Arrays with an LPS affine as NIfTI files and back; SimpleITK, which turns LPS into NIfTI's RAS, writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lidc_xai.imaging.ct.formats.volume_file import read_volume


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
    sitk.WriteImage(image, str(path), useCompression=str(path).endswith(".gz"))


def read_nifti(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Array (z, y, x) or (R, z, y, x), and the affine (i, j, k, 1) -> LPS mm."""
    array, header = read_volume(path)
    return array, header.affine
