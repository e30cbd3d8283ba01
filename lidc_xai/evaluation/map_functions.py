"""Methods that are not ours: a function (model, images, targets) → maps, checked and run as the metrics need it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.forward import in_eval_mode
from lidc_xai.evaluation.maps import MapLike
from lidc_xai.explain.registry import METHODS


class MapFunction(Protocol):
    """(model, images (B,C,H,W), targets (B,) int64: the output explained of each image) → relevance (B,h,w).

    The model is in eval mode, gradients are on, and ``targets`` lies beside the images. A map has the image's size or
    is on a grid of cells that spans the image; signed, raw. Tensor or NumPy array; (B,1,h,w) is taken as well.

    >>> def brightness(model, images, targets):
    ...     return images.mean(1)
    """

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, /) -> MapLike:
        """The maps."""


def run_map_function(name: str, function: MapFunction, model: nn.Module, images: Tensor, columns: Tensor) -> Tensor:
    """(B,T,h,w) float64: ``function`` asked once for each of the T ``columns`` (B,T).

    ``DataError`` where it fails on these images or gives no map for each; the model's modes are restored.

    >>> import torch
    >>> images = torch.zeros(2, 3, 8, 8)
    >>> grey = lambda model, images, targets: images.mean(1)
    >>> run_map_function("grey", grey, torch.nn.Flatten(), images, torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 8, 8])
    """
    maps = []
    for column in columns.to(images.device).unbind(1):
        try:
            with torch.enable_grad(), in_eval_mode(model):
                given = function(model, images.clone(), column.clone())
            relevance = torch.as_tensor(given).detach()
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:  # somebody else's code: whatever it raises is this case's reason, not the run's end
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"method {name!r} failed: {text}") from error
        if relevance.ndim == 4 and relevance.shape[1] == 1:
            relevance = relevance[:, 0]
        if relevance.ndim != 3 or len(relevance) != len(images) or 0 in relevance.shape:
            raise DataError(
                f"method {name!r} gave {tuple(relevance.shape)}, not one map (h, w) for each of {len(images)} images; "
                "sum over the channels first"
            )
        maps.append(relevance.to(images.device, torch.float64))
    return torch.stack(maps, dim=1)


def check_names(functions: Mapping[str, MapFunction], taken: Mapping[str, Any], reserved: tuple[str, ...]) -> None:
    """``UsageError`` for a name that another row of the tables has, and for what cannot be called."""
    for name, function in functions.items():
        if not name or name in METHODS or name in taken or name in reserved or "@" in name:
            raise UsageError(f"a method of your own cannot be called {name!r}: that name is taken; choose another")
        if not callable(function):
            raise UsageError(f"method {name!r} is a function (model, images, targets) → maps, not {function!r}")


def fingerprint_of(functions: Mapping[str, MapFunction]) -> str:
    """Hash of the names and, where Python has it, the source: results of a changed function are not taken up again."""
    digest = sha256()
    for name, function in sorted(functions.items()):
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = getattr(function, "__qualname__", type(function).__qualname__)
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()
