"""Grey levels of the PNG edition back to HU, as far as can be.

Every picture was scaled by its own minimum and maximum: HU = slope · grey + intercept, with two unknowns a picture.
1. Neighbouring pictures show nearly the same anatomy: a robust symmetric line through their pixel pairs links their
   grey levels. One picture's two unknowns are left for the whole stack.
2. These two are those that make the stack's histogram likeliest under a mixture of what a chest CT consists of (lung,
   fat, muscle, blood, bone; shares unknown, EM), times what is known of a picture's darkest value (-1024 HU where many
   pixels share it, else the noise's lowest value in lung or air) and of its range.
Pictures with the scanner's padding (a block of zeros below everything else) have their zeros left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

Floats = NDArray[np.float64]

# mean HU, SD, prior weight of its share
_TISSUES = np.array(
    [
        (-1000, 14, 1), (-915, 26, 1), (-885, 26, 2), (-855, 28, 2), (-820, 35, 1), (-760, 55, 1),  # air, lung
        (-105, 18, 2), (-75, 40, 1), (0, 30, 1), (35, 18, 2), (55, 18, 2), (110, 50, 0.5),  # fat, muscle
        (230, 90, 0.5), (500, 250, 0.5), (-450, 250, 1),  # blood with contrast agent, bone, edges
    ]
)  # fmt: skip
_MEAN, _SD, _WEIGHT = (_TISSUES / (1, 1, _TISSUES[:, 2].sum())).T.astype(np.float32)
_SHARE_PRIOR = 0.3
_PIXELS = 400.0
"""How many independent pixels a histogram counts for: neighbours are alike, and the mixture is only a model."""
_PADDING_HU = (-2048.0, -2000.0, -3024.0)
_LEVELS = np.arange(-100.0, 420.0)
LUNG_HU, SOFT_HU = -860.0, 45.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """HU of picture k = ``slope[k]`` · grey + ``intercept[k]``. ``padded[k]``: grey 0 means nothing was measured.

    ``lung_sd``, ``soft_sd``: expected error at lung and at soft tissue in HU (of :func:`calibrate`: the standard
    deviation under its model). ``calibrated``: by known lines, not estimated.
    """

    slope: Floats
    intercept: Floats
    padded: NDArray[np.bool_]
    lung_sd: float
    soft_sd: float
    calibrated: bool = False

    @property
    def rmse(self) -> float:
        """Expected root mean square error over lung and soft tissue, in HU."""
        return float(np.sqrt((self.lung_sd**2 + self.soft_sd**2) / 2))

    def to_hu(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """HU (n, rows, columns); padding becomes air."""
        hu = self.slope[:, None, None] * images + self.intercept[:, None, None]
        hu[self.padded[:, None, None] & (images == 0)] = -1000.0
        return np.clip(hu, -1024.0, 3071.0).astype(np.float32)


def calibrate(images: NDArray[np.uint8]) -> Calibration:
    """Estimate the HU of a stack of pictures (n, rows, columns), neighbours in z beside each other."""
    padded = np.array([_is_padded(image) for image in images])
    scale, shift = _links(images)
    levels, share = _histogram(images, padded, scale, shift)
    zero = -shift / scale  # grey 0 of every picture on the common scale
    fixed = zero[~padded].min() if (~padded).any() else zero.min()
    zeros = np.array([(image == 0).sum() for image in images])
    darkest = np.arange(-1048.0, -920.0, 12.0) if (~padded).any() else np.array(_PADDING_HU)
    slope = np.exp(np.arange(np.log(4.4), np.log(17.5), 0.035))

    def log_likelihood(a: Floats, c: Floats) -> Floats:
        total = _mixture(a, c, levels - fixed, share)
        prior = np.zeros(len(a))
        for s, z, count, pad in zip(scale, zero, zeros, padded, strict=True):
            prior += _log_slope(a / s) + (0.0 if pad else _log_darkest(a * (z - fixed) + c, int(count)))
        return total + prior * min(1.0, 4 / len(images))

    coarse = _search(log_likelihood, slope, darkest)
    a, c = coarse.best
    near = c + (np.arange(-9.0, 10.0, 3.0) if (~padded).any() else np.zeros(1))
    a, c = _search(log_likelihood, a * np.exp(np.arange(-0.03, 0.031, 0.01)), near).best
    lung_sd, soft_sd = (coarse.spread((hu - c) / a) for hu in (LUNG_HU, SOFT_HU))
    return Calibration(a / scale, a * (zero - fixed) + c, padded, lung_sd, soft_sd)


@dataclass(frozen=True, eq=False)
class _Search:
    """Slopes, darkest values and log-likelihoods of a whole grid."""

    a: Floats
    c: Floats
    value: Floats

    @property
    def best(self) -> tuple[float, float]:
        place = int(self.value.argmax())
        return float(self.a[place]), float(self.c[place])

    def spread(self, level: float) -> float:
        """SD in HU, over the grid weighted by likelihood, of what a grey level (from the darkest one) means."""
        weight = np.exp(self.value - self.value.max())
        hu = self.a * level + self.c
        mean = np.average(hu, weights=weight)
        return float(np.sqrt(np.average((hu - mean) ** 2, weights=weight)))


def _search(log_likelihood: Callable[[Floats, Floats], Floats], slopes: Floats, darkest: Floats) -> _Search:
    a, c = (values.ravel() for values in np.meshgrid(slopes, darkest, indexing="ij"))
    return _Search(a, c, log_likelihood(a, c))


def _is_padded(image: NDArray[np.uint8]) -> bool:
    counts = np.bincount(image.ravel(), minlength=256)
    return bool(counts[0] > 30 and counts[1:25].sum() < 0.2 * counts[0])


def _links(images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """grey of picture k = scale[k] · common grey + shift[k]; the middle picture is the common one."""
    n, middle = len(images), len(images) // 2
    smooth = [gaussian_filter(image.astype(float), 1.0)[::2, ::2].ravel() for image in images]
    scale, shift = np.ones(n), np.zeros(n)
    for k, neighbour in [*((k, k - 1) for k in range(middle + 1, n)), *((k, k + 1) for k in range(middle - 1, -1, -1))]:
        s, o = _line(smooth[neighbour], smooth[k])
        scale[k], shift[k] = s * scale[neighbour], s * shift[neighbour] + o
    return scale, shift


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """y = scale · x + shift by orthogonal regression, again and again without the pixels that are far from it."""
    (x0, x1), (y0, y1) = (np.quantile(values, (0.05, 0.95)) for values in (x, y))
    scale = (y1 - y0) / max(x1 - x0, 1.0) or 1.0
    shift, tolerance = y1 - scale * x1, 20.0
    for _ in range(12):
        away = np.abs(y - scale * x - shift) / np.sqrt(1 + scale**2)
        kept = away < tolerance
        if kept.sum() < 50:
            break
        mx, my = x[kept].mean(), y[kept].mean()
        xx, yy = ((x[kept] - mx) ** 2).mean(), ((y[kept] - my) ** 2).mean()
        xy = ((x[kept] - mx) * (y[kept] - my)).mean()
        if xy <= 0:
            break
        scale = (yy - xx + np.sqrt((yy - xx) ** 2 + 4 * xy**2)) / (2 * xy)
        shift = my - scale * mx
        tolerance = max(4.0, min(tolerance, 3.7 * float(np.median(away[kept])) + 2))
    return float(scale), float(shift)


def _histogram(
    images: NDArray[np.uint8], padded: NDArray[np.bool_], scale: Floats, shift: Floats
) -> tuple[Floats, Floats]:
    """Levels on the common grey scale and their share of all pixels."""
    counts = np.zeros(len(_LEVELS))
    for image, pad, s, o in zip(images, padded, scale, shift, strict=True):
        grey = np.bincount(image.ravel(), minlength=256).astype(float)
        grey[255] = 0.0  # the maximum: one pixel, or many of an implant
        if pad:
            grey[0] = 0.0
        at = np.clip(np.round((np.arange(256) - o) / s - _LEVELS[0]), 0, len(_LEVELS) - 1).astype(int)
        counts += np.bincount(at, weights=grey, minlength=len(_LEVELS))
    counts = gaussian_filter1d(counts, 0.7)
    seen = counts > 1e-5 * counts.sum()
    return _LEVELS[seen], (counts[seen] / counts[seen].sum()).astype(np.float32)


def _mixture(a: Floats, c: Floats, levels: Floats, share: Floats) -> Floats:
    """Log-likelihood (m,) of the histogram for m slopes and intercepts, the tissues' shares fitted to each (EM)."""
    hu = (a[:, None] * levels + c[:, None]).astype(np.float32)
    density = np.exp(-0.5 * ((hu[..., None] - _MEAN) / _SD) ** 2) / (_SD * np.float32(np.sqrt(2 * np.pi)))
    weight = np.tile(_WEIGHT, (len(a), 1))
    for _ in range(8):
        total = (density @ weight[:, :, None])[..., 0] + 1e-12
        weight = weight * ((share / total)[:, None, :] @ density)[:, 0] + _SHARE_PRIOR * _WEIGHT
        weight /= weight.sum(axis=1, keepdims=True)
    fit = np.log((density @ weight[:, :, None])[..., 0] + 1e-7) @ share
    return _PIXELS * (fit + np.log(a))


def _log_slope(a: Floats) -> Floats:
    """Range of a picture: most reach from air to rib (8.2 HU a step), some have metal or no bone at all."""
    usual = np.exp(-0.5 * (np.log(a / 8.2) / 0.13) ** 2) / 0.13
    wide = np.exp(-0.5 * (np.log(a / 9.5) / 0.4) ** 2) / 0.4
    return np.log(0.7 * usual + 0.3 * wide)


def _log_darkest(hu: Floats, zeros: int) -> Floats:
    """Darkest value of a picture: the scanner's floor of -1024 (likelier where many pixels share it), or noise."""
    floor = np.exp(-0.5 * ((hu + 1024) / 4) ** 2) / 4
    noise = np.exp(-0.5 * ((hu + 990) / 28) ** 2) / 28
    clipped = 0.9 if zeros > 8 else 0.25
    return np.log(clipped * floor + (1 - clipped) * noise + 1e-6)
