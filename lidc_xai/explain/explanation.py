"""The result of ``explain``: raw signed relevance, with what was explained and how.

A ViT without registers keeps notes of its own in single patch tokens (Darcet et al. 2024), and a map may peak in one
of them: a lone peak, which says little of the picture. ``lone_peaks`` finds it, ``notes`` says so, ``calmed`` is the
remedy (docs/studies.md measures how many maps it spoils and what the remedy gives back).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError

LONE = 3.0
"""A peak stands alone where it is more than so many times each of its neighbours."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Raw, signed relevance of B images for T targets; nothing is clipped or scaled.

    ``relevance``: (B, T, gh, gw) on the token grid (or a CNN layer's grid), or (B, T, H, W) for pixel methods.
    ``values``: (B, T) scores of the targets. ``columns``: (B, T) output that each target reads, −1 for a concept.
    ``engine``: "exact" (closed form on the last block), "autograd" or "forward" (plain forward passes).
    ``precision``: what was computed in; a model in half precision is computed in float32 (docs/methods.md, 7).
    ``covered``: rows and columns in pixels that the grid covers (the image, or more where the model pads it).
    ``extras``: what else the method reports (its docstring says: residuals, parts, gaps).

    >>> found = explain(vit, images, 1)
    >>> found.relevance.shape, found.to_pixels().shape, found.target_names
    (torch.Size([2, 1, 4, 4]), torch.Size([2, 1, 32, 32]), ('1',))
    """

    relevance: Tensor
    values: Tensor
    columns: Tensor
    target_names: tuple[str, ...]
    method: str
    engine: str
    image_size: tuple[int, int]
    covered: tuple[int, int]
    options: dict[str, Any]
    precision: str = "float32"
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def is_pixel_map(self) -> bool:
        return tuple(self.relevance.shape[-2:]) == self.image_size

    @property
    def lone_peaks(self) -> Tensor:
        """(B, T) bool: the highest token is positive and more than 3 times each of its neighbours.

        False on pixel maps, whose neighbours differ as a rule, and on grids of fewer than 3 × 3.
        """
        grids = self.relevance.flatten(0, 1)
        if self.is_pixel_map or min(grids.shape[-2:]) < 3:
            return self.relevance.new_zeros(self.relevance.shape[:2], dtype=torch.bool)
        around = _neighbourhoods(nn.functional.pad(grids, (1, 1, 1, 1), value=-float("inf")))
        around[:, 4] = -float("inf")
        highest, place = grids.flatten(1).max(1)
        nearest = around.amax(1).flatten(1).gather(1, place[:, None])[:, 0].clamp_min(0)
        return ((highest > 0) & (highest > LONE * nearest)).reshape(self.relevance.shape[:2])

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the maps are read."""
        alone, count = int(self.lone_peaks.sum()), self.relevance.shape[0] * self.relevance.shape[1]
        if not alone:
            return ()
        return (
            f"{alone} of {count} maps peak in one token that is more than {LONE:g} times each of its neighbours, as a "
            "ViT without registers makes them: calmed() gives medians of 3 × 3 tokens",
        )

    def calmed(self) -> Explanation:
        """The same with every token the median of its 3 × 3 neighbourhood (edges repeated); pixel maps as they are."""
        if self.is_pixel_map:
            return self
        padded = nn.functional.pad(self.relevance.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        middle = _neighbourhoods(padded).median(1).values
        return replace(self, relevance=middle.reshape(self.relevance.shape))

    def to_pixels(self, mode: str = "nearest") -> Tensor:
        """(B, T, H, W): every pixel its token's score ("nearest"), or "bilinear" (align_corners=False), for display."""
        if mode not in ("nearest", "bilinear"):
            raise UsageError(f"mode is 'nearest' or 'bilinear', not {mode!r}")
        if self.is_pixel_map:
            return self.relevance
        height, width = self.image_size
        corners = False if mode == "bilinear" else None
        full = nn.functional.interpolate(self.relevance, size=self.covered, mode=mode, align_corners=corners)
        return full[..., :height, :width]


def _neighbourhoods(padded: Tensor) -> Tensor:
    """(N, 9, h, w): each token with its eight neighbours, row by row, from (N, h + 2, w + 2)."""
    return padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(-2).movedim(-1, 1).clone()
