"""Options that the perturbing metrics share, with one set of defaults and one message for a wrong name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from lidc_xai.evaluation.forward import Forward, Precision
from lidc_xai.evaluation.replacement import SIGMA_AT_224, Replacement, ReplacementName


@dataclass(frozen=True, kw_only=True)
class Perturbing:
    """How pixels are removed and the model is run.

    ``replacement``: "blur" | "lung" | "mean" | "zero"; ``sigma``: px at 224, or ``sigma_mm`` with ``spacing_mm`` (of
    the model's input); ``masks`` and ``parenchyma`` (B,h,w): for "lung" (see ``lidc_xai.evaluation.replacement``).
    ``seed``: of ties, boxes and noise, shared by all methods. ``max_batch``: images per pass. ``precision``: of the
    passes ("float32" is the model's own; "bfloat16" and "float16" are autocast).
    """

    replacement: ReplacementName = "blur"
    sigma: float = SIGMA_AT_224
    sigma_mm: float | None = None
    spacing_mm: float | tuple[float, float] | None = None
    masks: Tensor | None = None
    parenchyma: Tensor | None = None
    seed: int = 0
    max_batch: int = 64
    precision: Precision = "float32"

    def forward(self, model: nn.Module) -> Forward:
        return Forward(model, self.max_batch, self.precision)

    def removed(self, images: Tensor) -> Tensor:
        """(B,C,H,W): what every pixel becomes when it is removed."""
        return Replacement(
            self.replacement, self.sigma, self.sigma_mm, self.spacing_mm, self.masks, self.parenchyma, self.seed
        ).of(images)


P = TypeVar("P", bound=Perturbing)


def options_as(kind: type[P], given: Mapping[str, Any]) -> P:
    """``kind`` from keyword arguments; ``TypeError`` that lists the valid names for one that it does not have."""
    valid = [item.name for item in fields(kind)]
    for name in given:
        if name not in valid:
            raise TypeError(f"unknown option {name!r}; valid options: {', '.join(valid)}")
    return kind(**given)
