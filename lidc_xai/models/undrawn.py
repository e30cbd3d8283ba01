"""Networks whose weights are read from a file: the random numbers that they would begin with are not drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

_RANDOM = {"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_"}
_SHAPE_KEPT = _RANDOM | {"add_", "clamp_", "constant_", "div_", "fill_", "mul_", "ones_", "sub_", "zero_", "zeros_"}


class Undrawn(TorchFunctionMode):
    """A context in which filling a tensor with random numbers leaves it as it is, and on the meta device, where only
    shapes are asked for, so does arithmetic in place. Half of the time of loading a small ViT went there.

    For networks all of whose weights are replaced before they are used.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _SHAPE_KEPT:
            tensor = args[0] if args else options.get("tensor")
            if tensor is not None and (name in _RANDOM or tensor.is_meta):
                return tensor
        return func(*args, **options)
