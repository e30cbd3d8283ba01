"""How well could any model do? The readers' own disagreement as a bound.

One-way random effects, nodules with k ≥ 2 readers: MSW = mean within-nodule variance (weighted by k − 1), MSB the
between-nodule mean square, ICC(1,1) = (MSB − MSW) / (MSB + (k₀ − 1) MSW) with k₀ the balanced number of readers. A
model is scored against the mean of k readers, whose error variance is MSW / k: floor of MSE(z) = mean(MSW / k) /
var(reader means).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReaderNoise:
    """Agreement of single readers, ICC(1,1), and the MSE(z) that a model without any error of its own would have."""

    icc: float
    floor_mse_z: float
    nodules: int


def reader_noise(means: np.ndarray, deviations: np.ndarray, readers: np.ndarray) -> ReaderNoise:
    """From each nodule's mean over readers, sample standard deviation (n − 1) and number of readers, all (n,)."""
    there = np.isfinite(means) & np.isfinite(deviations) & (readers >= 2)
    x, s, k = means[there], deviations[there], readers[there].astype(np.float64)
    n, total = len(x), k.sum()
    if n < 2:
        return ReaderNoise(np.nan, np.nan, n)
    within = ((k - 1) * s**2).sum() / (k - 1).sum()
    grand = (k * x).sum() / total
    between = (k * (x - grand) ** 2).sum() / (n - 1)
    balanced = (total - (k**2).sum() / total) / (n - 1)
    spread = x.var()
    with np.errstate(invalid="ignore", divide="ignore"):
        icc = (between - within) / (between + (balanced - 1) * within)
        floor = (within / k).mean() / spread
    return ReaderNoise(float(icc), float(floor), n)
