"""Tiny float64 ViTs of every kind, and naive references for the token methods that share no code with the package.

A reference explains one image and one target with hooks on the whole model and one full forward and backward pass at
a time; attention products are full T × T matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

CLASSES = 5
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
PLAIN = "vit_tiny_patch16_224"

KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "plain": (PLAIN, {}, (32, 32)),
    "registers": (PLAIN, {"reg_tokens": 4, "num_heads": 4}, (24, 40)),
    "one head": (PLAIN, {"num_heads": 1, "depth": 1, "qkv_bias": False}, (32, 24)),
    "layer scale": (PLAIN, {"init_values": 0.5, "pre_norm": True, "no_embed_class": True}, (32, 24)),
    "dynamic size": (PLAIN, {"dynamic_img_size": True, "img_size": (32, 32)}, (24, 40)),
    "norm behind pooling": (PLAIN, {"fc_norm": True}, (32, 32)),
    "q/k-norm": (PLAIN, {"qk_norm": True, "scale_attn_norm": True}, (32, 24)),
    "mean": (PLAIN, {"global_pool": "avg"}, (24, 32)),
    "mean without CLS": (PLAIN, {"global_pool": "avg", "class_token": False}, (32, 24)),
    "attention pooling": (PLAIN, {"global_pool": "map", "class_token": False}, (32, 24)),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, (32, 24)),
    "torchvision": ("", {}, (32, 32)),
}
CLOSED = ("plain", "registers", "one head", "layer scale", "dynamic size", "norm behind pooling", "torchvision")
READS_CLS = (*CLOSED, "q/k-norm")


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter gets a value that matters: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.double().eval()


def make(kind: str) -> nn.Module:
    name, options, size = KINDS[kind]
    if kind == "torchvision":
        model: nn.Module = torchvision.models.VisionTransformer(size[0], 8, 3, 3, 24, 48, num_classes=CLASSES)
    else:
        model = timm.create_model(name, **{"img_size": size, **SMALL, **options})
    return randomise(model, seed=len(kind))


@pytest.fixture(scope="session")
def build() -> Callable[[str], nn.Module]:
    """kind → a fresh model of it."""
    return make


@pytest.fixture(scope="session")
def images_of() -> Callable[[str], Tensor]:
    """kind → two images (2, 3, H, W) of its size."""

    def images(kind: str) -> Tensor:
        return torch.randn(2, 3, *KINDS[kind][2], generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    return images


@pytest.fixture(scope="session")
def kinds() -> SimpleNamespace:
    """Names of the kinds of models."""
    return SimpleNamespace(all=tuple(KINDS), closed=CLOSED, reads_cls=READS_CLS)


class Naive:
    """A model taken apart by hooks, for one image and one scalar of its outputs."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        self.model = model
        self.torchvision = not hasattr(model, "blocks")
        self.blocks = list(model.encoder.layers if self.torchvision else model.blocks)
        self.norms = [block.ln_1 if self.torchvision else block.norm1 for block in self.blocks]
        self.attentions = [block.self_attention if self.torchvision else block.attn for block in self.blocks]
        self.prefix = 1 if self.torchvision else model.num_prefix_tokens
        self.grid = (size[0] // 8, size[1] // 8)
        self.features: list[Tensor] = []
        head = model.heads if self.torchvision else model.head
        head.register_forward_pre_hook(lambda module, inputs: self.features.append(inputs[0]))
        if hasattr(model, "head_dist"):
            model.head_dist.register_forward_pre_hook(lambda module, inputs: self.features.append(inputs[0]))

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (C,) and the vector (D,) that the head reads (the mean of both of a distilled model)."""
        self.features.clear()
        y = self.model(x)
        return y[0], torch.stack(self.features).mean(0)[0]

    def map(self, scores: Tensor) -> Tensor:
        """(T,) scores → (gh, gw)."""
        return scores[self.prefix :].reshape(self.grid).detach()

    @contextmanager
    def at_norm1(self, change: Callable[[Tensor], Tensor], layer: int = -1) -> Iterator[list[Tensor]]:
        """Replace norm1's output by ``change`` of it; what went on is kept, with its gradient."""
        seen: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            seen.append(change(output))
            if not seen[-1].requires_grad:
                seen[-1].requires_grad_()
            seen[-1].retain_grad()
            return seen[-1]

        handle = self.norms[layer].register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def token_gradient(
        self, x: Tensor, score: Callable[..., Tensor], change: Callable[[Tensor], Tensor] = lambda t: t, layer: int = -1
    ) -> tuple[Tensor, Tensor]:
        """(tokens (T, D), gradient of the score there) at norm1 of a block."""
        with self.at_norm1(change, layer) as seen:
            score(*self.run(x)).backward()
        return seen[0].detach()[0], seen[0].grad[0]

    def value(
        self, x: Tensor, score: Callable[..., Tensor], change: Callable[[Tensor], Tensor], layer: int = -1
    ) -> Tensor:
        with self.at_norm1(change, layer):
            return score(*self.run(x)).detach()

    @contextmanager
    def attention(self) -> Iterator[list[Tensor]]:
        """Every attention matrix (1, H, T, T) of the forward pass, in order, with its gradient."""
        seen: list[Tensor] = []

        def spelled_out(module: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
            heads, (batch, count, width) = module.num_heads, t.shape
            if self.torchvision:
                qkv = t @ module.in_proj_weight.T + module.in_proj_bias
            else:
                qkv = module.qkv(t)
            q, k, v = qkv.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            if not self.torchvision:
                q, k = module.q_norm(q), module.k_norm(k)
            logits = torch.einsum("bhid,bhjd->bhij", q, k) / (width // heads) ** 0.5
            a = logits.exp() / logits.exp().sum(-1, keepdim=True)
            if not a.requires_grad:
                a.requires_grad_()
            a.retain_grad()
            seen.append(a)
            o = torch.einsum("bhij,bhjd->bihd", a, v).reshape(batch, count, width)
            return (module.out_proj(o), None) if self.torchvision else module.proj(module.norm(o))

        kept = [module.forward for module in self.attentions]
        for module in self.attentions:
            module.forward = partial(spelled_out, module)
        try:
            yield seen
        finally:
            for module, forward in zip(self.attentions, kept, strict=True):
                module.forward = forward

    def attention_and_gradient(self, x: Tensor, score: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor]]:
        """[(A_l, ∂score/∂A_l)], each (H, T, T), first block first."""
        with self.attention() as seen:
            score(*self.run(x)).backward()
        return [(a.detach()[0], torch.zeros_like(a[0]) if a.grad is None else a.grad[0]) for a in seen]

    def rows(self, matrix: Tensor) -> Tensor:
        """The rows (T, T) → (T,) that the head reads."""
        pooled = not self.torchvision and self.model.global_pool != "token"
        return matrix[self.prefix :].mean(0) if pooled else matrix[0]


@pytest.fixture(scope="session")
def naive() -> Callable[[nn.Module, Tensor], Naive]:
    """(model, images) → its naive counterpart. The model gets hooks: give it a copy."""
    return lambda model, images: Naive(model, (images.shape[-2], images.shape[-1]))


CONCEPT = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

SCORES: dict[str, Callable[[int], Callable[[Tensor, Tensor], Tensor]]] = {
    "Logit": lambda c: lambda y, v: y[c],
    "Probability": lambda c: lambda y, v: torch.softmax(y, 0)[c],
    "LogProbability": lambda c: lambda y, v: torch.softmax(y, 0)[c].log(),
    "LogOdds": lambda c: lambda y, v: (torch.softmax(y, 0)[c] / (1 - torch.softmax(y, 0)[c])).log(),
    "MeanContrast": lambda c: lambda y, v: y[c] - torch.stack([y[s] for s in range(CLASSES) if s != c]).mean(),
    "MaxContrast": lambda c: lambda y, v: y[c] - torch.stack([y[s] for s in range(CLASSES) if s != c]).max(),
    "dot": lambda c: lambda y, v: (v * CONCEPT).sum(),
    "cosine": lambda c: lambda y, v: (v * CONCEPT).sum() / (v.norm() * CONCEPT.norm()),
    "l2": lambda c: lambda y, v: -((v - CONCEPT) ** 2).sum().sqrt(),
}


@pytest.fixture(scope="session")
def scores() -> dict[str, Callable[[int], Callable[[Tensor, Tensor], Tensor]]]:
    """Name of a target → class → score(outputs (C,), features (D,)), written out from the definitions."""
    return SCORES


@pytest.fixture(scope="session")
def concept() -> Tensor:
    """(D,)"""
    return CONCEPT
