"""Activations of one layer and the target's gradient there, for any network whose layer lies on an image grid.

The trunk runs without a graph; the graph begins at the layer, so that a gradient costs only what lies behind it.
Layouts that are understood: (B, K, h, w), (B, h, w, K) as in Swin, and tokens (B, P + h·w, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.context import Context, gradients
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.plain_model import plain_forward
from lidc_xai.explain.pixels.cnn import as_maps, choices, grid_of, is_stem, reads_the_image


@dataclass(frozen=True)
class Features:
    """Activations (B, K, h, w), their gradients (T, B, K, h, w), the scores (B, T) and the layer's name.

    Of n copies of each image: (B, n, K, h, w), (T, B, n, K, h, w) and (B, n, T).
    """

    activations: Tensor
    gradients: Tensor
    scores: Tensor
    layer: str


def read_layer(
    context: Context, name: str, module: nn.Module, images: Tensor | None = None, *, record: bool = False
) -> Features:
    """Activations and gradients of ``module`` for ``images`` (default: the context's), or for n copies of each.

    ``record``: these are the context's images, so that their outputs are kept. Raises ``ModelError`` for a layer that
    does not run once, or whose output is not on an image grid.
    """
    images = context.images if images is None else images
    if is_stem(name) or reads_the_image(context.run, name):
        what = "cuts the image into patches" if is_stem(name) else "is the convolution that reads the image"
        raise ModelError(
            f"layer {name} {what}: its map says where edges are, not what counts; there are {choices(context.run)}"
        )
    seen: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"layer {name} returns a {type(output).__name__}, not a tensor; there are {choices(context.run)}"
            )
        seen.append(output.detach().clone().requires_grad_())
        return seen[-1].clone()  # a copy goes on: an in-place ReLU behind the layer must not change what was seen

    with hooked(module, cut):
        outputs = context.network(lambda: plain_forward(context.model, images.flatten(0, -4)))
    if len(seen) != 1:
        raise ModelError(
            f"layer {name} runs {len(seen)} times in a forward pass; choose one that runs once: {choices(context.run)}"
        )
    if record:
        context.run.record(outputs)
    batch = images.shape[:-3]
    scores = context.targets.scores(outputs.map(lambda x: x.unflatten(0, batch)))
    as_maps = _layout(context, module, seen[0], name)
    slopes = torch.stack([as_maps(slope).unflatten(0, batch) for slope in _gradients(scores, seen[0], name)])
    return Features(as_maps(seen[0].detach()).unflatten(0, batch), slopes, scores.detach(), name)


def read_tokens(context: Context, layer: int) -> Features:
    """The same for the normalised patch tokens of a ViT's block, by automatic differentiation from there on."""
    vit = context.anatomy
    z = context.run.tokens(layer)
    t = context.run.normed(layer).requires_grad_()
    outputs = context.network(lambda: context.run.finish(layer, z, t))
    context.run.record(outputs)
    scores = context.targets.scores(outputs)
    name = norm1_name(context, layer)
    maps = [vit.to_grid(x.transpose(-1, -2), context.images) for x in (t.detach(), _gradients(scores, t, name))]
    return Features(maps[0], maps[1], scores.detach(), name)


def norm1_name(context: Context, layer: int) -> str:
    """What the normalised tokens of a ViT's block are called in results and messages."""
    return f"norm1 of block {context.anatomy.layer(layer)}"


def _gradients(scores: Tensor, inputs: Tensor, name: str) -> Tensor:
    if not scores.requires_grad:
        raise ModelError(f"the outputs do not depend on layer {name}; choose a layer that they are computed from")
    return gradients(scores, inputs)


def refuse_silence(features: Features) -> None:
    """``ModelError`` where no patch of the layer has a gradient: a map of zeros would say nothing about the image."""
    if bool((features.gradients != 0).any()):
        return
    raise ModelError(
        f"every gradient at the patches of {features.layer} is 0: behind this layer the score reads other tokens alone "
        "(as a CLS head does after the last attention), or it has saturated; choose an earlier layer or LogOdds"
    )


def _layout(context: Context, module: nn.Module, output: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    """How to see this layer's output as maps (B, K, h, w). ``ModelError`` where it is on no image grid."""
    size = (context.images.shape[-2], context.images.shape[-1])
    grid = _grid(context, module, output, size)
    if grid is None:
        raise ModelError(
            f"layer {name} gives {tuple(output.shape)}, which is not on an image grid of more than one cell: wanted "
            f"(B, K, h, w), (B, h, w, K) or a token per patch; there are {choices(context.run)}"
        )
    return lambda x: as_maps(x, module, grid, size)


def _grid(context: Context, module: nn.Module, output: Tensor, size: tuple[int, int]) -> tuple[int, int] | None:
    vit = context.vit
    if vit is not None and output.ndim == 3:
        rows, columns = vit.grid(context.images)
        return (rows, columns) if output.shape[1] in (rows * columns, rows * columns + vit.prefix) else None
    return grid_of(module, output, size, context.model)
