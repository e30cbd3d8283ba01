"""The usual ways to compute the explanations: hooks, whole backward passes, one target at a time, as public code does.

They exist to be timed beside ``lidc_xai.explain`` (see ``explain.py`` here) and to check that both give the same maps.
Each takes a timm ViT, one image (1, 3, H, W) and the classes, and returns (classes, gh, gw).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Way = Callable[..., Tensor]


@contextmanager
def tokens_and_gradients(model: Any, change: Callable[[Tensor], Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """Forward hook and full backward hook on norm1 of the last block."""
    kept: dict[str, Tensor] = {}

    def forward(module: Any, inputs: Any, output: Tensor) -> Tensor:
        kept["t"] = output if change is None else change(output)
        return kept["t"]

    def backward(module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> None:
        kept["g"] = grad_output[0]

    layer = model.blocks[-1].norm1
    handles = [layer.register_full_backward_hook(backward), layer.register_forward_hook(forward)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _grid(model: Any, tokens: Tensor) -> Tensor:
    return tokens[..., model.num_prefix_tokens :].unflatten(-1, model.patch_embed.grid_size).detach()


def cdam(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    maps = []
    with tokens_and_gradients(model) as kept:
        y = model(x.clone().requires_grad_())
        for c in classes:
            model.zero_grad()
            y[0, c].backward(retain_graph=True)
            maps.append((kept["t"] * kept["g"])[0].sum(-1))
    return _grid(model, torch.stack(maps))


def gradcam(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    maps = []
    with tokens_and_gradients(model) as kept:
        y = model(x.clone().requires_grad_())
        for c in classes:
            model.zero_grad()
            y[0, c].backward(retain_graph=True)
            maps.append(kept["t"][0] @ kept["g"][0, model.num_prefix_tokens :].mean(0))
    return _grid(model, torch.stack(maps))


Change = tuple[float, Callable[[Tensor], Tensor]]


def _along(model: Any, x: Tensor, classes: list[int], changes: list[Change]) -> Tensor:
    """Mean over changed tokens t′ of t′/scale · ∂f(t′): a whole forward and backward pass for each, and each class."""
    maps = torch.zeros(())
    for scale, change in changes:
        found = []
        for c in classes:
            model.zero_grad()
            with tokens_and_gradients(model, change) as kept:
                model(x.clone().requires_grad_())[0, c].backward()
            found.append((kept["t"] / scale * kept["g"])[0].sum(-1))
        maps = maps + torch.stack(found)
    return _grid(model, maps / len(changes))


def smooth_cdam(model: Any, x: Tensor, classes: list[int], samples: int) -> Tensor:
    def noisy(t: Tensor) -> Tensor:
        return t + 0.15 * t.std() * torch.randn_like(t)

    return _along(model, x, classes, [(1.0, noisy)] * samples)


def integrated_cdam(model: Any, x: Tensor, classes: list[int], steps: int) -> Tensor:
    return _along(model, x, classes, [(k / steps, lambda t, k=k: t * (k / steps)) for k in range(1, steps + 1)])


def reciprocam(model: Any, x: Tensor, classes: list[int], at_once: int = 32) -> Tensor:
    """An N-fold batch of masked feature maps through the last block and the head, as the official code."""
    rows, columns = model.patch_embed.grid_size
    masks = torch.zeros(rows * columns, rows + 2, columns + 2)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for i in range(rows):
        for j in range(columns):
            masks[i * columns + j, i : i + 3, j : j + 3] = kernel
    flat = masks[:, 1:-1, 1:-1].flatten(1)
    keep = torch.cat([torch.ones(len(flat), model.num_prefix_tokens), flat], 1).to(x)
    block = model.blocks[-1]
    with torch.no_grad():
        z = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for earlier in model.blocks[:-1]:
            z = earlier(z)
        t = block.norm1(z)
        scores = []
        for mask in keep.split(at_once):
            out = z + block.attn(t * mask.unsqueeze(-1))
            out = out + block.mlp(block.norm2(out))
            scores.append(model.forward_head(model.norm(out)).softmax(-1)[:, classes])
    return torch.cat(scores).T.unflatten(-1, (rows, columns))


@contextmanager
def attention_kept(model: Any) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Unfused attention with hooks on its dropout: matrices and, after a backward pass, their gradients in order."""
    matrices: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        matrices.append(output)
        if output.requires_grad:
            output.register_hook(lambda g: gradients.insert(0, g))

    handles = []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(keep))
    try:
        yield matrices, gradients
    finally:
        for handle, block in zip(handles, model.blocks, strict=True):
            handle.remove()
            block.attn.fused_attn = True


def attention(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    with torch.no_grad(), attention_kept(model) as (matrices, _):
        model(x)
    return _grid(model, matrices[-1][0].mean(0)[0]).expand(len(classes), -1, -1)


def attention_rollout(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    with torch.no_grad(), attention_kept(model) as (matrices, _):
        model(x)
        joint = eye = torch.eye(matrices[0].shape[-1])
        for a in matrices:
            mean = a[0].mean(0) + eye
            joint = (mean / mean.sum(-1, keepdim=True)) @ joint
    return _grid(model, joint[0]).expand(len(classes), -1, -1)


def relevance_propagation(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    maps = []
    for c in classes:
        model.zero_grad()
        with attention_kept(model) as (matrices, gradients):
            model(x.clone().requires_grad_())[0, c].backward()
        r = torch.eye(matrices[0].shape[-1])
        for a, g in zip(matrices, gradients, strict=True):
            r = r + (a.detach() * g)[0].clamp(min=0).mean(0) @ r
        maps.append(r[0])
    return _grid(model, torch.stack(maps))


def token_ablation(model: Any, x: Tensor, classes: list[int]) -> Tensor:
    """One forward pass per token, on the last block's input."""
    maps = []
    with torch.no_grad():
        z = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        whole = model(x)[0, classes]
        for i in range(model.num_prefix_tokens, z.shape[1]):
            kept = torch.cat([z[:, :i], z[:, i + 1 :]], 1)
            maps.append(whole - model.forward_head(model.norm(model.blocks(kept)))[0, classes])
    return torch.stack(maps, 1).unflatten(-1, model.patch_embed.grid_size)


WAYS: dict[str, Way] = {
    "attention": attention,
    "attention_rollout": attention_rollout,
    "cdam": cdam,
    "gradcam": gradcam,
    "integrated_cdam": integrated_cdam,
    "reciprocam": reciprocam,
    "relevance_propagation": relevance_propagation,
    "smooth_cdam": smooth_cdam,
    "token_ablation": token_ablation,
}
REPEATED = {"smooth_cdam": "samples", "integrated_cdam": "steps"}
"""Ways whose cost is proportional to an option: measured with few and extrapolated."""
