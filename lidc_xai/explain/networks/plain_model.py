"""Any image classifier or regressor as a black box: its outputs, and the vector that its last linear layer reads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.outputs import Outputs


def plain_forward(model: nn.Module, images: Tensor) -> Outputs:
    """Outputs (B, C) of any model, differentiable, with the features (B, D) that enter its classifier where known."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            seen.append(inputs[0])

    with ExitStack() as stack:
        head = classifier(model)
        if head is not None:
            stack.enter_context(hooked(head, keep, before=True))
        values = model(images)
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ModelError(f"the model must return a tensor (B, outputs) for {len(images)} images; it returned {got}")
    return Outputs(values, seen[-1] if seen else None)


def classifier(model: nn.Module) -> nn.Module | None:
    """The module whose input is "the vector that the head reads": the model's own word, else its last linear layer."""
    own = getattr(model, "head", None)
    if hasattr(model, "output_names") and isinstance(own, nn.Module):
        return own
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's or (Distributed)DataParallel's wrapper."""
    while True:
        inner = model._modules.get("_orig_mod") or (
            model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            return model
        model = inner
