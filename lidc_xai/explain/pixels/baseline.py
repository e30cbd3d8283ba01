"""Where an integration path towards an image begins: zeros, a black image, or an image of the caller's.

Black is known only for a model that says how its input was normalised: a nodule model (air at the window's lower
end), a timm model (``pretrained_cfg``) or a torchvision one (ImageNet's mean and standard deviation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain.networks.context import Context
from lidc_xai.explain.networks.wrappers import unwrapped

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def start_image(context: Context, baseline: Tensor | str | None) -> Tensor:
    """The baseline of each image, (B, C, H, W): None is 0 in normalised space, "black" a black image."""
    images = context.images
    if baseline is None or (isinstance(baseline, str) and baseline == "zero"):
        return torch.zeros_like(images)
    if isinstance(baseline, Tensor):
        return _given(baseline, images)
    if baseline != "black":
        raise UsageError(f"baseline is None, 'zero', 'black' or an image as a tensor, not {baseline!r}")
    pixel = black_pixel(context.model)
    if pixel is None:
        name = type(unwrapped(context.model)).__name__
        raise UsageError(f"baseline='black': {name} does not say how its input was normalised; give a tensor (C, 1, 1)")
    return _given(torch.tensor(pixel).view(-1, 1, 1), images)


def black_pixel(model: nn.Module) -> tuple[float, ...] | None:
    """A black pixel (C) in the model's normalised input space, or None where the model does not say."""
    known = normalisation(model)
    return None if known is None else tuple(-mean / std for mean, std in zip(*known, strict=True))


def normalisation(model: nn.Module) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) per channel of pixels in [0, 1], as the model's input was normalised, or None: it does not say."""
    model = unwrapped(model)
    window = getattr(model, "preprocess", None)
    if window is not None and hasattr(window, "window"):
        low, high = window.window
        return [(window.mean - low) / (high - low)], [window.std / (high - low)]
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None) or {}
        if config.get("mean") and config.get("std"):
            return config["mean"], config["std"]
    return (IMAGENET_MEAN, IMAGENET_STD) if type(model).__module__.startswith("torchvision.") else None


def _given(baseline: Tensor, images: Tensor) -> Tensor:
    """A caller's image for every image of the batch; ``UsageError`` where the shapes do not meet."""
    baseline = baseline.detach().to(images)
    try:
        full = baseline.expand_as(images)
    except RuntimeError:
        wanted = tuple(images.shape)
        raise UsageError(f"baseline has the shape {tuple(baseline.shape)}; these images have {wanted}") from None
    if not full.isfinite().all():
        raise UsageError("baseline holds values that are NaN or infinite")
    return full.clone()
