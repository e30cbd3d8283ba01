"""A moving average of the weights that learn, by which epochs are judged and which is kept (EMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """a ← d·a + (1 − d)·w after every step, with d = min(decay, (1 + step) / (10 + step)) so that the start is soon
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in _learning(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after optimiser step ``step`` in, once."""
        if step == self.step:  # gradients are being accumulated
            return
        self.step = step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in _learning(model).items():
            self.weights[name] = self.weights[name].to(tensor).lerp(tensor, share)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights; its own come back afterwards."""
        learning = _learning(model)
        learnt = {name: tensor.detach().clone() for name, tensor in learning.items()}
        try:
            _put(learning, self.weights)
            yield
        finally:
            _put(learning, learnt)


@torch.no_grad()
def _put(into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(values[name])


def _learning(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
