"""Leave the caller's model and random state as they were found, whatever happens in between.

Inside ``borrowed(model)`` the model is in eval mode, its parameters ask for no gradient (so that differentiating
towards tokens or pixels never touches ``.grad`` nor pays for weights), gradients are recorded even under the caller's
``no_grad`` or ``inference_mode``, and autocast is off: a relevance in bfloat16 would mostly be its rounding. On a GPU
TF32, with which convolutions compute by default, is off for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import LidcXaiError, ModelError


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode, frozen parameters, autograd on, autocast off; all of it undone on leaving, also by an exception."""
    parameters = list(model.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        raise ModelError("the model's weights were made inside torch.inference_mode(); build or load it outside")
    devices = {tensor.device for tensor in parameters}
    training = [module for module in model.modules() if module.training]
    wanting = [parameter for parameter in parameters if parameter.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        cuda = [device.index for device in devices if device.type == "cuda"]
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        if cuda:
            stack.enter_context(_whole_float32())
        stack.callback(_set, training, wanting, True)
        _set(training, wanting, False)
        yield


@contextmanager
def _whole_float32() -> Iterator[None]:
    """CUDA's convolutions and matrix products in float32 as it is named, not in TF32 with its 10 bits."""
    switches: list[tuple[Any, str, Any]] = [(torch.backends.cuda.matmul, "allow_tf32", False)]
    switches += [(torch.backends.cudnn, "allow_tf32", False)]
    if hasattr(torch.backends.cudnn, "conv"):  # the switches since torch 2.9, which do not go with the older ones
        places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
        switches = [(place, "fp32_precision", "ieee") for place in places if place.fp32_precision != "none"]
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, value in switches:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)


@contextmanager
def one_line(model: nn.Module) -> Iterator[None]:
    """Whatever a model's own code raises leaves as a ``ModelError`` of one line (``from`` the original)."""
    try:
        yield
    except LidcXaiError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "out of memory on the model's device; give fewer images at once, or a smaller max_batch"
        ) from error
    except Exception as error:
        words = " ".join(str(error).split()) or "no message"
        raise ModelError(
            f"{type(model).__name__} cannot run this way: {type(error).__name__}: {words[:300]}"
        ) from error


@contextmanager
def in_float32(model: nn.Module) -> Iterator[bool]:
    """A model in half precision (float16, bfloat16) computes in float32 inside, with the weights that it has.

    Yields whether it was in half precision. Its own tensors are put back on leaving, bit for bit.
    """
    with ExitStack() as stack:
        half = [x for x in (*model.parameters(), *model.buffers()) if x.dtype in (torch.float16, torch.bfloat16)]
        for tensor in half:
            stack.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.float()
        yield bool(half)


def _set(modules: list[nn.Module], parameters: list[nn.Parameter], on: bool) -> None:
    """Training mode of ``modules`` and gradients of ``parameters``, on or off."""
    for module in modules:
        module.training = on
    for parameter in parameters:
        parameter.requires_grad_(on)


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """A forward hook (``before``: a forward pre-hook) that is taken off again, also after an exception."""
    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def ordinary(tensor: Tensor) -> Tensor:
    """``tensor`` without history, fit for autograd: one made inside ``inference_mode`` is copied."""
    tensor = tensor.detach()
    if tensor.is_inference():
        with torch.inference_mode(False):
            return tensor.clone()
    return tensor
