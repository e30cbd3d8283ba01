"""What the header of a volume file says, the same for every format, and whether it can be true."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lidc_xai.bounded import unpacked_limit
from lidc_xai.errors import DataError

LEAST_SPACING_MM, MOST_SPACING_MM = 0.01, 50.0
"""No scanner measures finer, and no volume of a body is coarser."""
MOST_ORIGIN_MM = 1e5
_SKEWED = 0.1
Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text"]


@dataclass(frozen=True)
class Segment:
    """One named structure of a label volume: voxels of ``label`` in ``layer``."""

    name: str
    label: int
    layer: int = 0


@dataclass
class VolumeHeader:
    """Everything needed to read the voxels and to place them.

    ``sizes``: fastest axis first. ``dtype``: as stored, with its byte order. ``affine``: (i, j, k, 1) -> LPS mm of the
    spatial axes. ``data``: the file with the voxels, from byte ``offset`` on (of the unpacked bytes where the whole
    file is packed). ``scale``: slope and intercept, if they change anything. ``list_axis``: which of ``sizes`` counts
    values of one voxel, if one does.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype
    affine: NDArray[np.float64]
    data: Path
    offset: int
    encoding: Encoding = "raw"
    scale: tuple[float, float] | None = None
    list_axis: int | None = None
    segments: list[Segment] = field(default_factory=list)
    issues: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of stored values."""
        return prod(self.sizes)

    @property
    def bytes(self) -> int:
        """How many bytes they take, unpacked."""
        return self.count * self.dtype.itemsize

    def skip(self, count: int, field: str) -> None:
        """Leave out ``count`` bytes before the voxels; -1: all that there are. ValueError where that cannot be."""
        if count < -1 or (count and self.encoding != "raw"):
            raise ValueError(f"{field} is {count}")
        if count == -1 and self.data.is_file():
            self.offset = max(0, self.data.stat().st_size - self.bytes)
        elif count > 0:
            self.offset += count

    def check_sizes(self, path: Path) -> None:
        """Refuse what the file with the voxels cannot hold. DataError naming ``path``."""
        if any(size < 1 for size in self.sizes):
            raise DataError(f"{path}: cannot be read as an image (its sizes are {self.sizes})")
        try:
            held = self.data.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: its voxels are in {self.data.name}, which {_missing(error)}") from error
        if self.encoding == "raw" and self.offset + self.bytes > held:
            left = max(0, held - self.offset)
            raise DataError(f"{path}: cannot be read as an image (has {left} of {self.bytes} bytes of voxels)")
        least = self.count if self.encoding == "text" else self.offset + self.bytes
        if least > (held if self.encoding == "text" else unpacked_limit(held)):
            words = f"{self.sizes} voxels of {self.dtype.itemsize} bytes in a file of {held:,} bytes"
            raise DataError(f"{path}: cannot be read as an image (its header says {words})")


def check_affine(affine: NDArray[np.float64], where: object) -> None:
    """Refuse axes that no scan of a body has. DataError naming ``where`` and what is odd.

    >>> check_affine(np.diag([0.7, 0.7, 1000.0, 1.0]), "ct.nii")
    Traceback (most recent call last):
    lidc_xai.errors.DataError: ct.nii: voxel spacing 0.7 x 0.7 x 1000 mm is not plausible (0.01 to 50 mm)
    """
    if not np.isfinite(affine).all():
        raise DataError(f"{where}: its geometry has values that are no numbers")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < LEAST_SPACING_MM or spacing.max() > MOST_SPACING_MM:
        words = " x ".join(f"{value:.4g}" for value in spacing)
        limits = f"({LEAST_SPACING_MM:g} to {MOST_SPACING_MM:g} mm)"
        raise DataError(f"{where}: voxel spacing {words} mm is not plausible {limits}")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _SKEWED:
        raise DataError(f"{where}: its axes do not span a volume")
    if np.abs(affine[:3, 3]).max() > MOST_ORIGIN_MM:
        raise DataError(f"{where}: its origin {affine[:3, 3].tolist()} mm is not plausible")


def data_beside(path: Path, name: str) -> Path:
    """The file ``name`` with the voxels of the header ``path``: in its folder or below, nowhere else."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise DataError(f"{path}: names the voxels' file {name!r}; it must lie in the header's folder")
    return path.parent / name


def _missing(error: OSError) -> str:
    return "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
