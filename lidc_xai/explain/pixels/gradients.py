"""Gradients towards the pixels, φ the target score and x the normalised image (channels summed at the end):

saliency               ∂φ/∂x
input_x_gradient       x ⊙ ∂φ/∂x
smoothgrad             mean_k ∂φ/∂x at x + ε_k,  ε_k ~ N(0, σ²): signed, neither squared nor multiplied
integrated_gradients   (x − b) ⊙ ∫₀¹ ∂φ/∂x at b + α (x − b) dα

The integrated gradients of all pixels sum to φ(x) − φ(b): ``residual`` reports by how much the quadrature misses it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lidc_xai.explain.networks.context import Context, Result, gradients
from lidc_xai.explain.pixels.baseline import start_image
from lidc_xai.explain.quadrature import quadrature


def saliency(context: Context, reduce: str = "sum") -> Result:
    """The gradient: (B, T, H, W). ``reduce``: signed "sum" over channels, "abs_sum" or "max_abs"."""
    return Result(_over_channels(_image_gradient(context), reduce), "autograd")


def input_x_gradient(context: Context, reduce: str = "sum") -> Result:
    """Pixel times gradient, in the normalised input space: (B, T, H, W). ``reduce``: "sum" or "abs_sum"."""
    return Result(_over_channels(context.images.unsqueeze(1) * _image_gradient(context), reduce), "autograd")


def smoothgrad(context: Context, samples: int = 50, sigma: float = 0.15, relative: bool = True) -> Result:
    """Mean gradient over noisy copies: (B, T, H, W).

    ``sigma``: in units of each image's max − min (``relative``), or of the normalised input. Extras: ``sigma`` (B,)
    as it was used.
    """
    images = context.images
    spread = torch.full((len(images),), float(sigma), dtype=images.dtype, device=images.device)
    if relative:
        spread = spread * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))
    generator = context.generator()
    total = None
    for chunk in chunks(samples, context.copies):
        noise = context.noise(chunk.stop - chunk.start, tuple(images.shape[1:]), generator)
        copies = images.unsqueeze(1) + spread.view(-1, 1, 1, 1, 1) * noise
        part = _copy_gradients(context, copies).sum(2)
        total = part if total is None else total + part
    assert total is not None
    return Result(total.sum(2) / samples, "autograd", {"sigma": spread})


def integrated_gradients(
    context: Context, steps: int = 50, rule: str = "gauss-legendre", baseline: Tensor | str | None = None
) -> Result:
    """Pixel difference to the baseline times the mean gradient on the way from it: (B, T, H, W).

    ``baseline``: None (zeros in normalised space), "black", or an image (C, H, W) or (B, C, H, W). Extras:
    ``baseline_values`` (B, T), and ``residual`` (B, T): sum of the map − (φ(x) − φ(baseline)).
    """
    start = start_image(context, baseline)
    path = context.images - start
    nodes, weights = (torch.tensor(part, dtype=path.dtype, device=path.device) for part in quadrature(rule, steps))
    total = None
    for chunk in chunks(steps, context.copies):
        alpha, weight = nodes[chunk].view(-1, 1, 1, 1), weights[chunk].view(-1, 1, 1, 1)
        shares = (weight * _copy_gradients(context, start.unsqueeze(1) + alpha * path.unsqueeze(1))).sum(2)
        total = shares if total is None else total + shares
    assert total is not None
    relevance = (path.unsqueeze(1) * total).sum(2)
    with torch.no_grad():
        before = context.scores(start)
    residual = relevance.sum((-2, -1)) - (context.values - before)
    return Result(relevance, "autograd", {"baseline_values": before, "residual": residual})


def _image_gradient(context: Context) -> Tensor:
    """(B, T, C, H, W): the gradient at the images themselves, whose outputs are kept on the way."""
    inputs = context.images.clone().requires_grad_()
    return gradients(context.scores(inputs, record=True), inputs).transpose(0, 1)


def _copy_gradients(context: Context, copies: Tensor) -> Tensor:
    """(B, T, n, C, H, W): the gradient at n copies (B, n, C, H, W) of each image."""
    copies.requires_grad_()
    return gradients(context.scores(copies), copies).transpose(0, 1)


def _over_channels(scores: Tensor, reduce: str) -> Tensor:
    """(B, T, C, H, W) → (B, T, H, W)."""
    if reduce == "sum":
        return scores.sum(2)
    return scores.abs().sum(2) if reduce == "abs_sum" else scores.abs().amax(2)


def chunks(count: int, size: int) -> Iterator[slice]:
    """0 … count − 1 in slices of at most ``size``."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
