"""Where an integration path towards an image begins: zeros, a black image, or an image of the caller's.

Black is known only for a model that says how its input was normalised: a nodule model (air at the window's lower
end), a timm model (``pretrained_cfg``) or a torchvision one (ImageNet's mean and standard deviation).
"""

from __future__ import annotations

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
    model = unwrapped(model)
    preprocess = getattr(model, "preprocess", None)
    if preprocess is not None and hasattr(preprocess, "window"):
        return ((preprocess.window[0] - preprocess.mean) / preprocess.std,)
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    if mean is None and type(model).__module__.startswith("torchvision."):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if mean is None or std is None:
        return None
    return tuple(-m / s for m, s in zip(mean, std, strict=True))


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
