"""What a frozen backbone says of each image, computed once and kept.

folder/<part>-00000.safetensors   (n, D) features of the images of one share of the list
folder/features.json              of which backbone and images; others are refused
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, write_json
from lidc_xai.progress import track
from studies.photo_batches import LabelledPhotos, batches

_SHARD = 128


def features_of(backbone: Any, images: Tensor) -> Tensor:
    """(B, D): the vector that the head of a timm network reads, of (B, 3, H, W) normalised images."""
    with torch.no_grad():
        read: Tensor = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    return read


def cached_features(
    backbone: nn.Module,
    photos: LabelledPhotos,
    folder: Path,
    part: str,
    *,
    of: str,
    batch: int = 128,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(n, D) float32 features and (n,) classes of ``photos``, from ``folder`` as far as they lie there.

    ``of``: says which backbone and preparation; ``UsageError`` where the folder holds those of another, or of other
    images.
    """
    listed = [[str(path), label] for path, label in photos.examples]
    digest = sha256(json.dumps([of, listed]).encode()).hexdigest()
    told = folder / f"{part}.json"
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")).get("fingerprint") != digest:
        raise UsageError(f"{folder}: holds features of another backbone or of other images; choose another --out")
    if not told.is_file():
        write_json(told, {"fingerprint": digest, "of": of, "images": len(listed)})
    starts = range(0, len(photos), _SHARD)
    found = []
    for number, start in enumerate(track(starts, f"features to {part} on", len(starts))):
        path = folder / f"{part}-{number:05d}.safetensors"
        if not path.is_file():
            share = LabelledPhotos(photos.examples[start : start + _SHARD], photos.spec, fit=photos.fit)
            some = batches(share, batch, workers=workers)
            read = [features_of(backbone, images.to(device)).float().cpu() for images, _ in some]
            with atomic_path(path) as temporary:
                save_file({"features": torch.cat(read)}, temporary)
        found.append(load_file(path)["features"])
    return torch.cat(found), torch.tensor([label for _, label in photos.examples])


def read_features(folder: Path, part: str) -> Tensor:
    """(n, D) features that lie in ``folder``; ``DataError`` where there are none."""
    paths = sorted(folder.glob(f"{part}-*.safetensors"))
    if not paths:
        raise DataError(f"{folder}: holds no {part} features")
    return torch.cat([load_file(path)["features"] for path in paths])


def in_batches(features: Tensor, labels: Tensor, size: int, seed: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """The rows in batches, in an order drawn by ``seed`` (None: as they are)."""
    order = torch.arange(len(labels))
    if seed is not None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed % 2**63))
    return [(features[rows], labels[rows]) for rows in order.split(size)]
