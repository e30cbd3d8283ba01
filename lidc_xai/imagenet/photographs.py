"""Photographs as a classifier sees them: upright, in RGB, resized and cut to its input, normalised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lidc_xai.errors import DataError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
FITS = ("crop", "whole")


@dataclass(frozen=True)
class InputSpec:
    """What a classifier wants: ``size`` (rows, columns) in pixels, ``short_side`` of the photograph before the central
    crop, mean and standard deviation of each channel in [0, 1], and the kind of interpolation."""

    size: tuple[int, int]
    short_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass(frozen=True)
class Photo:
    """``pixels``: (H, W, 3) uint8 as the classifier sees them. ``tensor``: (1, 3, H, W) float32, normalised.

    ``box``: the part of the upright photograph that is seen (left, top, right, bottom) in its own pixels, of ``full``
    (width, height).
    """

    path: Path
    pixels: np.ndarray
    tensor: Tensor
    box: tuple[float, float, float, float]
    full: tuple[int, int]


def find_photos(paths: Iterable[Path | str]) -> list[Path]:
    """Files as given, and every picture inside folders; ``UsageError`` for a path that is not there."""
    photos: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UsageError(f"{path}: this folder holds no picture ({', '.join(SUFFIXES)})")
            photos += inside
        elif path.is_file():
            photos.append(path)
        else:
            raise UsageError(f"{path}: no such picture or folder")
    if not photos:
        raise UsageError("no picture was given; name at least one file or folder")
    return list(dict.fromkeys(photos))


def read_photo(path: Path | str, spec: InputSpec, fit: str = "crop") -> Photo:
    """Read and prepare one photograph; ``DataError`` where it is no picture.

    ``fit``: "crop" resizes the short side and keeps the centre, as classifiers are evaluated; "whole" stretches the
    whole photograph into the input.

    >>> from PIL import Image
    >>> Image.new("RGB", (60, 40), "teal").save(folder / "wide.png")
    >>> read_photo(folder / "wide.png", load_classifier("test_vit", "random").spec).full
    (60, 40)
    """
    path = Path(path)
    if fit not in FITS:
        raise UsageError(f"fit is one of {', '.join(FITS)}, not {fit!r}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no picture that can be read ({str(error).splitlines()[0]})") from None
    box = (0.0, 0.0, float(image.width), float(image.height)) if fit == "whole" else _central(image.size, spec)
    rows, columns = spec.size
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    seen = image.resize((columns, rows), resample, box=box)
    pixels = np.asarray(seen)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (spec.mean, spec.std))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return Photo(path, pixels, ((tensor - mean) / std).unsqueeze(0), box, image.size)


def _central(size: tuple[int, int], spec: InputSpec) -> tuple[float, float, float, float]:
    """The central part that remains after resizing the short side and cropping, in pixels of the photograph."""
    scale = min(size) / max(spec.short_side, *spec.size)
    width, height = (min(wanted * scale, side) for wanted, side in zip(reversed(spec.size), size, strict=True))
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height
