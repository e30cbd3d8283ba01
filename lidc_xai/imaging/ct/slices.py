"""A CTVolume from axial slices in memory, at any heights: for simulated CT and for the PNG edition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.ct.volume import CTVolume

EVEN_MM = 0.01
"""Slices this close to an even grid are taken as even."""


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
    array = stored if even else _on_even_slices(stored, z_mm, step)
    return CTVolume(array, affine, stored=stored, positions_mm=z_mm, slice_z_mm=z_mm, **fields)


def _on_even_slices(stored: NDArray[np.float32], z_mm: NDArray[np.float64], step: float) -> NDArray[np.float32]:
    at = np.interp(np.arange(z_mm[0], z_mm[-1] + 1e-6, step), z_mm, np.arange(len(z_mm)))
    lower = np.minimum(at.astype(int), len(z_mm) - 2)
    t = (at - lower).astype(np.float32)[:, None, None]
    return (1 - t) * stored[lower] + t * stored[lower + 1]
