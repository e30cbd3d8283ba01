"""Compactness: the share of a map that is as good as empty.

    value = share of cells with |S| < 0.05 · max S      (raw scores; 0 where max S ≤ 0)

Token maps are counted as tokens and pixel maps as pixels (nearest upsampling does not change the share); for a pixel
map the figure of its patch means stands beside, since single pixels are rarely comparable with tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike, as_map, broken, patch_means
from lidc_xai.evaluation.results import Result, first_reason
from lidc_xai.evaluation.statistics import Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class CompactnessResult(Result):
    """``value`` (B,) share in [0, 1]; ``on_grid`` (B,) the same of the patch means, or None without ``grid``."""

    value: Floats
    on_grid: Floats | None = None

    figures: ClassVar[tuple[str, ...]] = ("value",)


def compactness(
    relevance: MapLike,
    *,
    threshold: float = 0.05,
    of: Literal["max", "max_abs"] = "max",
    grid: tuple[int, int] | None = None,
) -> CompactnessResult:
    """Share of cells of (B,h,w) raw relevance below ``threshold`` of the map's maximum (``of="max_abs"``: of max |S|).

    ``grid``: also of the means over this grid's patches.

    >>> compactness(torch.tensor([[[1.0, 0.5], [0.04, -0.04]]])).value.tolist()
    [0.5]
    """
    if of not in ("max", "max_abs"):
        raise UsageError(f"of is 'max' or 'max_abs', not {of!r}")
    if not 0 < threshold < 1:
        raise UsageError(f"threshold is between 0 and 1, not {threshold}")
    maps = as_map(relevance, len(relevance))
    bad = broken(maps)
    top = _top(maps, of)
    reasons = first_reason(
        (bad.cpu().numpy(), NOT_FINITE),
        ((top <= 0).cpu().numpy(), "no positive relevance: 0 by definition"),
        n=len(maps),
    )
    beside = None if grid is None else _share(patch_means(maps, grid), threshold, of, bad)
    return CompactnessResult(value=_share(maps, threshold, of, bad), on_grid=beside, reasons=reasons)


def _top(maps: Tensor, of: str) -> Tensor:
    return (maps.abs() if of == "max_abs" else maps).flatten(-2).amax(-1)


def _share(maps: Tensor, threshold: float, of: str, bad: Tensor) -> Floats:
    top = _top(maps, of)
    share = (maps.abs() < threshold * top[:, None, None]).double().flatten(-2).mean(-1)
    share = torch.where(top > 0, share, 0.0).masked_fill(bad, torch.nan)
    return np.asarray(share.cpu().numpy(), dtype=np.float64)
