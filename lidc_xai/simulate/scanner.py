"""What the scanner adds: blur in the plane (its point spread) and noise with a kernel's spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from lidc_xai.simulate.grid import Floats, Grid, stream


@dataclass(frozen=True)
class Scanner:
    """``blur_mm``: SD of the point spread in the plane. ``noise_hu``: SD in the middle of the body."""

    blur_mm: float
    noise_hu: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """A scanner of LIDC's time with a soft-tissue kernel."""
    return Scanner(float(rng.uniform(0.55, 0.68)), float(rng.uniform(13.5, 18.5)))


def blur(image: Floats, grid: Grid, scanner: Scanner) -> Floats:
    """One slice (rows, columns) after the point spread."""
    return gaussian_filter(image, scanner.blur_mm / grid.spacing_mm, mode="nearest", truncate=3.0)


def noise(grid: Grid, scanner: Scanner, slice_index: int, share: Floats, seed: int, name: str) -> NDArray[np.float32]:
    """(rows, columns) noise in HU. ``share``: its SD relative to the middle of the body.

    Spectrum (f + 0.06) · exp(-(f / 0.42)²) of the squared amplitude, f in cycles per mm: fine grain, as a soft-tissue
    kernel leaves it. Neighbouring slices share a part of it where they overlap.
    """
    step = abs(grid.z_mm[1] - grid.z_mm[0]) if len(grid.z_mm) > 1 else grid.thickness_mm
    common = float(np.clip(1 - step / max(grid.thickness_mm, 1e-3), 0.1, 0.6))
    shape = (grid.rows, grid.columns)
    white = [
        stream(seed, name, "noise", slice_index + 100_000 + n).standard_normal(shape, dtype=np.float32) for n in (0, 1)
    ]
    mixed = (white[0] + common * white[1]) / np.sqrt(1 + common**2)
    f = np.hypot(fft.fftfreq(shape[0], grid.spacing_mm)[:, None], fft.rfftfreq(shape[1], grid.spacing_mm)[None]).astype(
        np.float32
    )
    amplitude = np.sqrt((f + 0.06) * np.exp(-((f / 0.42) ** 2)))
    weights = np.where((np.arange(f.shape[1]) > 0) & (np.arange(f.shape[1]) * 2 != shape[1]), 2.0, 1.0)
    amplitude /= np.sqrt((amplitude**2 * weights).sum() / np.prod(shape))
    grain = fft.irfft2(fft.rfft2(mixed) * amplitude, s=shape)
    return (scanner.noise_hu * share * grain).astype(np.float32)
