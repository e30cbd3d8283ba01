"""What a model gives: its outputs with the vector behind them, and what the columns mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lidc_xai.errors import UsageError


class Outputs(NamedTuple):
    """A model's outputs (B, ..., C), and the vector (B, ..., D) that its head reads where that is known."""

    values: Tensor
    features: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """The same change to both."""
        return Outputs(function(self.values), None if self.features is None else function(self.features))

    @staticmethod
    def join(parts: Sequence[Outputs], dim: int = 0) -> Outputs:
        """Several as one, with features where all of them have some."""
        features = [part.features for part in parts if part.features is not None]
        values = torch.cat([part.values for part in parts], dim)
        return Outputs(values, torch.cat(features, dim) if len(features) == len(parts) else None)


@dataclass(frozen=True)
class OutputSpec:
    """What the C columns of an output mean: ``kinds`` holds "class" (one of C classes), "binary" or "regression"."""

    kinds: tuple[str, ...]
    names: tuple[str, ...] | None = None

    @property
    def is_classifier(self) -> bool:
        return self.kinds[0] == "class"

    def name(self, column: int) -> str:
        return self.names[column] if self.names else str(column)

    def column(self, output: int | str) -> int:
        """The column of an output given by name or number; ``UsageError`` where there is none."""
        if isinstance(output, str):
            if self.names is None:
                raise UsageError(f"output {output!r}: this model's outputs have no names; give a class index")
            if output not in self.names:
                raise UsageError(f"unknown output {output!r}; this model has {', '.join(self.names)}")
            return self.names.index(output)
        if not 0 <= output < len(self.kinds):
            raise UsageError(f"output {output} does not exist; this model has outputs 0 to {len(self.kinds) - 1}")
        return output
