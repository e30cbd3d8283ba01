"""Which layer of a network the CAM methods read when none is named, and how a named one is found.

The default is the last convolution whose output has more than one cell. Where a shortcut leads around it (ResNet,
ConvNeXt, DenseNet), it is the smallest module around it that nothing leads around: a map of one branch would explain
that branch alone. Networks of blocks without convolutions (Swin) are read at ``norm2`` of their last block. Elsewhere
(class attention behind the blocks, pooled tokens, blocks of convolution and attention) it is the last module on a grid
that nothing leads around and at whose patches the outputs have a gradient; where there is none, the last norm with
one.

A stem or a patch embedding, a grid of one cell and an output on no grid are refused, with layers to choose from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil, log
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.context import Pass
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.plain_model import plain_forward, some_score
from lidc_xai.explain.networks.wrappers import unwrapped

Size = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One module that returned a tensor: its name, its output's shape, that as a grid (None: on no grid), whether the
    output is free of negative values, and whether the outputs of the model have a gradient at its patches."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    grid: Size | None
    rectified: bool
    felt: bool


@dataclass(frozen=True)
class Defaults:
    """Names of the default layer, of the first rectified one from there on, of every convolution with a map, and of the
    layers that can be chosen."""

    last: str
    rectified: str
    convolutions: tuple[str, ...]
    choices: tuple[str, ...]


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, Defaults]] = WeakKeyDictionary()
_STEMS = {
    "stem", "conv_stem", "embed", "patch_embed", "patch_embeddings", "embeddings", "conv_proj", "pos_drop", "norm_pre",
}  # fmt: skip
_TRIES = 24
"""How many modules are tried for one that nothing leads around, from the last; each try is a forward pass."""


def find_layer(run: Pass, layer: Any, *, rectified: bool = False) -> tuple[str, nn.Module]:
    """The (name, module) that ``layer`` stands for: a module of the model, its dotted name, the number of a convolution
    in the order of execution (negative from the end), or None for the default.

    ``rectified``: the default is the first layer from there on without negative values, where there is one.
    """
    model = run.model
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        layer = unwrapped(layer)
        name = next((name for name, module in modules.items() if module is layer), None)
        if name is None:
            raise UsageError(f"layer is a {type(layer).__name__} that is not part of this model")
        return name, modules[name]
    if isinstance(layer, str):
        return _by_name(layer, modules)
    defaults = _defaults(run, modules)
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


def find_map_layer(run: Pass, *, convolution: bool = False) -> str:
    """The name of the default layer; ``ModelError`` where the network has none (``convolution``: that rests on one)."""
    defaults = _defaults(run, dict(run.model.named_modules()))
    if convolution and not defaults.convolutions:
        raise ModelError(f"{type(run.model).__name__} has no convolution that gives a map, behind its patch embedding")
    return defaults.last


def choices(run: Pass) -> str:
    """Names of layers that have a grid, for a message."""
    names = _defaults(run, dict(run.model.named_modules())).choices
    return ", ".join(names[-8:])


def is_stem(name: str) -> bool:
    """Whether a module belongs to what cuts the image into patches, by its name."""
    return not _STEMS.isdisjoint(name.split("."))


def reads_the_image(run: Pass, name: str) -> bool:
    """Whether a module is the first of several convolutions, whose map says where edges are."""
    convolutions = _defaults(run, dict(run.model.named_modules())).convolutions
    return len(set(convolutions)) > 1 and convolutions[0] == name


def _by_name(name: str, modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """A dotted name in the model, or in its backbone."""
    for full in (name, f"backbone.{name}", f"model.{name}"):
        if full in modules and full:
            return full, modules[full]
    parent = name.rpartition(".")[0]
    near = [known for known in modules if known.rpartition(".")[0] == parent and known] or list(modules)[1:]
    raise UsageError(f"unknown layer {name!r}; there are {', '.join(near[:12])}{' …' if len(near) > 12 else ''}")


def _defaults(run: Pass, modules: dict[str, nn.Module]) -> Defaults:
    """Found once per model, and again when its modules or the image's shape change."""
    image = run.images[:1]
    signature = (tuple((name, id(module)) for name, module in modules.items()), tuple(image.shape))
    known = _KNOWN.get(run.model)
    if known is None or known[0] != signature:
        known = (signature, _search(run.model, modules, image))
        _KNOWN[run.model] = known
    return known[1]


