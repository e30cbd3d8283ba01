"""Labelled photographs in batches for training: random resized crop and flip, or prepared as for evaluation.

What an image looks like in an epoch depends on seed, epoch and its place in the list alone, so that a run that was
killed goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lidc_xai.errors import DataError
from lidc_xai.imagenet.photographs import InputSpec, read_photo

_INTERPOLATION = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
_EPOCHS = 1_000_003


class LabelledPhotos(Dataset[tuple[Tensor, int]]):
    """Items: (3, H, W) float32, normalised, and the class. ``smallest_crop``: smallest share; None: not augmented."""

    def __init__(
        self,
        examples: Sequence[tuple[Path, int]],
        spec: InputSpec,
        *,
        smallest_crop: float | None = None,
        seed: int = 0,
        epoch: int = 0,
        fit: str = "crop",
    ) -> None:
        self.examples, self.spec, self.fit = tuple(examples), spec, fit
        self.seed = seed * _EPOCHS + epoch
        self.change = None if smallest_crop is None else v2.Compose(
            [
                v2.RandomResizedCrop(
                    spec.size, scale=(smallest_crop, 1.0), interpolation=_INTERPOLATION[spec.interpolation]
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(spec.mean), list(spec.std)),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.examples[index]
        if self.change is None:
            return read_photo(path, self.spec, self.fit).tensor[0], label
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: is no picture that can be read ({str(error).splitlines()[0]})") from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * len(self.examples) + index) % 2**63)
            return self.change(image), label


def batches(
    photos: LabelledPhotos, size: int, *, shuffle: bool = False, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, 3, H, W) images and (B,) classes; ``shuffle`` draws the order from the photos' seed and epoch."""
    order = torch.arange(len(photos))
    if shuffle:
        order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(photos.seed % 2**63))
    loader = DataLoader(photos, batch_sampler=[part.tolist() for part in order.split(size)], num_workers=workers)
    yield from loader
