"""Any image classifier or regressor as a black box: its outputs, and the vector that its last linear layer reads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.outputs import Outputs


def plain_forward(model: nn.Module, images: Tensor) -> Outputs:
    """Outputs (B, C) of any model, differentiable, with the features (B, D) that enter its classifier where known.

    A model may return its outputs as ``.logits``, as transformers' models with a head do.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            seen.append(inputs[0])

    with ExitStack() as stack:
        for head in classifiers(model):
            stack.enter_context(hooked(head, keep, before=True))
        given = model(images)
    values = getattr(given, "logits", given)
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        hint = "; take the class with a classification head" if hasattr(given, "last_hidden_state") else ""
        raise ModelError(
            f"the model must return a tensor (B, outputs) for {len(images)} images; it returned {got}{hint}"
        )
    if len(seen) == 2 and seen[0].shape == seen[1].shape:  # a distilled model's two heads
        return Outputs(values, (seen[0] + seen[1]) / 2)
    return Outputs(values, seen[-1] if seen else None)


def some_score(values: Tensor) -> Tensor:
    """A scalar of outputs (B, C) in which each counts with a weight of its own: for asking what depends on what."""
    return (values * torch.arange(1, values.shape[-1] + 1).to(values).cos()).sum()


def classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules whose input is "the vector that the head reads" (two in a distilled model)."""
    head = classifier(model)
    if head is None:
        return ()
    layers: tuple[nn.Module, ...] = (head,)
    for module in model.modules():
        other = getattr(module, "head", None)
        if getattr(module, "head_dist", None) is head and isinstance(other, nn.Module):
            return (other, *layers)
    return layers


def classifier(model: nn.Module) -> nn.Module | None:
    """The module whose input is "the vector that the head reads": the model's own word, else its last linear layer."""
    head = getattr(model, "head", None)
    if hasattr(model, "output_names") and isinstance(head, nn.Module):
        return head
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None
