"""From Hounsfield units to what a network reads: which planes, clamped to a window, standardised, resized, in three
channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lidc_xai.errors import UsageError
from lidc_xai.imaging.planes import VIEWS

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop

LARGEST_INPUT = 4096
"""Pixels along a side of the network's input; more is a damaged record, not a model of 32 mm crops."""


@dataclass(frozen=True)
class Preprocess:
    """Window (low, high) in HU, mean and standard deviation of HU after clamping, and side of the square input in
    pixels; ``views``, and in each of them the ``slices`` planes about the middle (odd), are what the raw outputs are
    averaged over. ``channels``: "repeat" shows one slice three times, "neighbours" the slice below, itself and the
    slice above. ``turns``: 8 averages the outputs over the four quarter turns of every plane and their mirrors too.
    ``box_mm``, ``spacing_mm``: side of the crops that the model learned from and the distance of their voxels (None:
    not known).

    The default mean and deviation are about those of LIDC nodules in 32 mm boxes; training replaces them by those of
    its own training part.

    >>> Preprocess(size=32).apply(torch.full((16, 16), -600.0)).shape
    torch.Size([3, 32, 32])
    """

    size: int = 224
    window: tuple[float, float] = (-1000.0, 400.0)
    mean: float = -630.0
    std: float = 360.0
    views: tuple[str, ...] = VIEWS
    slices: int = 1
    channels: Literal["repeat", "neighbours"] = "repeat"
    turns: Literal[1, 8] = 1
    box_mm: float | None = None
    spacing_mm: float | None = None

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
        if self.channels not in ("repeat", "neighbours") or self.turns not in (1, 8):
            raise UsageError(
                "preprocessing channels are 'repeat' or 'neighbours' and turns 1 or 8, "
                f"got {self.channels!r} and {self.turns!r}"
            )

    @property
    def planes_per_input(self) -> int:
        """Slices that one input is made of."""
        return 3 if self.channels == "neighbours" else 1

    @property
    def planes_read(self) -> int:
        """Slices about the middle of a view that are read."""
        return self.slices + self.planes_per_input - 1

    def check(self, crop: NoduleCrop) -> None:
        """``UsageError`` where ``crop`` is of another box or spacing than the model learned from: it would take the
        nodule for smaller or larger than it is.
        """
        if self.box_mm is None or self.spacing_mm is None:
            return
        spacing = crop.spacing_mm
        boxes = [count * step for count, step in zip(crop.ct.shape, spacing, strict=True)]
        if not np.allclose([*boxes, *spacing], [self.box_mm] * 3 + [self.spacing_mm] * 3, rtol=0.01):
            raise UsageError(
                f"{crop.nodule_id}: a box of {boxes[2]:g} mm at {spacing[2]:g} mm; the model learned from boxes of "
                f"{self.box_mm:g} mm at {self.spacing_mm:g} mm and would misread sizes; prepare the crops with "
                f"--size-mm {self.box_mm:g} --spacing-mm {self.spacing_mm:g}"
            )

    def inputs(self, planes_hu: Tensor) -> Tensor:
        """(..., V, K, h, w) HU, K odd -> what is evaluated, the ``slices`` planes about the middle of every view:
        (..., V·slices, h, w), with neighbours (..., V·slices, 3, h, w).
        """
        count, wide = planes_hu.shape[-3], self.planes_per_input
        if count < self.planes_read:
            raise UsageError(f"{self.planes_read} slices of a view are to be read, {count} were given")
        first = count // 2 - self.slices // 2
        if wide == 1:
            return planes_hu[..., first : first + self.slices, :, :].flatten(-4, -3)
        stacks = [planes_hu[..., k - 1 : k + 2, :, :] for k in range(first, first + self.slices)]
        return torch.stack(stacks, dim=-4).flatten(-5, -4)

    def apply(self, planes_hu: Tensor) -> Tensor:
        """(..., h, w) HU -> (..., 3, size, size), standardised; bilinear, pixel centres as in
        ``align_corners=False``. With neighbours, (..., 3, h, w) -> (..., 3, size, size).
        """
        values = (planes_hu.clamp(*self.window) - self.mean) / self.std
        if self.channels == "repeat":
            values = values.unsqueeze(-3)
        elif values.ndim < 3 or values.shape[-3] != 3:
            raise UsageError(f"preprocessing with neighbours reads (..., 3, h, w), got {tuple(values.shape)}")
        lead, values = values.shape[:-3], values.reshape(-1, *values.shape[-3:])
        if values.shape[-2:] != (self.size, self.size):
            values = functional.interpolate(values, (self.size, self.size), mode="bilinear", align_corners=False)
        return values.expand(-1, 3, -1, -1).reshape(*lead, 3, self.size, self.size)

    def to_hu(self, images: Tensor) -> Tensor:
        """(..., 3, S, S) standardised -> (..., S, S) HU of the slice itself (clamped and resized as it is)."""
        return images[..., self.planes_per_input // 2, :, :] * self.std + self.mean

    def with_size(self, size: int) -> Preprocess:
        """The same preprocessing for another input size."""
        return replace(self, size=size)

    def fitted_to(self, planes_hu: Tensor) -> Preprocess:
        """The same preprocessing with mean and deviation of ``planes_hu`` (any shape, HU) after clamping."""
        values = planes_hu.clamp(*self.window).double()
        return replace(self, mean=float(values.mean()), std=max(float(values.std()), 1.0))

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``Preprocess.from_json`` restores them exactly."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {**known, "window": list(self.window), "views": list(self.views)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of ``to_json``."""
        views = tuple(values.get("views", VIEWS))
        return cls(**{**values, "window": tuple(values["window"]), "views": views})
