"""Box sensitivity: does the relevance inside a random box say how much the score changes when the box is replaced?

For sides s = 16, 32, …, 160 px at 224 (scaled with min(H,W)/224), 100 boxes fully inside at uniform integer corners:

    r_s = Pearson over boxes of (Σ of relevance inside, f(x) − f(x with the box replaced)),
    area = trapezoid of r_s over s in units of 8 px at 224 (min(H,W)/28).

The boxes depend on image size and seed alone: they are the same for every method, map and image. A correlation with a
constant side is undefined: it is left out and counted, and the area is taken over the sides that are left, scaled to
the whole range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, scored_for_one
from lidc_xai.evaluation.maps import NOT_FINITE, MapLike, as_pixels, broken
from lidc_xai.evaluation.replacement import Perturbing, options_as
from lidc_xai.evaluation.results import Result, finite, first_reason, trapezoid
from lidc_xai.evaluation.statistics import Floats, pearson
from lidc_xai.explain.targets import Outputs, TargetsLike

SIDES_AT_224 = tuple(range(16, 161, 16))


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxResult(Result):
    """``sizes_px`` (S,) sides of the boxes; ``correlation`` (B,S), NaN where undefined; ``area`` (B,)."""

    sizes_px: Floats
    correlation: Floats
    area: Floats

    figures: ClassVar[tuple[str, ...]] = ("area",)
    shared: ClassVar[tuple[str, ...]] = ("sizes_px",)

    @property
    def undefined_correlations(self) -> int:
        """How many of the B·S correlations were left out."""
        return int((~np.isfinite(self.correlation)).sum())


@dataclass(frozen=True, kw_only=True)
class BoxOptions(Perturbing):
    """``boxes`` per side; ``sizes``: sides in px at 224."""

    boxes: int = 100
    sizes: tuple[int, ...] = SIDES_AT_224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes < 3:
            raise UsageError(f"boxes is a whole number from 3, not {self.boxes}")
        if len(self.sizes) < 2 or sorted(set(self.sizes)) != list(self.sizes) or self.sizes[0] < 1:
            raise UsageError(f"sizes are two or more rising sides in px at 224, not {self.sizes}")


@dataclass(frozen=True)
class Boxes:
    """``sides`` (S,) and, per side and box, first row and column (S,n)."""

    sides: tuple[int, ...]
    rows: Tensor
    columns: Tensor

    @property
    def count(self) -> int:
        return self.rows.numel()


def box_sensitivity(
    model: nn.Module, images: Tensor, relevance: MapLike, target: TargetsLike = None, **options: Any
) -> BoxResult:
    """Box sensitivity of ``relevance`` (B,H,W) or (B,gh,gw) for one target of ``images`` (B,C,H,W), normalised.

    Options: those of ``BoxOptions`` (boxes, sizes, and replacement, sigma, seed, max_batch, … as for ``fidelity``).

    >>> box_sensitivity(vit, images, explain(vit, images, labels).relevance[:, 0], labels, boxes=8).area.shape
    (2,)
    """
    chosen = options_as(BoxOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    maps = as_pixels(relevance, len(asked.images), asked.size, asked.images.device)
    boxes = random_boxes(asked.size, chosen.sizes, chosen.boxes, chosen.seed)
    outputs = box_outputs(asked.forward, asked.images, chosen.of(asked.images), boxes)
    scores = asked.read(outputs)[..., 0].cpu().numpy()
    return box_result(maps, scores, asked.scores[:, 0].cpu().numpy(), boxes, asked.size)


def random_boxes(size: tuple[int, int], sizes: tuple[int, ...], count: int, seed: int) -> Boxes:
    """The boxes for images of ``size``: per side ``count`` uniform corners with the whole box inside."""
    scale = min(size) / 224
    sides = tuple(dict.fromkeys(min(max(round(side * scale), 1), min(size)) for side in sizes))
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, size[0] - side + 1, count) for side in sides])
    columns = np.stack([rng.integers(0, size[1] - side + 1, count) for side in sides])
    return Boxes(sides, torch.from_numpy(rows), torch.from_numpy(columns))


def box_outputs(forward: Forward, images: Tensor, removed: Tensor, boxes: Boxes) -> Outputs:
    """Outputs (B, S·n, C) of the images with one box replaced each: shared by every method and every target."""
    device = images.device
    rows, columns = boxes.rows.flatten().to(device), boxes.columns.flatten().to(device)
    sides = torch.tensor(boxes.sides, device=device).repeat_interleave(boxes.rows.shape[1])
    y = torch.arange(images.shape[-2], device=device)
    x = torch.arange(images.shape[-1], device=device)

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        r, c, s = (part[first:last, None] for part in (rows, columns, sides))
        gone = ((y >= r) & (y < r + s))[:, :, None] & ((x >= c) & (x < c + s))[:, None, :]
        torch.where(gone[:, None], removed[image], images[image], out=buffer)

    return forward.copies(images, boxes.count, fill)


def box_sums(maps: Tensor, boxes: Boxes) -> Tensor:
    """(..., H, W) → (..., S, n): relevance inside each box, by one integral image."""
    table = nn.functional.pad(maps.double(), (1, 0, 1, 0)).cumsum(-2).cumsum(-1)
    rows, columns = boxes.rows.to(maps.device), boxes.columns.to(maps.device)
    sides = torch.tensor(boxes.sides, device=maps.device)[:, None]
    below, right = rows + sides, columns + sides
    return table[..., below, right] - table[..., rows, right] - table[..., below, columns] + table[..., rows, columns]


def box_result(maps: Tensor, scores: Floats, plain: Floats, boxes: Boxes, size: tuple[int, int]) -> BoxResult:
    """Correlations and areas from maps (B,H,W), scores (B,S·n) with a box replaced and plain scores (B,)."""
    usable = torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)[:, None]
    areas = box_areas(maps[:, None], box_sums(usable, boxes), scores[..., None], plain[:, None], boxes, size)
    return BoxResult(
        sizes_px=np.asarray(boxes.sides, dtype=np.float64),
        correlation=areas.correlation[:, 0, 0],
        area=areas.area[:, 0, 0],
        reasons=tuple(reasons[0][0] for reasons in areas.reasons),
    )


class BoxAreas(NamedTuple):
    """Every map on every score: ``correlation`` (B,M,T,S), ``area`` (B,M,T), ``reasons`` [image][map][score]."""

    correlation: Floats
    area: Floats
    reasons: list[list[list[str]]]


def box_areas(
    maps: Tensor, sums: Tensor, scores: Floats, plain: Floats, boxes: Boxes, size: tuple[int, int]
) -> BoxAreas:
    """Correlations and areas of M maps (B,M,H,W) with their box sums (B,M,S,n) on T scores (B,S·n,T), plain (B,T)."""
    not_finite = broken(maps).cpu().numpy()
    changed = np.moveaxis(scores.reshape(len(scores), *boxes.rows.shape, -1), -1, 1)
    delta = plain[:, :, None, None] - changed
    # Sums and differences are compared with what they were made of: rounding of large numbers is no variation.
    mass = torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0).abs().sum((-2, -1)).cpu().numpy()
    scale = np.maximum(np.abs(plain)[:, :, None], np.abs(changed).max(-1))
    correlation = pearson(
        sums.cpu().numpy()[:, :, None], delta[:, None], scale_a=mass[:, :, None, None], scale_b=scale[:, None]
    )
    correlation[not_finite] = np.nan
    units = np.asarray(boxes.sides, dtype=np.float64) / (min(size) / 28)
    flat = correlation.reshape(-1, len(units))
    area = np.array([_area(row, units) for row in flat])
    reasons = first_reason(
        (np.repeat(not_finite.ravel(), scores.shape[-1]), NOT_FINITE),
        (~np.isfinite(area), "the relevance or the score does not vary over the boxes"),
        (~finite(flat, 1), "some box sizes are left out: relevance or score does not vary over them"),
        n=len(area),
    )
    shape = correlation.shape[:-1]
    told = np.asarray(reasons, dtype=object).reshape(shape).tolist()
    return BoxAreas(correlation, area.reshape(shape), told)


def _area(correlation: Floats, units: Floats) -> float:
    defined = np.isfinite(correlation)
    if defined.sum() < min(2, len(units)):
        return float("nan")
    at = units[defined]
    if at[-1] == at[0]:
        return 0.0
    return float(trapezoid(correlation[defined], at) * (units[-1] - units[0]) / (at[-1] - at[0]))
