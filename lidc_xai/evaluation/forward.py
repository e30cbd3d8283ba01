"""Many forward passes without gradients: copies of images in dense batches, and the scores of targets on them.

A metric says how many altered copies of each image it wants and how to write them into a buffer; batches are filled
across images, so that every one but the last is full. On a ViT whose head reads CLS the last block is computed for the
CLS token alone (``lidc_xai.explain`` knows how), which makes these passes cheaper than plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.explain.networks.context import Pass
from lidc_xai.explain.targets import Outputs, TargetSet, TargetsLike, output_spec, resolve

Precision = Literal["float32", "bfloat16", "float16"]
Fill = Callable[[Tensor, int, int, int], None]
"""fill(buffer (n,C,H,W), image, first, last): write copies first to last (excluded) of an image into the buffer."""

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode again afterwards, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Forward:
    """How a model is run. ``max_batch``: images per pass. ``precision``: "float32" is the model's own precision."""

    model: nn.Module
    max_batch: int = 64
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UsageError(f"max_batch is a whole number from 1, not {self.max_batch}")
        if self.precision not in ("float32", *_AUTOCAST):
            raise UsageError(f"precision is 'float32', 'bfloat16' or 'float16', not {self.precision!r}")

    def place(self, images: Tensor) -> Tensor:
        """Images where the model is and in its precision; ``DataError`` where they are no finite (B,C,H,W) floats."""
        if images.ndim != 4 or not images.is_floating_point():
            got = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise DataError(f"images are normalised floats (B, C, H, W), got {got}")
        if not bool(images.isfinite().all()):
            raise DataError("images hold values that are not finite; check the normalisation")
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        return images.detach() if weight is None else images.detach().to(weight.device, weight.dtype)

    def outputs(self, images: Tensor) -> Outputs:
        """The model's outputs (B, C) and features on ``images``, in chunks of ``max_batch``."""
        parts = [self._run(images[start : start + self.max_batch]) for start in range(0, len(images), self.max_batch)]
        return Outputs.join(parts)

    def copies(self, images: Tensor, count: int, fill: Fill) -> Outputs:
        """Outputs (B, count, C) of ``count`` altered copies of each of B images, written by ``fill``."""
        total = len(images) * count
        if not total:
            return Outputs(torch.empty(len(images), 0, 0, device=images.device))
        buffer = images.new_empty((min(self.max_batch, total), *images.shape[1:]))
        parts = []
        for start in range(0, total, self.max_batch):
            end = min(start + self.max_batch, total)
            for image in range(start // count, (end - 1) // count + 1):
                first, last = max(start, image * count), min(end, (image + 1) * count)
                fill(buffer[first - start : last - start], image, first - image * count, last - image * count)
            parts.append(self._run(buffer[: end - start]))
        return Outputs.join(parts).map(lambda part: part.unflatten(0, (len(images), count)))

    def _run(self, images: Tensor) -> Outputs:
        kind = images.device.type
        dtype = _AUTOCAST.get(self.precision)
        with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=dtype is not None), in_eval_mode(self.model):
            outputs = Pass(self.model, images).outputs
        return outputs.map(Tensor.double)


@dataclass(frozen=True)
class Scored:
    """Images with what is asked about them: T targets each, the plain outputs (B,C) and scores (B,T), in float64."""

    forward: Forward
    images: Tensor
    targets: TargetSet
    outputs: Outputs
    scores: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def copies(self, count: int, fill: Fill) -> Tensor:
        """Scores (B, count, T) of altered copies."""
        return self.read(self.forward.copies(self.images, count, fill))

    def read(self, outputs: Outputs) -> Tensor:
        """Scores (B, ..., T) of outputs (B, ..., C) of copies of these images."""
        return self.targets.scores(outputs)


def scored(forward: Forward, images: Tensor, targets: TargetsLike) -> Scored:
    """Run the images once and settle which outputs the targets mean."""
    images = forward.place(images)
    outputs = forward.outputs(images)
    spec = output_spec(forward.model, outputs.values.shape[-1])
    resolved = resolve(targets, spec, len(images), lambda: outputs.values)
    return Scored(forward, images, resolved, outputs, resolved.scores(outputs))


def scored_for_one(forward: Forward, images: Tensor, target: TargetsLike) -> Scored:
    """``scored`` for a metric that takes one target per image."""
    asked = scored(forward, images, target)
    if len(asked.targets) != 1:
        raise UsageError(f"this metric takes one target per image, got {len(asked.targets)}; call it once for each")
    return asked
