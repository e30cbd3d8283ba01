"""Planes in millimetres: one grid for map and mask, signed distances, discs, and a mask read as if it were a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from lidc_xai.errors import DataError
from lidc_xai.evaluation.maps import MapLike, as_map, resampled
from lidc_xai.evaluation.statistics import Floats

Bools = NDArray[np.bool_]
Spacing: TypeAlias = float | tuple[float, float]

_HINT = 1e-6
"""Weight of the order inside and outside a mask that is read as a map: far below what a mass could notice."""


@dataclass(frozen=True)
class Plane:
    """B maps and masks on one grid. ``spacing_mm``: (between rows, between columns) of that grid.

    ``token_mm``: the larger side of one cell of the maps as they were given.
    """

    maps: Floats
    masks: Bools
    spacing_mm: tuple[float, float]
    token_mm: float


def in_plane(relevance: MapLike, masks: ArrayLike | torch.Tensor, spacing_mm: Spacing) -> Plane:
    """Relevance (B,h,w) and masks (B,H,W) of the same planes on the finer of their two grids.

    ``spacing_mm``: of the masks' pixels. Map and mask cover the same plane; each pixel centre reads the cell it is in.
    """
    mask = torch.as_tensor(np.asarray(masks)) if not isinstance(masks, torch.Tensor) else masks.detach().cpu()
    if mask.ndim != 3 or 0 in mask.shape:
        raise DataError(f"masks are (B, H, W), got {tuple(mask.shape)}")
    maps = as_map(relevance, len(mask), torch.device("cpu"))
    rows, columns = spacing_mm if isinstance(spacing_mm, tuple) else (spacing_mm, spacing_mm)
    if not (rows > 0 and columns > 0):
        raise DataError(f"spacing_mm is above 0, got {spacing_mm}")
    extent = (mask.shape[-2] * rows, mask.shape[-1] * columns)
    size = (max(maps.shape[-2], mask.shape[-2]), max(maps.shape[-1], mask.shape[-1]))
    token = max(extent[0] / maps.shape[-2], extent[1] / maps.shape[-1])
    return Plane(
        maps=resampled(maps, size).numpy(),
        masks=resampled(mask.double(), size).numpy() > 0.5,
        spacing_mm=(extent[0] / size[0], extent[1] / size[1]),
        token_mm=token,
    )


def signed_distance(mask: Bools, spacing_mm: tuple[float, float]) -> Floats:
    """(H,W) mm to the mask's boundary, negative inside; the boundary runs half a pixel outside its pixels' centres.

    NaN everywhere for an empty or a full mask, which has no boundary.
    """
    if not mask.any() or mask.all():
        return np.full(mask.shape, np.nan)
    half = sum(spacing_mm) / 4
    outside = distance_transform_edt(~mask, sampling=spacing_mm) - half
    inside = distance_transform_edt(mask, sampling=spacing_mm) - half
    return np.asarray(np.where(mask, -inside, outside), dtype=np.float64)


def centred_disc(size: tuple[int, int], pixels: int, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """(H,W) map of a disc around the middle of the plane that covers ``pixels`` pixels: 1 inside, 0 outside.

    Within both parts pixels rank by their distance from the middle (by less than 1e-6): what somebody would draw who
    has not seen the image but knows that a crop is centred on its nodule.
    """
    y = (np.arange(size[0]) - (size[0] - 1) / 2) * spacing_mm[0]
    x = (np.arange(size[1]) - (size[1] - 1) / 2) * spacing_mm[1]
    distance = np.hypot(y[:, None], x[None])
    order = np.argsort(distance, axis=None, kind="stable")
    disc = np.zeros(size[0] * size[1])
    disc[order[:pixels]] = 1.0
    return np.asarray(disc.reshape(size) + _HINT * (1 - distance / distance.max()), dtype=np.float64)


def mask_as_map(mask: Bools, spacing_mm: tuple[float, float]) -> Floats:
    """(H,W) map of a mask: 1 inside, 0 outside, pixels ranking by depth (by less than 1e-6)."""
    depth = -signed_distance(mask, spacing_mm)
    if not np.isfinite(depth).all():
        return mask.astype(np.float64)
    span = depth.max() - depth.min()
    return np.asarray(mask + _HINT * (depth - depth.min()) / span, dtype=np.float64)
