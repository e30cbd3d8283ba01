"""Patches through a few small convolutions instead of one large one (Xiao et al. 2021, arXiv 2106.14881).

Everything after it is a plain ViT, so that every estimator works; from scratch on a few hundred nodules it learns the
size of a nodule in a fraction of the steps. Nodules lie in the middle of their crop, and random positions have to be
learned before a small ViT can tell the nodule from its surroundings: sines and cosines of a patch's place (Vaswani et
al. 2017, in two dimensions) say it at once, and go on learning.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from lidc_xai.errors import UsageError

AMPLITUDE = 0.5
BASE = 100.0


class ConvStem(PatchEmbed):
    """(B, 3, H, W) -> one token per patch: log2(patch) convolutions of stride 2, then one of 1 × 1."""

    def __init__(self, in_chans: int = 3, embed_dim: int = 192, **options: Any) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **options)
        halvings = int(math.log2(self.patch_size[0]))
        if 2**halvings != self.patch_size[0]:
            raise UsageError(f"a convolutional stem needs a patch that is a power of two, got {self.patch_size[0]} px")
        layers: list[nn.Module] = []
        width = in_chans
        for number in range(halvings):
            wider = embed_dim // 2 ** (halvings - 1 - number)
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.GELU()]
            width = wider
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1))  # type: ignore[assignment]


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """(rows · columns, width) of sines and cosines of x and y, counted in tokens from the middle of the image.

    Channel k of each quarter has the frequency ``BASE ** (-4 k / width)`` per token; ``width`` is a multiple of four.
    """
    quarter = width // 4
    frequency = BASE ** (-torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(_from_middle(rows), _from_middle(columns), indexing="ij")
    parts = [wave(axis.reshape(-1, 1) * frequency) for axis in (x, y) for wave in (torch.sin, torch.cos)]
    return AMPLITUDE * torch.cat(parts, dim=1)


def place_tokens(module: nn.Module) -> None:
    """Replace the patches' random positions of a timm ViT by ``sine_positions``; its class token keeps its own."""
    rows, columns = module.patch_embed.grid_size  # type: ignore[union-attr,misc]
    embedding: Tensor = module.pos_embed  # type: ignore[assignment]
    positions = sine_positions(int(rows), int(columns), embedding.shape[-1])
    with torch.no_grad():
        embedding[0, -len(positions) :] = positions


def _from_middle(count: int) -> Tensor:
    return torch.arange(count) - (count - 1) / 2
