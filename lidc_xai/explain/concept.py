"""Concept vectors: what a model's head reads, averaged over images that show a concept.

c = (1/n) Σ_k l(x_k),      l the vector that the head reads (after the final norm; CLS or pooled as the model does)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.explain.checks import check_images
from lidc_xai.explain.networks.context import Pass
from lidc_xai.explain.networks.manners import borrowed, in_float32, one_line
from lidc_xai.explain.networks.wrappers import unwrapped

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def concept_vector(
    model: nn.Module,
    images: Tensor | str | Path,
    max_batch: int | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """(D,): the mean over images of the vector that the model's head reads; for ``ConceptSimilarity``.

    ``images``: (n, C, H, W), normalised as the model wants them, or a folder of pictures, each read with
    ``transform`` (PIL picture → (C, H, W); default: the model's own, which timm models know). ``max_batch``: images
    per pass (default 8). ``UsageError`` for a folder without pictures, ``ModelError`` for an unknown head.

    >>> concept_vector(vit, images).shape
    torch.Size([24])
    """
    if max_batch is not None and max_batch < 1:
        raise UsageError(f"max_batch is a whole number from 1, not {max_batch}")
    if not isinstance(images, Tensor):
        images = _read_folder(Path(images), transform or _own_transform(model))
    total = torch.zeros(())
    with borrowed(model), in_float32(model), one_line(model):
        images = check_images(model, images)
        for chunk in images.split(max_batch or 8):
            features = Pass(model, chunk).outputs.features
            if features is None:
                raise ModelError("no concept vector: it is not known which vector this model's head reads")
            total = total.to(features) + features.sum(0)
    return total / len(images)


def _read_folder(folder: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give a folder of pictures, or a tensor (n, C, H, W)")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise UsageError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    read = []
    for file in files:
        try:
            with Image.open(file) as picture:
                read.append(transform(picture.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{file} cannot be read as a picture: {error}") from error
    return torch.stack(read)


def _own_transform(model: nn.Module) -> Callable[[Any], Tensor]:
    """The evaluation transform that a timm model was published with."""
    from timm.data import create_transform, resolve_model_data_config

    model = unwrapped(model)
    if not hasattr(model, "pretrained_cfg"):
        raise UsageError(
            f"{type(model).__name__} does not say how pictures are prepared for it; give transform=, or a tensor"
        )
    made: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    return made
