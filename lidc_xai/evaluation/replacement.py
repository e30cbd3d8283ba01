"""What a removed pixel becomes: the blurred image, the lung around the nodule, the image's mean, or zero.

Blur: one Gaussian of σ = 14 px at 224 (σ scales with √(H·W)/224), kernel 2⌈3σ⌉ + 1, mirrored at the edge without
repeating it, no wider than the mirror allows. On a 32 mm crop that is 2 mm and leaves a nodule standing: give
``sigma_mm`` there, or ``replacement="lung"``.

Lung: L = G∗(x·m) / G∗m with m the parenchyma (outside the nodule), and beside it noise of the parenchyma's own
spectrum: the residual (x − L)·m with random phases, scaled to its standard deviation. What is replaced then looks like
lung without the nodule; the seed fixes the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.forward import Forward, Precision
from lidc_xai.evaluation.maps import resampled

ReplacementName = Literal["blur", "lung", "mean", "zero"]
SIGMA_AT_224 = 14.0


@dataclass(frozen=True)
class Replacement:
    """How removed pixels are filled.

    ``sigma``: px at 224, or ``sigma_mm`` with ``spacing_mm`` (mm per pixel of the model's input, rows and columns).
    ``masks``: (B,h,w) bool, the nodule, for "lung" (any grid; it is read at the pixel centres). ``parenchyma``: (B,h,w)
    bool, pixels known to be lung; without it, or where it is empty, those outside the nodule (grown by one σ) that are
    no brighter than their own median by three robust standard deviations. ``seed``: of the lung's noise.
    """

    replacement: ReplacementName = "blur"
    sigma: float = SIGMA_AT_224
    sigma_mm: float | None = None
    spacing_mm: float | tuple[float, float] | None = None
    masks: Tensor | None = None
    parenchyma: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replacement not in ("blur", "lung", "mean", "zero"):
            raise UsageError(f"replacement is 'blur', 'lung', 'mean' or 'zero', not {self.replacement!r}")
        if self.sigma_mm is not None and self.spacing_mm is None:
            raise UsageError("sigma_mm needs spacing_mm: the mm per pixel of the model's input")
        if (self.sigma_mm if self.sigma_mm is not None else self.sigma) <= 0:
            raise UsageError("sigma must be above 0")
        if self.replacement == "lung" and self.masks is None:
            raise UsageError("replacement='lung' needs masks: the nodule's (B, h, w)")

    def sigma_px(self, size: tuple[int, int]) -> tuple[float, float]:
        """σ along rows and columns in pixels of an image of ``size``."""
        if self.sigma_mm is not None:
            spacing = self.spacing_mm
            rows, columns = spacing if isinstance(spacing, tuple) else (spacing, spacing)
            assert rows is not None
            assert columns is not None
            return self.sigma_mm / rows, self.sigma_mm / columns
        scaled = self.sigma * (size[0] * size[1]) ** 0.5 / 224
        return scaled, scaled

    def of(self, images: Tensor) -> Tensor:
        """(B,C,H,W): what every pixel of ``images`` becomes when it is removed."""
        if self.replacement == "zero":
            return torch.zeros_like(images)
        if self.replacement == "mean":
            return images.mean((-2, -1), keepdim=True).expand_as(images)
        size = (images.shape[-2], images.shape[-1])
        if self.replacement == "blur":
            return gaussian_blur(images, self.sigma_px(size))
        return self._lung(images, size)

    def _lung(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        nodule = self._mask(self.masks, images, size)
        sigma = self.sigma_px(size)
        if self.parenchyma is None:
            lung = _likely_lung(images, gaussian_blur(nodule, sigma) > 0.02)
        else:
            lung = self._mask(self.parenchyma, images, size).bool() & ~nodule.bool()
            none = ~lung.flatten(1).any(1).view(-1, 1, 1, 1)
            lung |= none & _likely_lung(images, nodule.bool())
        weights = lung.to(images.dtype)
        smooth = _smooth_inside(images, weights, sigma)
        return smooth + _noise_like((images - smooth) * weights, weights, self.seed)

    @staticmethod
    def _mask(mask: Tensor | None, images: Tensor, size: tuple[int, int]) -> Tensor:
        assert mask is not None
        mask = torch.as_tensor(mask)
        if mask.ndim != 3 or len(mask) != len(images):
            raise DataError(f"masks are (B, h, w) with one for each of {len(images)} images, got {tuple(mask.shape)}")
        return resampled(mask.to(images.device, images.dtype), size)[:, None]


@dataclass(frozen=True, kw_only=True)
class Perturbing(Replacement):
    """Options that the perturbing metrics share: how pixels are removed and the model is run.

    ``replacement``: "blur" | "lung" | "mean" | "zero", with its fields (see ``Replacement``). ``seed``: also of ties,
    boxes and sets, shared by all methods. ``max_batch``: images per pass. ``precision``: of the passes ("float32" is
    the model's own; "bfloat16" and "float16" are autocast).
    """

    max_batch: int = 64
    precision: Precision = "float32"

    def forward(self, model: nn.Module) -> Forward:
        return Forward(model, self.max_batch, self.precision)


P = TypeVar("P", bound=Perturbing)


def options_as(kind: type[P], given: Mapping[str, Any]) -> P:
    """``kind`` from keyword arguments; ``TypeError`` that lists the valid names for one that it does not have."""
    valid = [item.name for item in fields(kind)]
    for name in given:
        if name not in valid:
            raise TypeError(f"unknown option {name!r}; valid options: {', '.join(valid)}")
    return kind(**given)


def gaussian_blur(images: Tensor, sigma: tuple[float, float], radius: int | None = None) -> Tensor:
    """(B,C,H,W) blurred with σ (rows, columns) in pixels; kernel 2·radius + 1 (⌈3σ⌉ by default), mirrored edges."""
    for axis, width in ((-2, sigma[0]), (-1, sigma[1])):
        reach = min(ceil(3 * width) if radius is None else radius, images.shape[axis] - 1)
        if reach < 1:
            continue
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (at / width) ** 2)
        kernel = (kernel / kernel.sum()).to(images)
        shape, pad = ((-1, 1), (0, 0, reach, reach)) if axis == -2 else ((1, -1), (reach, reach, 0, 0))
        channels = images.shape[1]
        padded = nn.functional.pad(images, pad, mode="reflect")
        images = nn.functional.conv2d(padded, kernel.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
    return images


def _likely_lung(images: Tensor, nodule: Tensor) -> Tensor:
    """(B,1,H,W) bool: outside the nodule and not much brighter than what is there (vessels and the wall are)."""
    grey = images.mean(1, keepdim=True)
    outside = grey.masked_fill(nodule, torch.nan).flatten(1)
    middle = outside.nanmedian(1, keepdim=True).values
    spread = 1.4826 * (outside - middle).abs().nanmedian(1, keepdim=True).values
    limit = (middle + 3 * spread).view(-1, 1, 1, 1)
    lung = (grey <= limit) & ~nodule
    # A nodule that fills the image leaves no lung: then the whole image stands for itself.
    none = ~lung.flatten(1).any(1).view(-1, 1, 1, 1)
    return lung | none


def _smooth_inside(images: Tensor, weights: Tensor, sigma: tuple[float, float]) -> Tensor:
    total = weights.sum((-2, -1), keepdim=True).clamp_min(1)
    mean = (images * weights).sum((-2, -1), keepdim=True) / total
    reach = gaussian_blur(weights, sigma)
    # Far from any parenchyma the smooth field falls back to the parenchyma's mean, without a step.
    floor = 1e-3
    return (gaussian_blur(images * weights, sigma) + floor * mean) / (reach + floor)


def _noise_like(residual: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Noise (B,C,H,W) with the residual's spectrum and its standard deviation inside the weights."""
    size = residual.shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(size, generator=generator, dtype=torch.float64).to(residual)
    phases = torch.fft.rfft2(white)
    spectrum = torch.fft.rfft2(residual).abs() * (phases / phases.abs().clamp_min(1e-12))
    noise = torch.fft.irfft2(spectrum, s=size)
    noise = noise - noise.mean((-2, -1), keepdim=True)
    count = weights.sum((-2, -1), keepdim=True).clamp_min(1)
    wanted = ((residual**2).sum((-2, -1), keepdim=True) / count).sqrt()
    got: Tensor = (noise**2).mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)
    scaled: Tensor = noise * (wanted / got)
    return scaled


def inpainted(images: Tensor, gone: Tensor) -> Tensor:
    """(n,C,H,W) with the pixels ``gone`` (n,1,H,W) filled from those that are left, push-pull (Gortler et al. 1996):
    means of ever larger cells of known pixels, and each gap filled from the finest cell that knows any.

    Where nothing is left, the image's own mean. Unlike the other fills it depends on what is removed.

    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    >>> hole = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    >>> hole[..., 4] = True
    >>> 3 < float(inpainted(ramp, hole)[0, 0, 0, 4]) < 6
    True
    """
    weight = (~gone).to(images)
    levels = [(images * weight, weight)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(tuple(functional.avg_pool2d(one, 2, ceil_mode=True) for one in levels[-1]))  # type: ignore[arg-type]
    filled = images.mean((2, 3), keepdim=True)
    for values, known in reversed(levels):
        coarse = functional.interpolate(filled, values.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(known > 0, values / known.clamp(min=1e-12), coarse)
    return torch.where(gone, filled, images)
