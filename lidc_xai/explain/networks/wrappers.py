"""Wrappers around a model, looked through by name: none of their packages is imported for that."""

from __future__ import annotations

from typing import Any

from torch import nn

_INSIDE: dict[tuple[str, str], str] = {
    ("torch._dynamo", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel", "DataParallel"): "module",
    ("torch.nn.parallel", "DistributedDataParallel"): "module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("torch.distributed.fsdp", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("timm.utils.model_ema", "ModelEma"): "ema",
    ("timm.utils.model_ema", "ModelEmaV2"): "module",
    ("timm.utils.model_ema", "ModelEmaV3"): "module",
    ("peft.peft_model", "PeftModel"): "base_model",
    ("peft.tuners", "BaseTuner"): "model",
    ("lightning.fabric.wrappers", "_FabricModule"): "_forward_module",
    ("accelerate", "ExtendedModule"): "module",
}
"""(package, class) → the attribute that holds the model. A subclass counts as its class."""


def unwrapped(model: Any) -> nn.Module:
    """The model inside torch.compile's, (Distributed)DataParallel's, PEFT's, an EMA's or an average's wrapper."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def base_class(model: Any, module: str, name: str) -> type | None:
    """The class ``module.name`` among ``model``'s own class and its bases, or None; nothing is imported."""
    return next((base for base in type(model).__mro__ if (base.__module__, base.__name__) == (module, name)), None)


def is_class(model: Any, module: str, name: str) -> bool:
    """Whether ``model`` is of the class ``module.name`` itself, not of a subclass."""
    return (type(model).__module__, type(model).__name__) == (module, name)


def _inside(model: Any) -> nn.Module | None:
    for base in type(model).__mro__:
        for (package, name), attribute in _INSIDE.items():
            if base.__name__ == name and base.__module__.startswith(package):
                inner = getattr(model, attribute, None)
                return inner if isinstance(inner, nn.Module) else None
    return None
