"""From Hounsfield units to what a network reads: which planes, clamped to a window, standardised, resized, repeated to
three channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from lidc_xai.errors import UsageError
from lidc_xai.imaging.planes import VIEWS

LARGEST_INPUT = 4096
"""Pixels along a side of the network's input; more is a damaged record, not a model of 32 mm crops."""


@dataclass(frozen=True)
class Preprocess:
    """Window (low, high) in HU, mean and standard deviation of HU after clamping, and side of the square input in
    pixels; ``views``, and in each of them the ``slices`` planes about the middle (odd), are what the raw outputs are
    averaged over.

    The default mean and deviation are about those of LIDC nodules in 32 mm boxes; training replaces them by those of
    its own training part.
    """

    size: int = 224
    window: tuple[float, float] = (-1000.0, 400.0)
    mean: float = -630.0
    std: float = 360.0
    views: tuple[str, ...] = VIEWS
    slices: int = 1

    def __post_init__(self) -> None:
        if not self.views or set(self.views) - set(VIEWS) or len(set(self.views)) < len(self.views):
            raise UsageError(f"preprocessing views must be different names of {', '.join(VIEWS)}, got {self.views}")
        if self.slices < 1 or self.slices % 2 == 0:
            raise UsageError(f"preprocessing slices must be odd, so that the middle is among them, got {self.slices}")
        numbers = (*self.window, self.mean, self.std)
        if not (1 <= self.size <= LARGEST_INPUT and self.std > 0 and self.window[0] < self.window[1]):
            wanted = f"size from 1 to {LARGEST_INPUT}, std > 0 and a rising window"
            raise UsageError(f"preprocessing needs {wanted}, got {self}")
        if not all(math.isfinite(number) for number in numbers):
            raise UsageError(f"preprocessing needs finite numbers, got {self}")

    def apply(self, planes_hu: Tensor) -> Tensor:
        """(..., h, w) HU -> (..., 3, size, size), standardised; bilinear, pixel centres as in
        ``align_corners=False``.
        """
        lead = planes_hu.shape[:-2]
        values = (planes_hu.clamp(*self.window) - self.mean) / self.std
        values = values.reshape(-1, 1, *planes_hu.shape[-2:])
        if values.shape[-2:] != (self.size, self.size):
            values = functional.interpolate(values, (self.size, self.size), mode="bilinear", align_corners=False)
        return values.expand(-1, 3, -1, -1).reshape(*lead, 3, self.size, self.size)

    def to_hu(self, images: Tensor) -> Tensor:
        """(..., 3, S, S) standardised -> (..., S, S) HU (clamped and resized as they are)."""
        return images[..., 0, :, :] * self.std + self.mean

    def with_size(self, size: int) -> Preprocess:
        """The same preprocessing for another input size."""
        return replace(self, size=size)

    def fitted_to(self, planes_hu: Tensor) -> Preprocess:
        """The same preprocessing with mean and deviation of ``planes_hu`` (any shape, HU) after clamping."""
        values = planes_hu.clamp(*self.window).double()
        return replace(self, mean=float(values.mean()), std=max(float(values.std()), 1.0))

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``Preprocess.from_json`` restores them exactly."""
        return {**asdict(self), "window": list(self.window), "views": list(self.views)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of ``to_json``."""
        views = tuple(values.get("views", VIEWS))
        return cls(**{**values, "window": tuple(values["window"]), "views": views})
