"""What a crop is (a small isotropic piece of a CT with the readers' masks, in true patient coordinates), what one plane
of it is, and what it must be before anything is computed from it: finite, a cube of cubic voxels, and not empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lidc_xai.errors import DataError

SMALLEST_MM, LARGEST_MM = 8.0, 128.0
FEWEST_VOXELS, MOST_VOXELS = 8, 512
NO_TISSUE_HU = -990.0
"""A crop without a voxel above this is air or padding throughout."""
_FARTHEST_MM = 10_000.0
_EVEN = 1e-3


@dataclass(frozen=True)
class Plane:
    """One slice of a volume.

    ``image`` is (h, w) in stored order (coronal and sagittal: first row = lowest k); ``affine`` maps
    (column, row, 0, 1) to LPS mm; ``spacing_mm`` is (between rows, between columns).

    >>> from lidc_xai.imaging import extract_plane
    >>> plane = extract_plane(crop.ct, crop.affine, "coronal")
    >>> plane.view, plane.image.shape, plane.index
    ('coronal', (32, 32), 16)
    """

    view: str
    index: int
    image: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple[float, float]


@dataclass
class NoduleCrop:
    """A nodule's surroundings, resampled.

    ``ct``: (z, y, x) float32 HU. ``affine``: 4x4, (i, j, k, 1) -> LPS mm (i = x, j = y, k = z of the array).
    ``reader_masks``: (R, z, y, x) bool, one per reader, or ``None`` without readers. ``consensus``: (z, y, x) bool,
    voxels that at least half of the readers marked, or ``None``. ``padded``: a part of the box lies outside the scan.
    ``larger_than_box``: the readers' outlines together are larger than the box on some axis. ``issues``: what
    was found, in words. ``padded_share``: how much of the box lies outside the scan, 0 to 1. ``cut``: the planes that
    ``imaging.planes`` has cut already, each with the array it is of.

    >>> crop.ct.shape, crop.affine.shape, crop.nodule_id
    ((32, 32, 32), (4, 4), 'LIDC-IDRI-0475-s1-n0')
    """

    ct: np.ndarray
    affine: np.ndarray
    reader_masks: np.ndarray | None = None
    consensus: np.ndarray | None = None
    issues: list[str] = field(default_factory=list)
    nodule_id: str = ""
    series_uid: str = ""
    padded: bool = False
    larger_than_box: bool = False
    padded_share: float = 0.0
    cut: dict[tuple[str | int, str, int], tuple[np.ndarray, Plane]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxels in mm, in the array's order (z, y, x)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def centre_mm(self) -> np.ndarray:
        """LPS mm of the middle of the box (3,)."""
        depth, height, width = self.ct.shape
        middle = np.array([(width - 1) / 2, (height - 1) / 2, (depth - 1) / 2, 1.0])
        return (self.affine @ middle)[:3]


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
    for kind, mask in (("consensus", crop.consensus), ("a reader's mask", crop.reader_masks)):
        if mask is not None and mask.shape[-3:] != ct.shape:
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
