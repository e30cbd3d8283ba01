"""What a crop must be before anything is computed from it: finite, a cube of cubic voxels, and not empty."""

from __future__ import annotations

import numpy as np

from lidc_xai.errors import DataError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop

SMALLEST_MM, LARGEST_MM = 8.0, 128.0
FEWEST_VOXELS, MOST_VOXELS = 8, 512
NO_TISSUE_HU = -990.0
"""A crop without a voxel above this is air or padding throughout."""
_FARTHEST_MM = 10_000.0
_EVEN = 1e-3


def check_crop(crop: NoduleCrop) -> None:
    """DataError, in one line, where ``crop`` is no box of CT that a model could read.

    Checked: three axes, finite HU, an affine of finite numbers with cubic voxels along right angles and a place within
    10 m, sides of 8 to 128 mm, masks of the same grid, and contents: a box of one value, or of nothing but air, is no
    nodule.
    """
    name = f"{crop.nodule_id or 'crop'}: "
    ct = crop.ct
    if ct.ndim != 3 or len(set(ct.shape)) > 1 or not FEWEST_VOXELS <= ct.shape[0] <= MOST_VOXELS:
        raise DataError(
            f"{name}has {_size(ct.shape)} voxels; wanted a cube of {FEWEST_VOXELS} to {MOST_VOXELS} along each axis"
        )
    _check_affine(name, np.asarray(crop.affine, dtype=np.float64))
    sides = np.array(crop.spacing_mm) * ct.shape
    if sides.min() < SMALLEST_MM - _EVEN or sides.max() > LARGEST_MM + _EVEN:
        raise DataError(
            f"{name}is {' x '.join(f'{side:.1f}' for side in sides)} mm; {SMALLEST_MM:g} to {LARGEST_MM:g} mm wanted"
        )
    for kind, mask, shape in (
        ("consensus", crop.consensus, ct.shape),
        ("a reader's mask", None if crop.reader_masks is None else crop.reader_masks, (-1, *ct.shape)),
    ):
        if mask is not None and mask.shape[-3:] != shape[-3:]:
            raise DataError(f"{name}{kind} has {_size(mask.shape[-3:])} voxels, the CT {_size(ct.shape)}")
    low, high = float(ct.min()), float(ct.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}has values that are no numbers (NaN or infinite)")
    if high - low < 1.0:
        raise DataError(f"{name}is blank: {low:.0f} HU throughout")
    if high < NO_TISSUE_HU:
        raise DataError(f"{name}is blank: nothing above {high:.0f} HU, so no tissue in the box")


def _check_affine(name: str, affine: np.ndarray) -> None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(f"{name}its affine is not 4 x 4 finite numbers")
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if spacing.min() <= 0 or np.ptp(spacing) > _EVEN * spacing.max():
        raise DataError(f"{name}has voxels of {' x '.join(f'{mm:.3g}' for mm in spacing)} mm; cubes are wanted")
    if np.abs(axes.T @ axes / np.outer(spacing, spacing) - np.eye(3)).max() > _EVEN:
        raise DataError(f"{name}its axes are not at right angles")
    if np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        raise DataError(f"{name}lies {np.abs(affine[:3, 3]).max() / 1000:.0f} m from the scanner's origin")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
