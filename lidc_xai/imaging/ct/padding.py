"""Pixels that were never measured: the declared padding value becomes air where that can be, and nowhere else.

A padding value that means air or less (-1000 HU) is air wherever it stands. One that a tissue has, too, is taken as
padding only where it reaches a corner of the picture, outside the round field of view: inside the body it is tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lidc_xai.imaging.ct.dicom_headers import SliceHeader
from lidc_xai.imaging.ct.volume import AIR_HU


@dataclass
class Padding:
    """Finds the padding of slice after slice, and counts it."""

    filled: int = 0
    kept: int = 0
    kept_hu: float = 0.0

    def outside(self, stored: NDArray[Any], header: SliceHeader) -> NDArray[np.bool_] | None:
        """Which of the stored values (rows, columns) are padding; None where none is declared."""
        if header.padding is None:
            return None
        low, high = header.padding
        # Whole numbers are compared as such: with a fraction the whole slice would become floats first.
        first, last = math.ceil(low), math.floor(high)
        declared = stored == first if first == last else (stored >= first) & (stored <= last)
        slope, intercept = header.slope or 1.0, header.intercept or 0.0
        highest = max(low * slope, high * slope) + intercept
        if highest <= AIR_HU:
            self.filled += int(np.count_nonzero(declared))
            return declared
        outside = _from_corners(declared)
        filled = int(np.count_nonzero(outside))
        self.filled += filled
        self.kept += int(np.count_nonzero(declared)) - filled
        self.kept_hu = highest
        return outside

    def remarks(self, pixels: int) -> list[str]:
        """What was found in ``pixels`` pixels, in words."""
        words = []
        if self.filled:
            words.append(f"padding value in {self.filled / pixels:.1%} of pixels read as {AIR_HU:.0f} HU")
        if self.kept:
            words.append(
                f"declared padding value {self.kept_hu:.0f} HU kept in {self.kept / pixels:.1%} of pixels: "
                "a tissue's value, not at the picture's corners"
            )
        return words


def _from_corners(declared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(declared)
    corners = np.unique(labels[[0, 0, -1, -1], [0, -1, 0, -1]])
    return np.isin(labels, corners[corners > 0])
