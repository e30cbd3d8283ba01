"""Patches through a few small convolutions instead of one large one (Xiao et al. 2021, arXiv 2106.14881).

Everything after it is a plain ViT, so that every estimator works; from scratch on a few hundred nodules it learns the
size of a nodule in a fraction of the steps.
"""

from __future__ import annotations

import math
from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from lidc_xai.errors import UsageError


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
