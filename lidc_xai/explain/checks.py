"""What may come in: images, and outputs without NaN."""

from __future__ import annotations

import warnings
from math import isfinite

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks.families import as_vit
from lidc_xai.explain.networks.manners import ordinary


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """Images fit for ``model``: on its device, in its dtype, without history. ``UsageError`` says what does not fit."""
    if not isinstance(images, Tensor):
        raise UsageError(f"images are a tensor (B, C, H, W), not {type(images).__name__}")
    if images.ndim != 4 or 0 in images.shape:
        hint = "; add the batch axis: images[None]" if images.ndim == 3 else ""
        raise UsageError(f"images have the shape (B, C, H, W), not {tuple(images.shape)}{hint}")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UsageError(f"images are {kind}; wanted float, scaled and normalised as the model was trained")
    low, high = (float(end) for end in images.detach().aminmax())  # NaN if any value is
    if not (isfinite(low) and isfinite(high)):
        raise UsageError(f"images hold {int((~images.isfinite()).sum())} values that are NaN or infinite")
    if max(high, -low) > 50:
        warnings.warn(
            f"images reach {max(high, -low):.0f}: normalised images lie within a few units of 0; "
            "were 0–255 pixels or Hounsfield units passed on as they are?",
            stacklevel=3,
        )
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    images = ordinary(images) if weight is None else ordinary(images).to(weight.device, weight.dtype)
    _check_size(model, images)
    return images


def _check_size(model: nn.Module, images: Tensor) -> None:
    channels, height, width = images.shape[1:]
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem.in_channels != channels:
        raise UsageError(f"images have {channels} channels; this model wants {stem.in_channels}")
    vit = as_vit(model)
    if vit is None:
        return
    wanted = vit.fixed_size
    if wanted is not None and wanted != (height, width):
        raise UsageError(f"images are {height} × {width} pixels; this model wants {wanted[0]} × {wanted[1]}")


def check_outputs(model: nn.Module, outputs: Tensor) -> None:
    """``ModelError`` where outputs are not finite, naming the weight that is not."""
    if outputs.isfinite().all():
        return
    for name, tensor in model.state_dict().items():
        if torch.is_tensor(tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"the model's weight {name} holds NaN or infinite values; load it again")
    raise ModelError("the model's outputs are NaN or infinite for these images, though its weights are finite")


def check_gradient(gradient: Tensor) -> Tensor:
    """``gradient`` as it is; ``ModelError`` where it is zero everywhere, since a map of zeros would say nothing."""
    if not gradient.any():
        raise ModelError(
            "the targets' gradient is zero at every token of this block: the head's weights are zero, or the score is "
            "saturated (explain LogOdds or Logit instead of Probability)"
        )
    return gradient
