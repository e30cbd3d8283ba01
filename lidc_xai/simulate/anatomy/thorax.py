"""Size and place of one chest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HILUM_U = 0.42
"""Height along the body where the large vessels enter the lungs."""


@dataclass(frozen=True, eq=False)
class Thorax:
    """Position and size of one chest.

    ``centre``: (x, y) of the rib cage. ``half``: half width and half depth of its inside. ``top_mm``, ``bottom_mm``: z
    of the scan's ends. ``wall``: thickness of the chest wall (side, front and back). ``bulges``: (n, 4) x, y, z, radius
    of balls that are lung whatever the template says. ``rib_phase``: 0 to 1. ``heart``: size, 1 is average.
    ``waves``: (n, 6) wave vector (3), phase, and displacement in x and y, in mm: no chest is symmetric.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    top_mm: float
    bottom_mm: float
    wall: tuple[float, float]
    rib_phase: float
    heart: float
    bulges: NDArray[np.float64]
    waves: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Distance from the bottom to the top of the scan."""
        return max(self.top_mm - self.bottom_mm, 1.0)

    @property
    def hilum_z(self) -> float:
        """z where the large vessels enter the lungs."""
        return self.top_mm - HILUM_U * self.length_mm
