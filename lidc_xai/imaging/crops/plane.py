"""What one cut plane is: its picture, and where it lies in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
