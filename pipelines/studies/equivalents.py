"""Models that predict exactly what another predicts, from other logits: y + h(x), or probabilities that say it louder.

Shifted     y_c(x) + h(x) for every class c: the same probabilities, other logits. h is the gain times the mean of
            the last feature maps over their upper left quarter, so that its gradient lies there.
Sharpened   k·y_c(x): the same predicted class, probabilities nearer to 0 and 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.imagenet.photographs import InputSpec


class _Reading(nn.Module):
    """A pooling layer that keeps what it reads: a layer of its own, since a hook would make the model a changed one."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.read: list[Tensor] = []

    def forward(self, maps: Tensor) -> Tensor:
        self.read.append(maps)
        pooled: Tensor = self.pooling(maps)
        return pooled


class Shifted(nn.Module):
    """``model`` with ``gain`` · mean(upper left quarter of what its global pooling reads) added to every logit."""

    def __init__(self, model: nn.Module, gain: float, spec: InputSpec) -> None:
        super().__init__()
        self.model, self.gain = model, gain
        self.pretrained_cfg = {"mean": spec.mean, "std": spec.std}
        pooling = [name for name, module in model.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
        if not pooling:
            raise ModelError(f"{type(model).__name__} has no global pooling whose input the shift could read")
        parent, _, self._name = pooling[-1].rpartition(".")
        self._parent = (model.get_submodule(parent),)  # in a tuple: no module of its own
        self._reading = _Reading(getattr(self._parent[0], self._name))
        setattr(self._parent[0], self._name, self._reading)

    def corner(self, images: Tensor) -> Tensor:
        """(B,) mean of the feature maps over their upper left quarter."""
        return self._run(images)[1]

    def forward(self, images: Tensor) -> Tensor:
        outputs, corner = self._run(images)
        return outputs + self.gain * corner[:, None]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._reading.read.clear()
        outputs: Tensor = self.model(images)
        maps = self._reading.read.pop()
        rows, columns = maps.shape[-2] // 2, maps.shape[-1] // 2
        return outputs, maps[..., :rows, :columns].mean((1, 2, 3))

    def remove(self) -> None:
        """Give ``model`` its own layer back."""
        setattr(self._parent[0], self._name, self._reading.pooling)


class Sharpened(nn.Module):
    """``model`` with logits times ``factor``."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.model(images)
        return outputs * self.factor


def shifted(model: nn.Module, images: Tensor, spec: InputSpec, strength: float) -> Shifted:
    """``model`` shifted by about ``strength`` times the largest logit of these images, on average."""
    moved = Shifted(model, 0.0, spec)
    with torch.no_grad():
        size = float(moved.corner(images).abs().mean())
        largest = float(model(images).amax(1).abs().mean())
        moved._reading.read.clear()
    if not size > 0:
        moved.remove()
        raise ModelError("the feature maps are 0 in the upper left quarter of every image: no shift can be read there")
    moved.gain = float(f"{strength * largest / size:.2g}")  # two digits: the same function on every device
    return moved
