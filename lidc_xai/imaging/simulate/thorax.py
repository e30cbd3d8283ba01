"""The chest around the nodules: its size and place, and the search for one whose lungs hold the nodules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.simulate.grid import IMAGE_PIXELS, Floats
from lidc_xai.imaging.simulate.tissues import Tissues

CHESTS = 120
"""Chests that are tried at most."""
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

    def lungs(self, points: Floats) -> Floats:
        """Signed distance to the lungs (mm, negative inside) of points (n, 3)."""
        return Tissues(self, *points.T).lungs


def fit_thorax(
    centres_mm: Sequence[NDArray[np.float64]], radii_mm: Sequence[float], ends_mm: tuple[float, float],
    spacing_mm: float, rng: np.random.Generator,
) -> Thorax:  # fmt: skip
    """A chest for a field of view of 512 x ``spacing_mm`` in which every ball (centre, radius) lies in a lung.

    Chests are drawn around the average one, further and further out, until one covers the nodules with the clearance
    that was drawn for each (some touch the pleura, most do not). What the best one still leaves outside becomes a bulge
    of the lung. ``ends_mm``: z of the lowest and the highest slice.
    """
    centres = np.asarray(centres_mm, float).reshape(-1, 3)
    clearance = 0.6 * np.asarray(radii_mm, float) + rng.uniform(-0.5, 12.0, len(centres))
    width = np.clip(IMAGE_PIXELS * spacing_mm, 270.0, 420.0)
    base = Thorax(
        (0.0, 0.03 * width), (56 + 0.185 * width, 54 + 0.105 * width), ends_mm[1], ends_mm[0],
        (float(rng.uniform(38, 52)), float(rng.uniform(28, 38))), float(rng.uniform()), float(rng.uniform(0.85, 1.1)),
        np.zeros((0, 4)), _waves(rng),
    )  # fmt: skip
    best, least = base, np.inf
    for n in range(CHESTS):
        tried = _varied(base, rng.normal(size=6) * (0.5 + 1.5 * n / CHESTS))
        short = np.maximum(tried.lungs(centres) + clearance, 0.0)
        if short.sum() < least:
            best, least = tried, float(short.sum())
        if not short.any():
            break
    outside = best.lungs(centres) > -0.3 * np.asarray(radii_mm)
    return replace(best, bulges=np.column_stack([centres, np.asarray(radii_mm) + 6.0])[outside])


def _waves(rng: np.random.Generator) -> NDArray[np.float64]:
    """Displacements of a few mm with wave lengths of 8 to 16 cm."""
    direction = rng.normal(size=(4, 3)) * (1, 1, 0.5)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * (2 * np.pi / rng.uniform(80, 160, (4, 1)))
    return np.column_stack([vectors, rng.uniform(0, 2 * np.pi, 4), rng.normal(size=(4, 2)) * 2.2])


def _varied(base: Thorax, by: NDArray[np.float64]) -> Thorax:
    """A chest moved, stretched and shifted along the body by ``by`` (6,) standard deviations."""
    scale = 1 + 0.06 * np.clip(by[2:4], -3, 3)
    return replace(
        base,
        centre=(base.centre[0] + 7 * by[0], base.centre[1] + 9 * by[1]),
        half=(base.half[0] * scale[0], base.half[1] * scale[1]),
        top_mm=base.top_mm + 0.03 * base.length_mm * by[4],
        bottom_mm=base.bottom_mm + 0.03 * base.length_mm * by[5],
    )
