"""The baseline of every comparison: a standard normal map that knows neither model nor target."""

from __future__ import annotations

from zlib import crc32

import torch

from lidc_xai.explain.networks.context import Context, Result


def random(context: Context) -> Result:
    """Normal noise on the token grid (on the pixels, for a model without tokens).

    An image's map depends on its pixels and the seed alone: it is the same in any batch, and differs between images.
    """
    images, vit = context.images, context.vit
    shape = vit.grid(images) if vit is not None else tuple(images.shape[-2:])
    maps = []
    for image in images:
        key = crc32(image.float().cpu().numpy().tobytes(), crc32(str(context.seed).encode()))
        generator = torch.Generator().manual_seed(key)
        maps.append(torch.randn(shape, generator=generator))
    return Result(torch.stack(maps).unsqueeze(1).to(images), "forward")
