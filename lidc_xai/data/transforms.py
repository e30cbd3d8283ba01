"""MONAI transforms from a crop to the planes that a model reads, and the random changes of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import (
    Affine,
    Compose,
    RandFlipd,
    RandomizableTransform,
    RandRotate90d,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    Transform,
)
from monai.utils import convert_to_tensor

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.planes import VIEWS, extract_plane

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.preprocess import Preprocess

Item = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training plane.

    ``slices``: the plane is one of so many around the middle (odd). ``rotate90``, ``flip``: by quarter turns, mirrored.
    ``shift_pixels``: shift up to this many crop pixels each way. ``scale``: zoom by up to this share (the target of
    the diameter follows). ``shift_hu``: brightness up to this many HU each way. ``scale_hu``: contrast by up to this
    share about the plane's mean.
    """

    slices: int = 5
    rotate90: bool = True
    flip: bool = True
    shift_pixels: float = 1.0
    scale: float = 0.0
    shift_hu: float = 20.0
    scale_hu: float = 0.0

    def __post_init__(self) -> None:
        if self.slices < 1 or self.slices % 2 == 0:
            raise UsageError(
                f"augmentation: slices is {self.slices}; give an odd number, so that the middle is among them"
            )
        if (
            min(self.shift_pixels, self.scale, self.shift_hu, self.scale_hu) < 0
            or max(self.scale, self.scale_hu) >= 0.5
        ):
            raise UsageError(f"augmentation: no amount may be negative and no share 0.5 or more, got {self}")

    def transforms(self, diameter: tuple[int, float, float] | None = None) -> Compose:
        """The random part; ``diameter``: column, mean and deviation of the diameter among the targets, if it is one."""
        steps: list[Any] = [RandPlane()]
        if self.rotate90:
            steps.append(RandRotate90d("image", prob=0.75, max_k=3))
        if self.flip:
            steps.append(RandFlipd("image", prob=0.5, spatial_axis=0))
        if self.shift_pixels or self.scale:
            steps.append(RandShiftZoom(self.shift_pixels, self.scale, diameter))
        if self.scale_hu:
            steps.append(RandScaleIntensityFixedMeand("image", factors=self.scale_hu, prob=1.0))
        if self.shift_hu:
            steps.append(RandShiftIntensityd("image", offsets=self.shift_hu, prob=1.0))
        return Compose(steps)


class ReadPlanes(Transform):
    """{"nodule_id"} -> {"planes": (V, K, h, w) float32 HU}: the ``slices`` planes about the middle of every view."""

    def __init__(self, store: CropStore, views: Sequence[str] = VIEWS, slices: int = 1) -> None:
        self.store, self.views, self.slices = store, tuple(views), slices

    def __call__(self, item: Mapping[str, Any]) -> Item:
        crop = self.store.load(item["nodule_id"])
        if len(set(crop.ct.shape)) > 1 or crop.ct.shape[0] < self.slices:
            raise DataError(
                f"{self.store.path}: crop {item['nodule_id']} has shape {crop.ct.shape}; "
                f"planes need a cube of at least {self.slices} voxels; run prepare again"
            )
        stacks = []
        for view in self.views:
            middle = extract_plane(crop.ct, crop.affine, view).index
            around = range(middle - self.slices // 2, middle + self.slices // 2 + 1)
            stacks.append(np.stack([extract_plane(crop.ct, crop.affine, view, index).image for index in around]))
        return {**item, "planes": torch.from_numpy(np.stack(stacks).astype(np.float32))}


class RandPlane(RandomizableTransform):
    """{"planes": (V, K, h, w)} -> {"image": (1, h, w)}: one view and one slice at random."""

    def __call__(self, item: Mapping[str, Any]) -> Item:
        views, slices = item["planes"].shape[:2]
        view, index = self.R.randint(views), self.R.randint(slices)
        # a copy: what is cached must not be changed
        return {**item, "image": item["planes"][view, index][None].clone()}


class RandShiftZoom(RandomizableTransform):
    """Shift and zoom an image (1, h, w); beyond the edge, the edge. A zoomed nodule has a zoomed diameter."""

    def __init__(self, shift_pixels: float, scale: float, diameter: tuple[int, float, float] | None) -> None:
        super().__init__()
        self.shift_pixels, self.scale, self.diameter = shift_pixels, scale, diameter

    def __call__(self, item: Mapping[str, Any]) -> Item:
        shift = self.R.uniform(-self.shift_pixels, self.shift_pixels, 2).tolist()
        zoom = 1 + self.R.uniform(-self.scale, self.scale)
        # MONAI's scale is that of the sampling grid (2 shrinks the picture to half), one number per axis
        move = Affine(translate_params=shift, scale_params=[1 / zoom, 1 / zoom], padding_mode="border", image_only=True)
        changed = {**item, "image": move(item["image"])}
        if self.diameter is not None:
            column, mean, deviation = self.diameter
            targets = item["targets"].clone()
            targets[column] = ((targets[column] * deviation + mean) * zoom - mean) / deviation
            changed["targets"] = targets
        return changed


class ToInput(Transform):
    """HU planes to what the model reads, by its own ``preprocess``; keeps image, targets and nodule_id."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, item: Mapping[str, Any]) -> Item:
        # training: (1, h, w) -> (3, S, S); evaluation: (V, 1, h, w) middle planes -> (V, 3, S, S)
        planes = item["image"] if "image" in item else item["planes"]
        image = self.preprocess.apply(convert_to_tensor(planes, track_meta=False).squeeze(-3))
        return {"image": image, "targets": item["targets"], "nodule_id": item["nodule_id"]}
