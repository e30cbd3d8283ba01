"""What a chest CT looks like in numbers, to hold a simulated one against a real one.

Modes of lung and muscle (HU), noise in homogeneous tissue (SD in HU), sharpness of the lung's border (10 to 90 % rise
in mm), and how much of the lung is vessel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lidc_xai.imaging.ct.volume import CTVolume

WINDOW_MM = 8.0
_PROFILE_MM = np.arange(-6.0, 6.01, 0.1)


@dataclass(frozen=True)
class Appearance:
    """``lung_mode``, ``muscle_mode``: most frequent HU from -980 to -700 and from 0 to 120. ``muscle_noise``,
    ``lung_noise``: SD in HU inside the 5 % calmest windows of 8 mm in each. ``edge_mm``: median distance over which the
    lung's border rises from 10 to 90 %. ``vessel_share``: share of the lung denser than -700 HU, its border left out.
    """

    lung_mode: float
    muscle_mode: float
    muscle_noise: float
    lung_noise: float
    edge_mm: float
    vessel_share: float


REAL = Appearance(
    lung_mode=-893.0, muscle_mode=53.0, muscle_noise=12.4, lung_noise=21.0, edge_mm=1.9, vessel_share=0.059
)  # fmt: skip
"""Measured with :func:`appearance` on 16 slices of LIDC-IDRI-0001 (Armato et al., Data From LIDC-IDRI, The Cancer
Imaging Archive, 2015, doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0)."""

LIMITS = {"lung_mode": 40.0, "muscle_mode": 15.0, "muscle_noise": 0.30, "lung_noise": 0.30, "edge_mm": 0.25}
"""How far a simulated CT may be from a real one: the modes in HU, the others as a share of the real value. The share of
vessels differs from scan to scan (0.037 in LIDC-IDRI-0002) and is shown without a limit."""


def outside_limits(simulated: Appearance, real: Appearance = REAL) -> list[str]:
    """What of ``found`` lies further from ``real`` than :data:`LIMITS` allow, in words; empty where all is well."""
    wrong = []
    for name, limit in LIMITS.items():
        value, wanted = getattr(simulated, name), getattr(real, name)
        allowed = limit if name.endswith("_mode") else limit * wanted
        if not abs(value - wanted) <= allowed:
            wrong.append(f"{name} is {value:.1f}, further than {allowed:.1f} from the real {wanted:.1f}")
    return wrong


def appearance(ct: CTVolume) -> Appearance:
    """Measure a CT (every second stored slice)."""
    spacing = float(np.linalg.norm(ct.affine[:3, 0]))
    slices = ct.stored[::2]
    lungs = [_lungs(image, spacing) for image in slices]
    values = np.concatenate([image[lung] for image, lung in zip(slices, lungs, strict=True)] or [np.empty(0)])
    inner = np.concatenate(
        [
            image[ndimage.binary_erosion(lung, iterations=round(6 / spacing))]
            for image, lung in zip(slices, lungs, strict=True)
        ]
    )
    rises = [rise for image, lung in zip(slices, lungs, strict=True) for rise in _rises(image, lung, spacing)]
    return Appearance(
        lung_mode=_mode(values, -980, -700),
        muscle_mode=_mode(slices, 0, 120),
        muscle_noise=_calm_sd(slices, (20, 90), spacing),
        lung_noise=_calm_sd(slices, (-930, -800), spacing),
        edge_mm=float(np.median(rises)) if rises else float("nan"),
        vessel_share=float((inner > -700).mean()) if len(inner) else float("nan"),
    )


def _mode(values: NDArray[np.float32], low: float, high: float) -> float:
    counts, edges = np.histogram(values, bins=np.arange(low, high + 1, 2.0))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 4.0)
    return float(edges[smooth.argmax()] + 1)


def _calm_sd(slices: NDArray[np.float32], between: tuple[float, float], spacing: float) -> float:
    size = round(WINDOW_MM / spacing)
    calm: list[NDArray[np.float64]] = []
    for image in slices.astype(np.float64):
        mean = ndimage.uniform_filter(image, size)
        variance = ndimage.uniform_filter(image**2, size) - mean**2
        calm.append(np.sqrt(np.maximum(variance, 0))[(mean > between[0]) & (mean < between[1])])
    values = np.concatenate(calm)
    return float(np.percentile(values, 5)) if len(values) else float("nan")


def _lungs(image: NDArray[np.float32], spacing: float) -> NDArray[np.bool_]:
    """Regions of lung density that do not touch the image's border, vessels filled in."""
    smooth = ndimage.gaussian_filter(image, 1.0 / spacing)
    labels, n = ndimage.label(smooth < -500)
    if n == 0:
        return np.zeros(image.shape, bool)
    outer = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    size = np.bincount(labels.ravel()) * spacing**2
    means = ndimage.mean(image, labels, np.arange(n + 1))
    kept = [k for k in range(1, n + 1) if k not in outer and size[k] > 2000 and means[k] > -930]
    return ndimage.binary_fill_holes(np.isin(labels, kept))


def _rises(image: NDArray[np.float32], lung: NDArray[np.bool_], spacing: float) -> Iterator[float]:
    """10 to 90 % distances of profiles across the border, where lung and soft tissue are calm on their sides."""
    smooth = ndimage.gaussian_filter(image, 1.0 / spacing)
    down, right = np.gradient(smooth)
    steep = np.hypot(down, right)
    rows, columns = np.nonzero(lung & ~ndimage.binary_erosion(lung))
    for row, column in list(zip(rows, columns, strict=True))[::9]:
        if steep[row, column] < 40:
            continue
        normal = np.array([down[row, column], right[row, column]]) / steep[row, column]
        at = np.array([[row], [column]]) + normal[:, None] * _PROFILE_MM / spacing
        profile = ndimage.map_coordinates(image, at, order=1, mode="nearest")
        low, high = np.median(profile[:20]), np.median(profile[-20:])
        calm = profile[:25].std() < 45 and profile[-25:].std() < 60
        if not (calm and -970 < low < -760 and -130 < high < 150):
            continue
        share = (profile - low) / (high - low)
        top = int(np.argmax(share > 0.9))
        below = np.flatnonzero(share[:top] < 0.1)
        if len(below):
            yield float(_PROFILE_MM[top] - _PROFILE_MM[below[-1]])
