"""Random changes of training planes: what may be drawn, and the draw of one nodule in one epoch.

A draw depends on the run's seed, the epoch and the nodule alone, so that the order of nodules, the batch size, a
restart and the number of processes change nothing. ``transforms.MovePlanes`` carries it out.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, Field, ValidationInfo

from lidc_xai.config import Options

if TYPE_CHECKING:
    from torch import Tensor


def _odd(count: int, field: ValidationInfo) -> int:
    if count % 2 == 0:
        raise ValueError(f"{field.field_name} must be odd, so that the middle plane is among them")
    return count


Slices = Annotated[int, AfterValidator(_odd)]
"""How many planes about the middle of a view."""


class Augmentation(Options):
    """Random changes of the training planes, drawn anew for every nodule and epoch.

    >>> Augmentation(rotate_degrees=10, slices=3).slices
    3
    """

    rotate90: bool = Field(default=True, description="Turn by a random multiple of 90 degrees.")
    flip: bool = Field(default=True, description="Mirror at random.")
    rotate_degrees: float = Field(
        default=0.0, ge=0, le=180, description="Further rotation up to this angle, both ways."
    )
    shift_pixels: float = Field(
        default=1.0, ge=0, description="Shift up to this many crop pixels (mm at 1 mm spacing)."
    )
    scale: float = Field(
        default=0.0, ge=0, lt=0.5, description="Zoom by up to this share; the diameter's target follows."
    )
    shift_hu: float = Field(default=20.0, ge=0, description="Add up to this many HU, both ways.")
    scale_hu: float = Field(
        default=0.0, ge=0, lt=0.5, description="Stretch HU about the training mean by up to this share."
    )
    slices: Slices = Field(default=5, ge=1, description="Planes around the middle to choose from in each view (odd).")

    @property
    def turns_only(self) -> bool:
        """Whether all that can happen to a plane is one of eight exact turns and mirrors."""
        return not any((self.rotate_degrees, self.shift_pixels, self.scale, self.shift_hu, self.scale_hu))

    def draw(self, nodule_id: str, seed: int, epoch: int, views: int) -> Draw:
        """What happens to a nodule in an epoch; ``views``: how many there are to choose from."""
        import numpy as np  # the command line reads these options without numpy and torch

        random = np.random.default_rng([seed, epoch, zlib.crc32(nodule_id.encode())]).random(10)
        view, place, quarter, mirror = (random[:4] * (views, self.slices, 4, 2)).astype(int).tolist()
        angle, zoom, right, down, shift_hu, scale_hu = (2 * random[4:] - 1).tolist()
        return Draw(
            view=view,
            slice=place - self.slices // 2,
            turn=quarter * self.rotate90 + 4 * mirror * self.flip,
            angle=angle * math.radians(self.rotate_degrees),
            zoom=1 + zoom * self.scale,
            shift=(right * self.shift_pixels, down * self.shift_pixels),
            shift_hu=shift_hu * self.shift_hu,
            scale_hu=1 + scale_hu * self.scale_hu,
        )


class Draw(NamedTuple):
    """One draw: number of the view; slice from the middle; turn (0 to 7, as for ``turned``); further angle in radians;
    zoom; shift in pixels (right, down); HU added; stretch of HU."""

    view: int
    slice: int
    turn: int
    angle: float
    zoom: float
    shift: tuple[float, float]
    shift_hu: float
    scale_hu: float

    def numbers(self) -> Tensor:
        """(7,) float32 for ``transforms.MovePlanes``: turn, angle, zoom, shift, HU added, stretch of HU."""
        import torch

        values = (self.turn, self.angle, self.zoom, *self.shift, self.shift_hu, self.scale_hu)
        return torch.tensor(values, dtype=torch.float32)


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, the same everywhere."""
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
