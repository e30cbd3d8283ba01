"""The patch embedding's output, before positions are added: where a ViT's relevance by token is read.

Its module is found by the name that libraries give it. The graph begins at its output, so that the image itself is not
differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.wrappers import unwrapped

_NAMES = ("patch_embed", "patch_embeddings", "patch_embedding", "to_patch_embedding", "conv_proj", "embeds.proj")


def patch_embedding(model: nn.Module) -> tuple[str, nn.Module] | None:
    """(name, module) of the patch embedding, or None where the model has none."""
    for name, module in unwrapped(model).named_modules():
        if any(f".{name}".endswith(f".{known}") for known in _NAMES):
            return name, module
    return None


def from_embedding(model: nn.Module, forward: Callable[[], Outputs]) -> tuple[Tensor, Outputs]:
    """(e, outputs): the patch embedding's output e as it came, the leaf of the graph, and ``forward()`` from there."""
    embedding = patch_embedding(model)
    if embedding is None:
        raise ModelError("it has no patch embedding")
    name, module = embedding
    seen: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or first.ndim not in (3, 4):
            raise ModelError(f"the patch embedding {name} returns no tokens")
        seen.append(first.detach().clone().requires_grad_())
        passed_on = seen[-1].clone()  # an in-place addition of positions must not change what was seen
        return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on

    with hooked(module, cut):
        outputs = forward()
    if len(seen) != 1:
        raise ModelError(f"the patch embedding {name} runs {len(seen)} times in a forward pass")
    return seen[0], outputs


def token_sums(products: Tensor, module: nn.Module, size: tuple[int, int]) -> Tensor:
    """(..., patches, D), (..., gh, gw, D) or (..., D, gh, gw) → (..., gh, gw), summed over the D channels.

    ``products`` (T, B, …) of an image of ``size``; which axis holds the channels, the embedding's last weights say.
    """
    if products.ndim == 5:
        # D: rows of the embedding's last weight matrix or kernel
        width = next((p.shape[0] for p in reversed([*module.parameters()]) if p.ndim in (2, 4)), None)
        channels_last = products.shape[-1] == width and products.shape[2] != width
        return products.sum(-1 if channels_last else 2)
    tokens = products.sum(-1)
    count = tokens.shape[-1]
    rows = round((count * size[0] / size[1]) ** 0.5)
    if rows == 0 or count % rows:
        raise ModelError(f"the patch embedding gives {count} tokens, which is no grid for {size[0]} × {size[1]} pixels")
    return tokens.unflatten(-1, (rows, count // rows))


def tokens_before_positions(model: nn.Module) -> str | None:
    """Why there is no such place in ``model``, or None."""
    if patch_embedding(model) is None:
        return f"{type(unwrapped(model)).__name__} has no patch embedding (use input_x_gradient)"
    return None


def times_gradient(e: Tensor, gradient: Tensor, model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Σ over channels of e ⊙ ∂f/∂e on the token grid: (B, T, gh, gw) from gradients (T, *e.shape)."""
    embedding = patch_embedding(model)
    assert embedding is not None
    with torch.no_grad():
        return token_sums(e.detach() * gradient, embedding[1], size).transpose(0, 1)