def _search(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> Defaults:
    steps = _executed(model, modules, image)
    runs = Counter(step.name for step in steps)
    useful = [i for i, s in enumerate(steps) if s.grid and s.felt and runs[s.name] == 1 and not is_stem(s.name)]
    spatial = [i for i, s in enumerate(steps) if isinstance(s.module, nn.Conv2d) and s.grid and len(s.shape) == 4]
    convolutions = tuple(steps[i].name for i in spatial)
    place = _place(model, modules, image, steps, [i for i in spatial if not is_stem(steps[i].name)], useful)
    if place is None:
        what = "no convolution that gives a map" if not useful else "no layer on a grid of more than one cell"
        raise ModelError(f"{type(model).__name__} has {what}; name a layer")
    later = [step for step in steps[place:] if step.shape == steps[place].shape and step.rectified]
    named = [steps[i].name for i in useful if steps[i].name]
    typical = [
        name for name in named if isinstance(modules[name], nn.Conv2d | nn.LayerNorm) or name.split(".")[-1].isdigit()
    ]
    last = steps[place].name
    return Defaults(last, later[0].name if later else last, convolutions, tuple(dict.fromkeys(typical or named)))


def _place(
    model: nn.Module,
    modules: dict[str, nn.Module],
    image: Tensor,
    steps: list[Step],
    spatial: list[int],
    useful: list[int],
) -> int | None:
    """Where the default layer ended, among ``steps``."""
    norms = [i for i in useful if steps[i].name.rpartition(".")[2] == "norm2"]
    tokens_later = any(len(steps[i].shape) == 3 for i in useful if not spatial or i > spatial[-1])
    behind = norms[-1:] if norms and (not spatial or norms[-1] > spatial[-1]) else []
    if behind and _attends(steps[spatial[-1] if spatial else 0 :]) and not _class_attention(steps):
        return behind[0]
    if spatial and not tokens_later:
        cut = _cut(model, image, steps, spatial[-1])
        if cut is not None:
            return cut
        if steps[spatial[-1]].felt and not _attends(steps):
            return spatial[-1]
    for i in reversed(useful[-_TRIES:]):
        if steps[i].name and not _bypassed(model, steps[i].module, image):
            return i
    last_norms = [
        i for i in useful if "norm" in steps[i].name.rpartition(".")[2] or isinstance(steps[i].module, nn.LayerNorm)
    ]
    if last_norms:
        return last_norms[-1]
    return spatial[-1] if spatial else None


def _attends(steps: list[Step]) -> bool:
    return any("attn" in step.name.split(".")[-1] for step in steps)


def _class_attention(steps: list[Step]) -> bool:
    """Blocks in which a class token reads the patches, behind those in which patches read each other."""
    return any("cls" in step.name or "token_only" in step.name or "post_network" in step.name for step in steps)


def _executed(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> list[Step]:
    """Every module that returned a tensor, in the order in which they ended."""
    calls: list[tuple[str, nn.Module, Tensor]] = []
    names = {module: name for name, module in modules.items()}
    size = (image.shape[-2], image.shape[-1])

    def note(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        calls.append((names[module], module, output))
        return output.clone()  # what goes on may be changed in place

    handles = [module.register_forward_hook(note) for module in modules.values()]
    try:
        with torch.enable_grad():
            values = plain_forward(model, image.clone().requires_grad_()).values
    finally:
        for handle in handles:
            handle.remove()
    grids = [grid_of(module, output, size, model) for _, module, output in calls]
    wanted = [
        output for (_, _, output), grid in zip(calls, grids, strict=True) if grid is not None and output.requires_grad
    ]
    slopes: dict[int, Tensor] = {}
    if wanted and values.requires_grad:
        given = torch.autograd.grad(some_score(values), wanted, allow_unused=True)
        slopes = {id(output): slope for output, slope in zip(wanted, given, strict=True) if slope is not None}
    steps = []
    for (name, module, output), grid in zip(calls, grids, strict=True):
        slope = slopes.get(id(output))
        felt = slope is not None and grid is not None and bool(as_maps(slope, module, grid, size).any())
        steps.append(Step(name, module, tuple(output.shape), grid, bool((output >= 0).all()), felt))
    return steps


def _cut(model: nn.Module, image: Tensor, steps: list[Step], conv: int) -> int | None:
    """The convolution's place in ``steps``, or that of the smallest module around it that nothing leads around."""
    grid, name = steps[conv].grid, steps[conv].name
    around = [
        i
        for i, step in enumerate(steps)
        if i >= conv
        and len(step.shape) == 4
        and step.grid == grid
        and step.name
        and f"{name}.".startswith(f"{step.name}.")
    ]
    return next((i for i in around if not _bypassed(model, steps[i].module, image)), None)


def _bypassed(model: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Whether the output still depends on the image when ``module``'s output is held fixed."""

    def hold(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach()

    with torch.enable_grad(), hooked(module, hold):
        output = plain_forward(model, image.clone().requires_grad_()).values
    return bool(output.requires_grad)


def grid_of(module: nn.Module, output: Tensor, size: Size, model: nn.Module) -> Size | None:
    """(h, w), more than one cell, of an output (B, K, h, w), (B, h, w, K) or (B, P + h·w, K); None where it is none."""
    grid = _any_grid(module, output, size, model)
    return None if grid is None or max(grid) < 2 else grid


def _any_grid(module: nn.Module, output: Tensor, size: Size, model: nn.Module) -> Size | None:
    if output.ndim == 4:
        shape = output.shape[1:3] if channels_last(module, output, size) else output.shape[2:]
        return int(shape[0]), int(shape[1])
    if output.ndim != 3:
        return None
    prefix = getattr(model, "num_prefix_tokens", 0)
    return next(filter(None, (_grid(output.shape[1] - p, size) for p in dict.fromkeys((prefix, 0, 1)))), None)


def as_maps(x: Tensor, module: nn.Module, grid: Size, size: Size) -> Tensor:
    """A layer's output (or its gradient) as maps (B, K, h, w)."""
    if x.ndim == 4:
        return x.movedim(-1, 1) if channels_last(module, x, size) else x
    return x[:, x.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(-1, grid)


def channels_last(module: nn.Module, output: Tensor, size: Size) -> bool:
    """Whether a 4-D output is (B, h, w, K): by the kind of layer, else by which pair of axes has the image's shape."""
    if isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
        return False
    if type(module) is nn.LayerNorm:
        return True
    _, a, b, c = output.shape
    wanted = log(size[0] / size[1])
    return abs(log(a / b) - wanted) < abs(log(b / c) - wanted)


def _grid(count: int, size: Size) -> Size | None:
    """(h, w) with h·w = count that a stride of whole pixels makes of the image."""
    if count < 1:
        return None
    for stride in range(1, max(size) + 1):
        grid = (ceil(size[0] / stride), ceil(size[1] / stride))
        if grid[0] * grid[1] == count:
            return grid
    return None
