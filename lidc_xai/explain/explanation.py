"""The result of ``explain``: raw signed relevance, with what was explained and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lidc_xai.errors import UsageError


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
