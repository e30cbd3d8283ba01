"""Files as their publishers write them, from committed key lists, and an independent plain forward pass to compare
with.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lidc_xai.models import build_backbone

os.environ["HF_HUB_OFFLINE"] = "1"

KEYS = Path(__file__).parent / "official_keys"


def read_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the published file of a backbone."""
    lines = (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if not line.startswith("#")]
    return {key: tuple(int(side) for side in shape.split("x") if side) for key, shape in pairs}


@pytest.fixture(scope="session")
def official_keys() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """``official_keys("dino_vits8")``."""
    return read_keys


@pytest.fixture(scope="session")
def official_tensors() -> Callable[..., dict[str, Tensor]]:
    """Random tensors under the publisher's keys; ``hollow=True`` gives the shapes without the bytes."""

    def make(name: str, hollow: bool = False) -> dict[str, Tensor]:
        pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1))

        def random(shape: tuple[int, ...], start: int) -> Tensor:
            # pieces of one pool, a prime long: quick, and no two rows alike
            count = math.prod(shape)
            return pool.roll(start).repeat(count // len(pool) + 1)[:count].reshape(shape)

        tensors = {}
        for number, (key, shape) in enumerate(read_keys(name).items()):
            if key.endswith("num_batches_tracked"):
                tensors[key] = torch.tensor(1)
            elif hollow:
                tensors[key] = torch.full((1,), 0.01).expand(shape) if shape else torch.tensor(0.0)
            elif key.endswith(("running_var", "gamma")):
                tensors[key] = random(shape, 7919 * number).abs() + 0.5
            else:
                tensors[key] = random(shape, 7919 * number) * 0.05
        return tensors

    return make


@pytest.fixture(scope="session")
def plain_vit() -> Callable[..., Tensor]:
    """A ViT's forward pass written from the publishers' definitions, straight on their state dict: normed tokens."""

    def forward(state: dict[str, Tensor], images: Tensor, heads: int, patch: int) -> Tensor:
        weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        x = functional.conv2d(images, weight, bias, stride=patch).flatten(2).transpose(1, 2)
        batch, width = x.shape[0], x.shape[2]
        first = [state["cls_token"]] + ([state["dist_token"]] if "dist_token" in state else [])
        x = torch.cat([*(token.expand(batch, -1, -1) for token in first), x], 1) + state["pos_embed"]
        if "register_tokens" in state:
            x = torch.cat([x[:, :1], state["register_tokens"].expand(batch, -1, -1), x[:, 1:]], 1)
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        for number in range(depth):
            block = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith(f"blocks.{number}.")}
            x = x + block.get("ls1.gamma", 1.0) * _attention(_norm(x, block, "norm1"), block, heads, width)
            hidden = functional.linear(_norm(x, block, "norm2"), block["mlp.fc1.weight"], block["mlp.fc1.bias"])
            made = functional.linear(functional.gelu(hidden), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
            x = x + block.get("ls2.gamma", 1.0) * made
        return _norm(x, state, "norm")

    return forward


@pytest.fixture(scope="session")
def empty_network() -> Callable[..., nn.Module]:
    """A timm network of the table without the time that random initial weights take."""

    def build(name: str, **arguments: int) -> nn.Module:
        with torch.device("meta"):
            network = build_backbone(name, **arguments)
        return network.to_empty(device="cpu").eval()

    return build


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _attention(x: Tensor, block: dict[str, Tensor], heads: int, width: int) -> Tensor:
    batch, tokens, _ = x.shape
    qkv = functional.linear(x, block["attn.qkv.weight"], block["attn.qkv.bias"])
    q, k, v = qkv.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, tokens, width)
    return functional.linear(mixed, block["attn.proj.weight"], block["attn.proj.bias"])
