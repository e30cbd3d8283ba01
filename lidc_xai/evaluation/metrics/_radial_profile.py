"""Radial profile: the mean map by signed distance from the consensus boundary, in the plane.

S is scaled by max|S| and averaged in bins of max(1 mm, token) from −10 mm (inside) to +10 mm (outside), with the
boundary between two bins. Three zones test how a biomarker's map is read: the body (deeper than one bin), the edge
(one bin on either side of the boundary) and the surroundings (from one bin outside to the limit).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import Tensor

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.geometry import Spacing, in_plane, signed_distance
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike
from lidc_xai.evaluation.metrics._localisation import FULL_MASK, NO_MASK
from lidc_xai.evaluation.results import Result, finite, first_reason
from lidc_xai.evaluation.statistics import RESAMPLES, Floats, bootstrap_curve

LIMIT_MM = 10.0
NARROWEST_MM = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class RadialProfile(Result):
    """``distance_mm`` (n,) middles of the bins; ``profile`` (B,n) mean scaled relevance, NaN where a bin has no pixel.

    ``body``, ``edge``, ``outside`` (B,): means over the zones; ``edges_mm`` (n+1,).
    """

    edges_mm: Floats
    distance_mm: Floats
    profile: Floats
    body: Floats
    edge: Floats
    outside: Floats

    figures: ClassVar[tuple[str, ...]] = ("body", "edge", "outside")
    shared: ClassVar[tuple[str, ...]] = ("edges_mm", "distance_mm")

    def curve(
        self, clusters: Sequence[Hashable] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> pd.DataFrame:
        """Mean profile with a 95 % band (clusters: a patient per image): distance_mm, mean, low, high, n."""
        table = bootstrap_curve(self.profile, clusters, resamples=resamples, seed=seed)
        table.insert(0, "distance_mm", self.distance_mm)
        return table


def radial_profile(
    relevance: MapLike,
    masks: ArrayLike | Tensor,
    spacing_mm: Spacing,
    *,
    token_mm: float | None = None,
    limit_mm: float = LIMIT_MM,
    scale: ArrayLike | None = None,
) -> RadialProfile:
    """Profiles of relevance (B,h,w) around masks (B,H,W) of the same planes.

    ``spacing_mm``: of the masks' pixels. ``token_mm``: side of a token where the maps were upsampled before. ``scale``
    (B,): divide by this instead of the plane's own max|S| (the nodule's, where it has several planes).

    >>> mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    >>> mask[0, 8:16, 8:16] = True
    >>> found = radial_profile(mask.double(), mask, 1.0)
    >>> found.body.tolist(), found.outside.tolist()
    ([1.0], [0.0])
    """
    plane = in_plane(relevance, masks, spacing_mm)
    width = max(NARROWEST_MM, plane.token_mm if token_mm is None else token_mm)
    count = int(limit_mm / width + 1e-9)
    if count < 1:
        raise UsageError(f"limit_mm {limit_mm} is below one bin of {width:.3g} mm (the token)")
    edges = np.asarray(np.arange(-count, count + 1) * width, dtype=np.float64)
    maps = plane.maps
    largest = np.abs(maps).max((1, 2)) if scale is None else np.asarray(scale, dtype=np.float64)
    if largest.shape != (len(maps),):
        raise DataError(f"scale has one number for each of {len(maps)} planes, got {largest.shape}")
    not_finite = ~finite(maps, (1, 2))
    nothing = largest == 0
    zones = np.array([-np.inf, -width, width, edges[-1]])
    profile, means = np.full((len(maps), 2 * count), np.nan), np.full((len(maps), 3), np.nan)
    for b in np.flatnonzero(~not_finite & ~nothing):
        distance = signed_distance(plane.masks[b], plane.spacing_mm)
        scaled = maps[b] / largest[b]
        if np.isfinite(distance).all():
            profile[b] = _binned(scaled, distance, edges)
            means[b] = _binned(scaled, distance, zones)
    area = plane.masks.sum((1, 2))
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (nothing, "the map is zero everywhere: there is nothing to scale it by"),
        (area == 0, NO_MASK),
        (area == plane.masks[0].size, FULL_MASK),
        (~finite(means, 1), "a zone has no pixel: the nodule is thinner than a bin, or reaches the frame"),
        n=len(maps),
    )
    return RadialProfile(
        edges_mm=edges,
        distance_mm=(edges[:-1] + edges[1:]) / 2,
        profile=profile,
        body=means[:, 0],
        edge=means[:, 1],
        outside=means[:, 2],
        reasons=reasons,
    )


def _binned(values: Floats, distance: Floats, edges: Floats) -> Floats:
    """Mean of ``values`` between consecutive ``edges`` of ``distance``; NaN where there is none."""
    index = np.digitize(distance.ravel(), edges) - 1
    inside = (index >= 0) & (index < len(edges) - 1)
    sums = np.bincount(index[inside], values.ravel()[inside], minlength=len(edges) - 1)
    counts = np.bincount(index[inside], minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts, dtype=np.float64)
