"""The voxels that are simulated: a window of a series' stored pixel grid, in mm, and the random streams of a case.

The annotation database has no x and y origin. Here the middle of the image is x = y = 0; z is the recorded one.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

IMAGE_PIXELS = 512
"""Rows and columns of every LIDC-IDRI CT."""

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Grid:
    """Columns ``i0 …``, rows ``j0 …`` and slices ``z_mm`` of a series; ``shape`` is (slices, rows, columns)."""

    spacing_mm: float
    thickness_mm: float
    z_mm: NDArray[np.float64]
    first_slice: int
    i0: int
    j0: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return len(self.z_mm), self.rows, self.columns

    @property
    def origin_mm(self) -> float:
        """x of stored column 0, which is also y of stored row 0."""
        return -(IMAGE_PIXELS - 1) / 2 * self.spacing_mm

    @property
    def x_mm(self) -> Floats:
        """x of the columns (columns,), towards the patient's left."""
        return (self.origin_mm + (self.i0 + np.arange(self.columns)) * self.spacing_mm).astype(np.float32)

    @property
    def y_mm(self) -> Floats:
        """y of the rows (rows,), towards the patient's back."""
        return (self.origin_mm + (self.j0 + np.arange(self.rows)) * self.spacing_mm).astype(np.float32)

    @property
    def corners_mm(self) -> tuple[Floats, Floats]:
        """(x, y, z) of the first and of the last voxel."""
        low, high = ([axis[end] for axis in (self.x_mm, self.y_mm, self.z_mm)] for end in (0, -1))
        return np.array(low), np.array(high)

    @property
    def sub_offsets_mm(self) -> Floats:
        """Offsets in z that sample one slice's thickness, at most 1 mm apart: their mean is the partial volume."""
        n = max(1, round(self.thickness_mm))
        return ((np.arange(n) + 0.5) / n - 0.5) * self.thickness_mm

    @property
    def x0_mm(self) -> float:
        """x of the window's first column, in double precision."""
        return self.origin_mm + self.i0 * self.spacing_mm

    @property
    def y0_mm(self) -> float:
        """y of the window's first row, in double precision."""
        return self.origin_mm + self.j0 * self.spacing_mm

    def part(self, slices: slice, rows: slice, columns: slice) -> Grid:
        """A smaller window of this one (slices with explicit start and stop)."""
        return Grid(
            self.spacing_mm, self.thickness_mm, self.z_mm[slices], self.first_slice + slices.start,
            self.i0 + columns.start, self.j0 + rows.start, rows.stop - rows.start, columns.stop - columns.start,
        )  # fmt: skip

    def box(self, low: Floats, high: Floats) -> tuple[slice, slice, slice] | None:
        """Slices of this window that meet the box from ``low`` to ``high`` (x, y, z in mm); None where none does."""
        half = self.thickness_mm / 2
        touched = np.flatnonzero((self.z_mm + half >= low[2]) & (self.z_mm - half <= high[2]))
        i = np.clip([np.floor((low[0] - self.x0_mm) / self.spacing_mm), (high[0] - self.x0_mm) / self.spacing_mm + 2],
                    0, self.columns).astype(int)  # fmt: skip
        j = np.clip([np.floor((low[1] - self.y0_mm) / self.spacing_mm), (high[1] - self.y0_mm) / self.spacing_mm + 2],
                    0, self.rows).astype(int)  # fmt: skip
        if not len(touched) or i[0] == i[1] or j[0] == j[1]:
            return None
        return slice(int(touched[0]), int(touched[-1]) + 1), slice(int(j[0]), int(j[1])), slice(int(i[0]), int(i[1]))


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The random numbers of one part of one case: the same for the same names, whatever else is drawn before."""
    return np.random.default_rng([seed & 0xFFFFFFFF, *(n if isinstance(n, int) else crc32(n.encode()) for n in names)])
