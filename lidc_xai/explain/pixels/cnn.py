"""Which layer of a network the CAM methods read when none is named, and how a named one is found.

The default is the last convolution whose output has more than one pixel. Where a shortcut leads around it (ResNet,
ConvNeXt, DenseNet), it is the smallest module around it that nothing leads around: a map of one branch would explain
that branch alone. Networks of blocks without convolutions (Swin) are read at ``norm2`` of their last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.context import Context
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.plain_model import unwrapped

Step = tuple[str, nn.Module, tuple[int, ...], bool]
"""A module's name, the module, its output's shape, and whether that output is free of negative values."""


@dataclass(frozen=True)
class Defaults:
    """Names of the default layer, of the first rectified one from there on, and of every convolution with a map."""

    last: str
    rectified: str
    convolutions: tuple[str, ...]


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, Defaults]] = WeakKeyDictionary()


def find_layer(context: Context, layer: Any, *, rectified: bool = False) -> tuple[str, nn.Module]:
    """The (name, module) that ``layer`` stands for: a module of the model, its dotted name, the number of a convolution
    in the order of execution (negative from the end), or None for the default.

    ``rectified``: the default is the first layer from there on without negative values, where there is one.
    """
    model = unwrapped(context.model)
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        layer = unwrapped(layer)
        for name, module in modules.items():
            if module is layer:
                return name, module
        raise UsageError(f"layer is a {type(layer).__name__} that is not part of this model")
    if isinstance(layer, str):
        return _by_name(layer, modules)
    defaults = _defaults(model, modules, context.images[:1])
    if layer is None:
        name = defaults.rectified if rectified else defaults.last
    elif isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise UsageError(f"layer is a module, its dotted name or a convolution's number, not {type(layer).__name__}")
    else:
        count = len(defaults.convolutions)
        if not -count <= int(layer) < count:
            raise UsageError(f"layer {layer} does not exist; this model runs {count} convolutions that give a map")
        name = defaults.convolutions[int(layer)]
    return name, modules[name]


def _by_name(name: str, modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """A dotted name in the model, or in its backbone."""
    for full in (name, f"backbone.{name}"):
        if full in modules and full:
            return full, modules[full]
    parent = name.rpartition(".")[0]
    near = [known for known in modules if known.rpartition(".")[0] == parent and known] or list(modules)[1:]
    raise UsageError(f"unknown layer {name!r}; there are {', '.join(near[:12])}{' …' if len(near) > 12 else ''}")


def _defaults(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> Defaults:
    """Found once per model, and again when its modules change."""
    signature = (tuple((name, id(module)) for name, module in modules.items()), tuple(image.shape))
    known = _KNOWN.get(model)
    if known is None or known[0] != signature:
        known = (signature, _search(model, modules, image))
        _KNOWN[model] = known
    return known[1]


def _search(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> Defaults:
    steps = _executed(model, modules, image)
    spatial = [i for i, step in enumerate(steps) if isinstance(step[1], nn.Conv2d) and max(step[2][2:]) > 1]
    if not spatial:
        raise ModelError(f"{type(model).__name__} has no convolution that gives a map; name a layer")
    convolutions = tuple(steps[i][0] for i in spatial)
    norms = [i for i, step in enumerate(steps) if step[0].rpartition(".")[2] == "norm2" and len(step[2]) in (3, 4)]
    if norms and norms[-1] > spatial[-1] and _attends(steps[spatial[-1] :]):
        return Defaults(steps[norms[-1]][0], steps[norms[-1]][0], convolutions)
    last = _cut(model, modules, image, steps, spatial[-1])
    later = [step for step in steps[last:] if step[2] == steps[last][2] and step[3]]
    return Defaults(steps[last][0], later[0][0] if later else steps[last][0], convolutions)


def _attends(steps: list[Step]) -> bool:
    return any("attn" in name.split(".")[-1] for name, *_ in steps)


def _executed(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> list[Step]:
    """Every module that returned a tensor, in the order in which they ended."""
    steps: list[Step] = []
    names = {module: name for name, module in modules.items()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            steps.append((names[module], module, tuple(output.shape), bool((output >= 0).all())))

    handles = [module.register_forward_hook(note) for module in modules.values()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return steps


def _cut(model: nn.Module, modules: dict[str, nn.Module], image: Tensor, steps: list[Step], conv: int) -> int:
    """The convolution's place in ``steps``, or that of the smallest module around it that nothing leads around."""
    grid = steps[conv][2][2:]
    name = steps[conv][0]
    around = [
        i
        for i, step in enumerate(steps)
        if i >= conv and len(step[2]) == 4 and step[2][2:] == grid and step[0] and f"{name}.".startswith(f"{step[0]}.")
    ]
    return next((i for i in around if not _bypassed(model, steps[i][1], image)), conv)


def _bypassed(model: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Whether the output still depends on the image when ``module``'s output is held fixed."""

    def hold(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach()

    with torch.enable_grad(), hooked(module, hold):
        output = model(image.clone().requires_grad_())
    return bool(output.requires_grad)
