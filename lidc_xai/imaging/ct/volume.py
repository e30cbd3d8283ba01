"""A CT in memory: HU values, where every voxel lies in the patient, and what was found while reading it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1000.0
EVEN_MM = 0.01
"""Slices this close to an even grid are taken as even: CT headers jitter by rounding alone."""
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


def axial_volume(
    stored: NDArray[np.float32],
    z_mm: NDArray[np.float64],
    spacing_mm: float,
    origin_mm: tuple[float, float],
    step_mm: float,
    **fields: Any,
) -> CTVolume:
    """Slices ``stored`` (n, rows, columns) in HU at heights ``z_mm`` (n,) ascending, in patient axes.

    ``origin_mm``: x and y of the first pixel. ``step_mm``: usual distance of two slices, for a single one. Where the
    heights are uneven, the volume's ``array`` is interpolated on an even grid. ``fields``: further fields of CTVolume.
    """
    step = float(np.median(np.diff(z_mm))) if len(z_mm) > 1 else step_mm
    affine = np.diag([spacing_mm, spacing_mm, step, 1.0])
    affine[:3, 3] = *origin_mm, z_mm[0]
    even = np.abs(z_mm[0] + step * np.arange(len(z_mm)) - z_mm).max() <= EVEN_MM
    array = stored if even else between_slices(stored, z_mm, np.arange(z_mm[0], z_mm[-1] + 1e-6, step))
    return CTVolume(array, affine, stored=stored, positions_mm=z_mm, slice_z_mm=z_mm, **fields)


def between_slices(
    stored: NDArray[np.float32], positions_mm: NDArray[np.float64], wanted_mm: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Slices ``stored`` at ascending ``positions_mm``, interpolated linearly to the places ``wanted_mm``."""
    at = np.interp(wanted_mm, positions_mm, np.arange(len(positions_mm)))
    lower = np.minimum(at.astype(int), len(positions_mm) - 2)
    made = np.empty((len(at), *stored.shape[1:]), dtype=np.float32)
    for k, (below, share) in enumerate(zip(lower, at - lower, strict=True)):
        made[k] = stored[below] * np.float32(1 - share) + stored[below + 1] * np.float32(share)
    return made
