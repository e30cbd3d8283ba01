"""Token times gradient, with the plain backward pass or with a changed one (``networks.changed_backward``).

    token_input_x_gradient    S_i = Σ_j e_ij ∂f/∂e_ij        e: the patch embedding's output, before positions
    attn_lrp                  the same with the backward pass of Achtibat et al., ICML 2024
    libragrad                 a gradient method with that of Mehri et al., CVPR 2025

With attention as a constant and γ = 0 the network is affine around the image: f = Σ e ⊙ ∂f/∂e + Σ biases ⊙ ∂f/∂b, where
CLS token, registers and positions are among the biases. The map is then f's share that comes from each patch.
"""

from __future__ import annotations

from typing import Any

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.changed_backward import LIBRA, Rules
from lidc_xai.explain.networks.context import Context, Result, gradients
from lidc_xai.explain.networks.embedding import from_embedding, patch_embedding, times_gradient
from lidc_xai.explain.networks.plain_model import plain_forward
from lidc_xai.explain.pixels.cam import gradcam
from lidc_xai.explain.pixels.fullgrad import fullgrad
from lidc_xai.explain.pixels.gradients import input_x_gradient
from lidc_xai.explain.tokens.cdam import cdam


def token_input_x_gradient(context: Context) -> Result:
    """(B, T, gh, gw), signed; a hierarchical network's first, finest grid."""
    images, parts = context.images, context.run.parts
    # composed of its parts, a model whose head reads CLS computes its last block for that token alone
    forward = (lambda: plain_forward(context.model, images)) if parts is None else (lambda: parts.forward(images))
    e, outputs = from_embedding(context.model, lambda: context.network(forward))
    context.run.record(outputs)
    slopes = gradients(context.targets.scores(outputs), e)
    size = (images.shape[-2], images.shape[-1])
    return Result(times_gradient(e, slopes, context.model, size), "autograd")


def attn_lrp(
    context: Context,
    *,
    attention: str = "uniform",
    gamma_linear: float = 0.0,
    gamma_conv: float = 0.0,
    at: str = "tokens",
) -> Result:
    """(B, T, gh, gw) at the patch embedding's output, or (B, T, H, W) at the pixels (always, where a network has no
    patch embedding). ``attention="detach"``: attention, gates and norms are constants, as in LibraGrad."""
    context.change_backward(Rules(attention == "detach", float(gamma_linear), float(gamma_conv)))
    if at == "tokens" and patch_embedding(context.model) is not None:
        return token_input_x_gradient(context)
    return input_x_gradient(context)


_BASES = {one.__name__: one for one in (token_input_x_gradient, input_x_gradient, fullgrad, gradcam, cdam)}


def libragrad(
    context: Context, *, base: str = "token_input_x_gradient", layer: Any = None, relu: bool = False
) -> Result:
    """The method ``base``, as its own option ``backward="libra"`` gives it. ``layer`` is of gradcam and cdam, ``relu``
    of gradcam."""
    options: dict[str, Any] = {} if layer is None else {"layer": layer}
    options |= {"relu": True} if relu else {}
    taken = {"gradcam": {"layer", "relu"}, "cdam": {"layer"}}.get(base, set())
    if options.keys() - taken:
        raise UsageError(f"libragrad with base={base!r} has no option {min(options.keys() - taken)!r}")
    if base == "cdam" and context.vit is None:
        raise ModelError("libragrad with base='cdam' needs a Vision Transformer's tokens")
    if base == "token_input_x_gradient" and patch_embedding(context.model) is None:
        base = "input_x_gradient"
    context.change_backward(LIBRA)
    return _BASES[base](context, **options)
