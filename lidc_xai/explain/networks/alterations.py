"""What was changed in a model after its class was written: hooks, replaced ``forward`` methods, patched classes.

Our own composition of a forward pass would not see such a change. And a package that patches classes for the whole
process (as public LRP code does) can leave the outputs alone and change the gradients, so that a derivative is compared
with a difference of outputs before one is believed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from lidc_xai.errors import ModelError

_OURS = ("torch", "timm", "torchvision", "transformers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_QUANTISED = ("quantized", "bitsandbytes", "torchao", "auto_gptq", "gptqmodel", "quanto", "awq", "hqq")
_PLAIN = (bool, int, float, str, type(None))
_TOLD = (*_PLAIN, FunctionType, MethodType, partial)
_FUNCTIONS = ("linear", "layer_norm", "gelu", "silu", "softmax", "scaled_dot_product_attention", "conv2d", "dropout")


def alteration(model: nn.Module) -> str | None:
    """The first change that is found, naming the module; None for a model as its classes are."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "the process has global forward hooks on every module"
    for name in _FUNCTIONS:
        if (where := _foreign(getattr(F, name), "torch")) is not None:
            return f"torch.nn.functional.{name} was replaced ({where})"
    patched: dict[type, str | None] = {}
    for name, module in model.named_modules():
        kind = type(module)
        replaced = module.__dict__.get("forward")
        if replaced is not None and getattr(replaced, "__func__", None) is not kind.forward:
            return f"the forward method of {name or 'the model'} ({kind.__name__}) was replaced"
        for hooks in _HOOKS:
            if getattr(module, hooks):
                return f"{name or 'the model'} ({kind.__name__}) has a hook"
        if kind not in patched:
            patched[kind] = _patched(kind)
        if patched[kind] is not None:
            return f"{name or 'the model'}: {patched[kind]}"
    return None


def signature(model: nn.Module, images: Tensor) -> tuple[Any, ...]:
    """What a finding about ``model`` on such images rests on; a finding is kept as long as this stays the same."""
    state: list[Any] = [tuple(images.shape[1:]), images.dtype, images.device]
    kinds: dict[type, None] = {}
    for module in model.modules():
        values = module.__dict__
        kinds[type(module)] = None
        state.append((id(module), type(module), values.get("forward")))
        for hooks in _HOOKS:
            if values[hooks]:
                state.extend(values[hooks])
        if type(module).__module__.startswith("torch.nn.modules."):
            continue  # a layer: called as it is, whatever it holds
        state.append(tuple(v if isinstance(v, _PLAIN) else id(v) for v in values.values() if isinstance(v, _TOLD)))
    for kind in kinds:
        for owner in kind.__mro__[:-2]:
            state.extend(id(value) for value in owner.__dict__.values() if isinstance(value, FunctionType))
    return tuple(state)


def check_derivative(f: Callable[[Tensor], Tensor], t: Tensor, gradient: Tensor, why: str) -> None:
    """``ModelError`` naming ``why`` where ``gradient`` of the scalar f at t (B, T, D) is not its derivative.

    The difference of f along the gradient itself is compared with the gradient's length, at steps of several sizes:
    one that agrees within 2 % is enough.
    """
    length = gradient.norm()
    if float(length) == 0:
        return
    direction = gradient / length
    for step in (3e-2, 3e-3, 3e-4):
        h = step * t.norm()
        with torch.no_grad():
            change = (f(t + h * direction) - f(t - h * direction)) / (2 * h)
        if abs(float(change / length) - 1) < 0.02:
            return
    raise ModelError(
        f"the gradients of this model are not the derivatives of its outputs: {why}; explain it in a process where "
        "nothing was patched"
    )


def quantised(model: nn.Module) -> str | None:
    """One line about the first quantised or scripted module, or None: neither can be differentiated."""
    for name, module in model.named_modules():
        kind = type(module)
        if any(word in kind.__module__ for word in _QUANTISED):
            return (
                f"{name or 'the model'} is quantised ({kind.__module__}.{kind.__name__}): explain the model before it"
            )
        if isinstance(module, torch.jit.ScriptModule):
            return "it is TorchScript, whose modules cannot be read: explain the Python model that it was made from"
        for parameter, weight in module._parameters.items():
            if weight is None:
                continue
            if weight.is_meta:
                return f"the weight {name}.{parameter} is on the meta device: load the weights first"
            odd = any(word in type(weight.data).__module__ for word in _QUANTISED)
            if odd or not (weight.is_floating_point() or weight.is_complex()):
                kind_of = type(weight.data).__name__ if odd else str(weight.dtype).removeprefix("torch.")
                return f"the weight {name}.{parameter} is quantised ({kind_of}): explain the model before it"
    return None


def _patched(kind: type) -> str | None:
    """Which method of a known package's class does not come from that package, or None."""
    for owner in kind.__mro__:
        package = owner.__module__.split(".")[0]
        if package not in _OURS:
            continue
        for name, function in owner.__dict__.items():
            where = _foreign(function, package) if isinstance(function, FunctionType) else None
            if where is not None:
                return f"{owner.__name__}.{name} was replaced for the whole process ({where})"
    return None


def _foreign(function: Any, package: str) -> str | None:
    """The file that a Python function was written in, where that is not a file of ``package``."""
    code = getattr(function, "__code__", None)
    home = getattr(sys.modules.get(package), "__file__", None)
    if code is None or home is None or _inside(code.co_filename, home):
        return None
    return Path(code.co_filename).name


@lru_cache(maxsize=4096)
def _inside(file: str, home: str) -> bool:
    """Whether ``file`` belongs to the package whose ``__init__`` is ``home`` (or is made up, as dataclasses do)."""
    return file.startswith("<") or Path(file).is_relative_to(Path(home).parent)
