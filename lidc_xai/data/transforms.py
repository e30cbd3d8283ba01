"""MONAI transforms from a store to what a model reads: planes of a crop, random changes of a batch, preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import Transform
from torch import Tensor
from torch.nn import functional

from lidc_xai.errors import DataError
from lidc_xai.imaging.planes import VIEWS, planes_of
from lidc_xai.models.inference import TURNS, turned

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.preprocess import Preprocess

Item = dict[str, Any]


class ReadPlanes(Transform):
    """{"nodule_id"} -> {"planes": (V, K, h, w) float32 HU}: the ``slices`` planes about the middle of every view.

    ``masks``: also {"masks": (V, K, h, w) bool}, the readers' consensus (a nodule without readers has an empty one).
    """

    def __init__(self, store: CropStore, views: Sequence[str] = VIEWS, slices: int = 1, masks: bool = False) -> None:
        self.store, self.views, self.slices, self.masks = store, tuple(views), slices, masks

    def __call__(self, item: Mapping[str, Any]) -> Item:
        crop = self.store.load(item["nodule_id"])
        try:
            planes = torch.from_numpy(planes_of(crop, self.views, self.slices))
        except DataError as error:
            raise DataError(f"{self.store.path}: {error}") from None
        read = {**item, "planes": planes}
        if self.masks:
            inside = None if crop.consensus is None else planes_of(crop, self.views, self.slices, of="consensus")
            read["masks"] = torch.zeros(planes.shape, dtype=torch.bool) if inside is None else torch.from_numpy(inside)
        return read


class MovePlanes(Transform):
    """The random changes of a batch in one resampling, on whatever device its planes lie.

    {"image": (B, C, h, w) HU, "numbers": (B, 7) of ``Draw``, "mask": (B, h, w) where there is one} -> the same,
    changed; beyond the edge, the edge. ``centre_hu``: what a stretch of HU leaves alone. Where nothing but quarter
    turns and mirrors was drawn, pixels are moved and never interpolated.
    """

    def __init__(self, centre_hu: float) -> None:
        self.centre_hu = centre_hu

    def __call__(self, batch: Mapping[str, Any]) -> Item:
        image, numbers = batch["image"], batch["numbers"]
        changed = dict(batch)
        still = numbers.new_tensor([0, 1, 0, 0])
        move = self._turn if bool((numbers[:, 1:5] == still).all()) else self._resample
        changed["image"] = move(image, numbers)
        if "mask" in batch:
            changed["mask"] = move(batch["mask"][:, None].to(image), numbers)[:, 0]
        shift, stretch = (numbers[:, column, None, None, None].to(image) for column in (5, 6))
        changed["image"] = (changed["image"] - self.centre_hu) * stretch + self.centre_hu + shift
        return changed

    @staticmethod
    def _turn(image: Tensor, numbers: Tensor) -> Tensor:
        moved = torch.empty_like(image)
        for turn in range(TURNS):
            rows = (numbers[:, 0] == turn).nonzero()[:, 0].to(image.device)
            if len(rows):
                moved[rows] = turned(image[rows], turn)
        return moved

    @staticmethod
    def _resample(image: Tensor, numbers: Tensor) -> Tensor:
        turn, angle, zoom, right, down = numbers[:, :5].unbind(1)
        mirror = 1 - 2 * (turn >= TURNS // 2).float()
        angle = angle + (turn % 4) * (math.pi / 2)
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        shift = torch.stack([right, down], 1) * (2 / image.shape[-1])
        rotation = torch.stack([torch.stack([cosine * mirror, -sine], 1), torch.stack([sine * mirror, cosine], 1)], 1)
        affine = torch.cat([rotation, shift[:, :, None]], dim=2).to(image)
        grid = functional.affine_grid(affine, list(image.shape), align_corners=False)
        return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class ToInput(Transform):
    """HU planes to what the model reads, by its own ``preprocess``; keeps image, targets and nodule_id."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, item: Mapping[str, Any]) -> Item:
        # training: (C, h, w) -> (3, S, S); evaluation: (V, K, h, w) -> (V·slices, 3, S, S)
        if "image" in item:
            image = self.preprocess.apply(item["image"] if len(item["image"]) > 1 else item["image"][0])
        else:
            image = self.preprocess.apply(self.preprocess.inputs(item["planes"]))
        return {"image": image, "targets": item["targets"], "nodule_id": item["nodule_id"]}
