"""A CT in memory: HU values, where every voxel lies in the patient, and what was found while reading it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1000.0
GAP = 1.5
"""A step between slices of more than this many usual steps is a gap: slices are missing there."""


@dataclass
class CTVolume:
    """A CT series or one volume file.

    ``array``: (z, y, x) float32 HU. ``affine``: 4x4, (i, j, k, 1) -> LPS mm, i = column, j = row, k = slice; exact for
    every voxel of ``array``. ``issues``: what was found and how it was met, in words.

    ``stored``: the slices as they were recorded, (n, rows, columns); the same object as ``array`` where they are evenly
    spaced, else ``array`` is interpolated from them. ``positions_mm``: (n,) ascending places of the stored slices along
    the normal of the image plane. ``slice_z_mm``: (n,) z of each stored slice's ImagePositionPatient (what contours
    refer to). ``sop_instance_uids``: one per stored slice, empty for a volume file. ``slice_thickness_mm``: NaN where
    not recorded. ``scanner``: manufacturer and model. ``outside_view``: those of ``issues`` that concern only pixels
    outside the scanner's field of view.

    >>> i, j, k, one = np.linalg.inv(ct.affine) @ (*ct.affine[:3, 3], 1)      # the first voxel's place is (0, 0, 0)
    >>> bool(np.allclose((i, j, k), 0))
    True
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    series_uid: str = ""
    issues: list[str] = field(default_factory=list)
    stored: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    positions_mm: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    slice_z_mm: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    sop_instance_uids: list[str] = field(default_factory=list)
    patient_id: str = ""
    study_uid: str = ""
    slice_thickness_mm: float = float("nan")
    scanner: str = ""
    simulated: bool = False
    outside_view: list[str] = field(default_factory=list)
    source: str = ""

    def __post_init__(self) -> None:
        if self.stored.size == 0:
            self.stored = self.array
        if self.positions_mm.size == 0:
            steps = np.arange(len(self.array)) * self._step
            self.positions_mm = self.normal @ self.affine[:3, 3] + steps
            self.slice_z_mm = self.affine[2, 3] + np.arange(len(self.array)) * self.affine[2, 2]

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slices, towards higher k."""
        normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        normal /= np.linalg.norm(normal)
        return normal if normal @ self.affine[:3, 2] > 0 else -normal

    @property
    def _step(self) -> float:
        return float(self.normal @ self.affine[:3, 2])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between slices (along their normal), rows and columns of ``array`` in mm."""
        columns, rows = np.linalg.norm(self.affine[:3, :2], axis=0)
        return self._step, float(rows), float(columns)

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel of ``array``."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Places along the normal (mm, from and to) between which slices are missing."""
        if len(self.positions_mm) < 3:
            return []
        steps = np.diff(self.positions_mm)
        wide = np.flatnonzero(steps > GAP * np.median(steps))
        return [(float(self.positions_mm[k]), float(self.positions_mm[k + 1])) for k in wide]

    def to_stored_index(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional (i, j, k) in ``stored`` of LPS points (..., 3), k through the true slice positions."""
        inverse = np.linalg.inv(self.affine)
        index = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
        if self.stored is not self.array:
            along = self.positions_mm[0] + index[..., 2] * self._step
            index[..., 2] = _extended_interpolation(along, self.positions_mm, np.arange(len(self.positions_mm)))
        return index

    def stored_index_to_mm(self, ijk: NDArray[np.float64]) -> NDArray[np.float64]:
        """LPS mm of fractional (i, j, k) indices (..., 3) into ``stored``; the inverse of :meth:`to_stored_index`."""
        index = np.array(ijk, dtype=np.float64)
        if self.stored is not self.array:
            along = _extended_interpolation(index[..., 2], np.arange(len(self.positions_mm)), self.positions_mm)
            index[..., 2] = (along - self.positions_mm[0]) / self._step
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


def _extended_interpolation(at: NDArray, xs: NDArray, ys: NDArray) -> NDArray[np.float64]:
    """Piecewise linear, going on with the first and last slope outside."""
    inside = np.interp(at, xs, ys)
    below = (at - xs[0]) * (ys[1] - ys[0]) / (xs[1] - xs[0])
    above = (at - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return inside + np.where(at < xs[0], below, 0.0) + np.where(at > xs[-1], above, 0.0)
