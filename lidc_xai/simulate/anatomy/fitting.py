"""The search for a chest whose lungs hold the nodules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lidc_xai.simulate.anatomy.thorax import Thorax
from lidc_xai.simulate.anatomy.tissues import lung_distance
from lidc_xai.simulate.grid import IMAGE_PIXELS

CHESTS = 120
"""Chests that are tried at most."""


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
        short = np.maximum(lung_distance(tried, centres) + clearance, 0.0)
        if short.sum() < least:
            best, least = tried, float(short.sum())
        if not short.any():
            break
    outside = lung_distance(best, centres) > -0.3 * np.asarray(radii_mm)
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
