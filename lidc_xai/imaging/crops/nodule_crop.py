"""What a crop is: a small isotropic piece of a CT with the readers' masks, in true patient coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lidc_xai.imaging.crops.plane import Plane


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
