"""Bias times gradient at every affine operation of a forward pass, placed on the image: the terms of FullGrad.

Operations are caught where they are called (``F.conv2d``, ``F.linear``, ``F.batch_norm``, ``F.layer_norm``,
``F.group_norm``), so that it does not matter which module calls them, nor whether it adds an activation of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.changed_backward import argument

Arguments = dict[str, Any]
CHANNELS_FIRST = (F.conv2d, F.batch_norm, F.group_norm)


class BiasTerms(TorchFunctionMode):
    """Inside ``with terms:`` every affine operation is noted; each backward pass then leaves its terms for ``take``.

    ``grid``: None for a network on an image grid, whose terms are spread over the pixels; (gh, gw) for a ViT, whose
    terms stay on the tokens. ``absolute``: the public code's scaling instead of signed sums.
    """

    def __init__(self, images: Tensor, grid: tuple[int, int] | None, absolute: bool = False) -> None:
        super().__init__()
        self.images = images
        self.grid = grid
        self.absolute = absolute
        self._reset()

    def _reset(self) -> None:
        like, shape = self.images, self.grid or tuple(self.images.shape[-2:])
        self._map = torch.zeros(len(like), *shape, dtype=like.dtype, device=like.device)
        self._flat = torch.zeros(len(like), dtype=like.dtype, device=like.device)

    def take(self) -> tuple[Tensor, Tensor]:
        """The terms of the last backward pass: on the image (B, ·, ·), and on no position of it (B,)."""
        terms = self._map, self._flat
        self._reset()
        return terms

    def input_map(self, product: Tensor) -> Tensor:
        """Input times gradient (B, C, H, W) as a map."""
        if self.absolute:
            return _scaled(product).sum(1)
        total = product.sum(1)
        return total if self.grid is None else spread(total, self.grid)

    def note_tokens(self, z: Tensor, constant: Tensor) -> Tensor:
        """Tokens z (B, T, D) of which ``constant`` (B, T, D) does not come from the image (position embedding, CLS)."""
        return self._note(z, constant, channels_last=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        find = BIASES.get(func)
        if find is None or not output.requires_grad:
            return output
        bias = find(args, kwargs or {})
        return output if bias is None else self._note(output, bias, channels_last=func not in CHANNELS_FIRST)

    def _note(self, output: Tensor, bias: Tensor, channels_last: bool) -> Tensor:
        if len(output) != len(self.images):
            raise ModelError(
                f"fullgrad: a layer works on {tuple(output.shape)} for {len(self.images)} images (windows or groups): "
                "its biases have no place on the image"
            )
        if not channels_last:
            bias = bias.view(-1, *[1] * (output.ndim - 2))
        output.register_hook(partial(self._add, bias=bias.detach(), channels_last=channels_last))
        return output.clone()  # an in-place activation must not move what was noted

    def _add(self, gradient: Tensor, bias: Tensor, channels_last: bool) -> None:
        term = gradient.detach() * bias
        if channels_last:
            term = term.movedim(-1, 1)
        if self.grid is not None:
            self._add_tokens(term)
        elif term.ndim == 4 and max(term.shape[-2:]) > 1:
            size = tuple(self.images.shape[-2:])
            if self.absolute:
                full = F.interpolate(_scaled(term), size=size, mode="bilinear", align_corners=True)
                self._map += full.sum(1)
            else:
                self._map += spread(term.sum(1), size)
        else:
            self._flat += term.flatten(1).sum(1)

    def _add_tokens(self, term: Tensor) -> None:
        """A ViT's term (B, D, gh, gw), (B, D, T) or (B, D): patches on the grid, everything else flat."""
        assert self.grid is not None
        count = self.grid[0] * self.grid[1]
        tokens = term.flatten(2).sum(1) if term.ndim > 2 else term.sum(1, keepdim=True)
        if tokens.shape[1] < count:
            self._flat += tokens.sum(1)
            return
        self._map += tokens[:, -count:].unflatten(1, self.grid)
        self._flat += tokens[:, :-count].sum(1)


def spread(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, h, w) → (B, *size) with the same sum: each cell is shared out bilinearly, and its shares sum to 1."""
    rows, columns = (_shares(n, m, maps) for n, m in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def _shares(count: int, size: int, like: Tensor) -> Tensor:
    """(size, count): the share of each of ``count`` cells that goes to each of ``size`` positions; columns sum to 1."""
    if count == size:
        return torch.eye(size, dtype=like.dtype, device=like.device)
    wide = max(count, size)
    few = min(count, size)
    identity = torch.eye(few, dtype=like.dtype, device=like.device).unsqueeze(1)
    weights = F.interpolate(identity, size=wide, mode="linear", align_corners=False).squeeze(1)
    if size == few:
        return weights
    return (weights / weights.sum(1, keepdim=True)).T


def _scaled(term: Tensor) -> Tensor:
    """|term| (B, K, h, w) scaled to [0, 1] per image, all channels together."""
    size = term.abs()
    size = size - size.amin((1, 2, 3), keepdim=True)
    return size / (size.amax((1, 2, 3), keepdim=True) + 1e-6)


def _batch_norm_bias(args: tuple[Any, ...], kwargs: Arguments) -> Tensor:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    _, mean, variance, weight, bias, _, _, eps = (argument(args, kwargs, k, name) for k, name in enumerate(names))
    if mean is None:
        raise ModelError("fullgrad: a batch norm without running statistics mixes the images of a batch")
    scale = (variance + (1e-5 if eps is None else eps)).rsqrt()
    scale = scale if weight is None else scale * weight
    shift: Tensor = -mean * scale if bias is None else bias - mean * scale
    return shift


def _plain_bias(place: int) -> Callable[[tuple[Any, ...], Arguments], Tensor | None]:
    return lambda args, kwargs: argument(args, kwargs, place, "bias")


BIASES: dict[Any, Callable[[tuple[Any, ...], Arguments], Tensor | None]] = {
    F.conv2d: _plain_bias(2),
    F.linear: _plain_bias(2),
    F.layer_norm: _plain_bias(3),
    F.group_norm: _plain_bias(3),
    F.batch_norm: _batch_norm_bias,
}
"""How to find the bias among an operation's arguments."""
