"""Where a patch lies, known from the start: sines and cosines of its place (Vaswani et al. 2017, in two dimensions).

Nodules lie in the middle of their crop. Random positions have to be learned before a small ViT from scratch can tell
the nodule from its surroundings; these say it at once, and they go on learning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AMPLITUDE = 0.5
BASE = 100.0


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
