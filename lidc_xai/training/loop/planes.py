"""All planes that a run reads, in memory as one tensor: a nodule is 3 views × a few slices, some 60 KiB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.planes import VIEWS, extract_plane
from lidc_xai.progress import track

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore


@dataclass
class PlaneBank:
    """Planes and targets of some nodules.

    planes: (n, V, K, h, w) float32 HU, the K slices about the middle of each of V views, the middle one at K // 2;
    targets: (n, outputs) float32, malignancy as label 0 or 1 and biomarkers in their own units, NaN where there is
    none; ``manifest``: the store's rows in the same order; ``masks``: (n, V, K, h, w) bool, the readers' consensus,
    where it was asked for (a nodule without readers has an empty one).
    """

    planes: Tensor
    targets: Tensor
    output_names: tuple[str, ...]
    manifest: pd.DataFrame
    masks: Tensor | None = None

    @property
    def nodule_ids(self) -> list[str]:
        return self.manifest["nodule_id"].tolist()

    @property
    def patient_ids(self) -> list[str]:
        return self.manifest["patient_id"].tolist()

    def evaluated(self, slices: int = 1) -> Tensor:
        """(n, V·slices, h, w): what is evaluated, the ``slices`` planes about the middle of every view."""
        return middle_planes(self.planes, slices)

    def rows(self, nodule_ids: Sequence[str]) -> Tensor:
        """Row numbers of these nodules, in their order."""
        place = {nodule_id: row for row, nodule_id in enumerate(self.nodule_ids)}
        missing = [nodule_id for nodule_id in nodule_ids if nodule_id not in place]
        if missing:
            raise UsageError(f"{len(missing)} nodules are not in the store, first {missing[0]!r}")
        return torch.tensor([place[nodule_id] for nodule_id in nodule_ids], dtype=torch.long)


def load_planes(
    store: CropStore,
    nodule_ids: Sequence[str],
    output_names: Sequence[str] = (),
    slices: int = 5,
    views: Sequence[str] = VIEWS,
    masks: bool = False,
) -> PlaneBank:
    """Read the planes and targets of ``nodule_ids`` once. ``slices`` is odd: 1 reads the middle plane alone."""
    chosen = store.manifest.set_index("nodule_id", drop=False)
    missing = [nodule_id for nodule_id in nodule_ids if nodule_id not in chosen.index]
    if missing:
        raise UsageError(f"{store.path}: has no nodule {missing[0]!r} ({len(missing)} of those asked for are absent)")
    if not len(nodule_ids):
        raise DataError(f"{store.path}: no nodule to read")
    manifest = chosen.loc[list(nodule_ids)].reset_index(drop=True)
    planes, outlines = [], []
    for name in track(nodule_ids, "reading crops", len(nodule_ids)):
        crop = store.load(name)
        planes.append(crop_planes(crop, slices, views))
        if masks:
            empty = np.zeros(crop.ct.shape, bool)
            inside = replace(crop, ct=empty if crop.consensus is None else crop.consensus)
            outlines.append(crop_planes(inside, slices, views).bool())
    shapes = {tuple(each.shape) for each in planes}
    if len(shapes) > 1:
        raise DataError(f"{store.path}: crops of different sizes {sorted(shapes)}; prepare them with one size_mm")
    targets = targets_of(manifest, output_names)
    consensus = torch.stack(outlines) if masks else None
    return PlaneBank(torch.stack(planes), targets, tuple(output_names), manifest, consensus)


def crop_planes(crop: NoduleCrop, slices: int = 1, views: Sequence[str] = VIEWS) -> Tensor:
    """(V, slices, h, w) float32 HU: the ``slices`` planes about the middle of every view of one crop."""
    shape = crop.ct.shape
    if min(shape) < slices or len(set(shape)) > 1:
        raise DataError(f"crop {crop.nodule_id}: has shape {shape}; wanted a cube of at least {slices} voxels a side")
    stacks = []
    for view in views:
        middle = extract_plane(crop.ct, crop.affine, view).index
        indices = range(middle - slices // 2, middle + slices // 2 + 1)
        stacks.append(np.stack([extract_plane(crop.ct, crop.affine, view, index).image for index in indices]))
    return torch.from_numpy(np.stack(stacks).astype(np.float32))


def middle_planes(planes: Tensor, slices: int = 1) -> Tensor:
    """(..., V, K, h, w) -> (..., V·slices, h, w): the ``slices`` planes about the middle of every view."""
    first = planes.shape[-3] // 2 - slices // 2
    return planes[..., first : first + slices, :, :].flatten(-4, -3)


def targets_of(manifest: pd.DataFrame, output_names: Sequence[str]) -> Tensor:
    """(n, outputs) float32 from a manifest: the label for malignancy, the readers' mean for a biomarker, NaN if
    absent.
    """
    columns = []
    for name in output_names:
        column = "label" if name == "malignancy" else name
        if column not in manifest:
            raise DataError(f"the store's manifest has no column {column!r}, so {name!r} cannot be learned from it")
        columns.append(pd.to_numeric(manifest[column]).astype("float64").to_numpy(dtype=np.float32, na_value=np.nan))
    if not columns:
        return torch.empty(len(manifest), 0)
    return torch.from_numpy(np.stack(columns, axis=1))
