"""RSI-GradCAM (Lucas et al. 2022): GradCAM whose gradients are integrated along the activations of a path from black.

With x_l = b + (l/m)(x − b), A(l) and g(l) activations (K, h, w) and gradient at x_l:

    s = Σ_{l=1..m} ½ (g(l−1) + g(l)) ⊙ (A(l) − A(l−1)),    w_k = mean_ij s_k,    map = mean_k w_k A_k(x)

Where every path to the output leads through the layer, Σ s approaches φ(x) − φ(b): ``residual`` says how far it is
from there, by too few steps or because something leads around the layer.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result
from lidc_xai.explain.networks.wrappers import unwrapped
from lidc_xai.explain.pixels.baseline import black_pixel, start_image
from lidc_xai.explain.pixels.cnn import find_layer
from lidc_xai.explain.pixels.feature_layer import read_layer, refuse_silence
from lidc_xai.explain.pixels.gradients import chunks


def rsi_gradcam(
    context: Context,
    layer: Any = None,
    steps: int = 50,
    relu: bool = False,
    positive_gradients: bool = False,
    baseline: Tensor | str | None = None,
) -> Result:
    """(B, T, h, w) on the layer's grid; ``relu`` is the usual form.

    ``baseline``: where the path begins: None (black, where the model says how its input was normalised, else zeros
    with a warning), "black", "zero", or an image (C, H, W). ``positive_gradients``: g is rectified before summing, as
    in the public notebook. Extras: ``layer``, ``baseline_values`` (B, T) and, without ``positive_gradients``,
    ``residual`` (B, T): Σ s − (φ(x) − φ(b)).
    """
    images = context.images
    start = start_image(context, _begin(context) if baseline is None else baseline)
    name, module = find_layer(context.run, layer)
    at_image = read_layer(context, name, module, record=True)
    refuse_silence(at_image)
    path = images - start
    total = torch.zeros_like(at_image.gradients)
    before: Tensor | None = None
    edge: tuple[Tensor, Tensor] | None = None
    for chunk in chunks(steps + 1, context.copies):
        alpha = torch.arange(chunk.start, chunk.stop, device=path.device).to(path.dtype) / steps
        points = start.unsqueeze(1) + alpha.view(-1, 1, 1, 1) * path.unsqueeze(1)
        along = read_layer(context, name, module, points)
        a, g = along.activations, along.gradients.clamp_min(0) if positive_gradients else along.gradients
        before = along.scores[:, 0] if before is None else before
        if edge is not None:
            a, g = torch.cat([edge[0], a], 1), torch.cat([edge[1], g], 2)
        total += ((g[:, :, 1:] + g[:, :, :-1]) / 2 * (a[:, 1:] - a[:, :-1])).sum(2)
        edge = a[:, -1:], g[:, :, -1:]
    assert before is not None
    maps = (total.mean((-2, -1), keepdim=True) * at_image.activations).mean(2).transpose(0, 1)
    extras: dict[str, Any] = {"layer": name, "baseline_values": before}
    if not positive_gradients:
        extras["residual"] = total.sum((-3, -2, -1)).T - (at_image.scores - before)
    return Result(maps.clamp_min(0) if relu else maps, "autograd", extras)


def _begin(context: Context) -> str:
    if black_pixel(context.model) is not None:
        return "black"
    name = type(unwrapped(context.model)).__name__
    warnings.warn(
        f"{name} does not say how its input was normalised, so that black is not known: the path of RSI-GradCAM begins "
        "at zeros in normalised space; give baseline= to choose",
        stacklevel=2,
    )
    return "zero"
