"""Planes of a volume: the axial, coronal or sagittal slice of a (z, y, x) array with its own place in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidc_xai.errors import UsageError

VIEWS = ("axial", "coronal", "sagittal")

# Per view: the array axis that is cut; the columns of the affine that a plane's column, row and index follow.
_CUT_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
_AFFINE_COLUMNS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@dataclass(frozen=True)
class Plane:
    """One slice of a volume.

    ``image`` is (h, w) in stored order (coronal and sagittal: first row = lowest k); ``affine`` maps
    (column, row, 0, 1) to LPS mm; ``spacing_mm`` is (between rows, between columns).
    """

    view: str
    index: int
    image: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple[float, float]


def extract_plane(array: np.ndarray, affine: np.ndarray, view: str, index: int | None = None) -> Plane:
    """Cut one plane out of ``array`` (z, y, x) whose ``affine`` maps (i, j, k, 1) to LPS mm.

    ``index`` is the slice along the cut axis, ``None`` for the middle one (n // 2). The image is a view, not a copy.
    """
    if view not in VIEWS:
        raise UsageError(f"view {view!r} is not known; choose one of {', '.join(VIEWS)}")
    axis = _CUT_AXIS[view]
    count = array.shape[axis]
    if index is None:
        index = count // 2
    if not 0 <= index < count:
        raise UsageError(f"{view} plane {index} is outside the volume; it has planes 0 to {count - 1}")
    column, row, normal = _AFFINE_COLUMNS[view]
    affine = np.asarray(affine, dtype=np.float64)
    plane_affine = np.eye(4)
    plane_affine[:3, 0] = affine[:3, column]
    plane_affine[:3, 1] = affine[:3, row]
    plane_affine[:3, 2] = affine[:3, normal]
    plane_affine[:3, 3] = affine[:3, 3] + index * affine[:3, normal]
    spacing = (float(np.linalg.norm(affine[:3, row])), float(np.linalg.norm(affine[:3, column])))
    image = np.moveaxis(array, axis, 0)[index]
    return Plane(view, index, image, plane_affine, spacing)
