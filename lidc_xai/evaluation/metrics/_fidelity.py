"""MIF and LIF: the score while the most (least) important pixels are removed first, and the areas under it.

At p = 0, 5, …, 100 % the round(p·H·W) lowest-ranked pixels (LIF) or highest-ranked ones (MIF) of one ascending sort are
replaced, all channels together. A faithful map loses little in LIF and much in MIF:

    area = A_LIF − A_MIF,   A = trapezoid of the raw target score over percent.

The first point is f(x) and the last f(all replaced), the same for every map: they are computed once.

With ``model_masked``, a copy of the model that was tuned with patches replaced, f is the copy's: it knows replaced
patches, so that its loss is of what was removed and not of never having seen such images (Zheng et al., ICLR 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Forward, Scored, scored_for_one
from lidc_xai.evaluation.maps import CONSTANT, NOT_FINITE, MapLike, as_pixels, broken, constant, distinct, pixel_ranks
from lidc_xai.evaluation.replacement import Perturbing, Replacement, inpainted, options_as
from lidc_xai.evaluation.results import Result, finite, first_reason, trapezoid
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.targets import Outputs, TargetsLike

POINTS = 21
_TINY = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class FidelityResult(Result):
    """``percent`` (P,) removed; ``mif`` and ``lif`` (B,P) scores; areas (B,) in score × percent; ``area`` = LIF − MIF.

    ``score`` f(x) and ``replaced_score`` f(all replaced), both (B,); ``at_stake`` is their difference: how much there
    was to lose. All NaN for a map that is not finite; a constant map is ordered by the seeded permutation and counted.
    """

    percent: Floats
    mif: Floats
    lif: Floats
    area_mif: Floats
    area_lif: Floats
    area: Floats
    score: Floats
    replaced_score: Floats
    at_stake: Floats

    figures: ClassVar[tuple[str, ...]] = ("area_mif", "area_lif", "area", "score", "replaced_score", "at_stake")
    shared: ClassVar[tuple[str, ...]] = ("percent",)


@dataclass(frozen=True, kw_only=True)
class FidelityOptions(Perturbing):
    """``points`` of the curve, ends included. ``normalise``: divide each curve by its own first value.

    ``model_masked``: a copy of the model tuned with patches replaced, whose score is followed in place of the model's.
    ``up_to``: areas over 0 to so many percent, a point of the curve; nothing is run between it and 100 %. ``inpaint``:
    removed pixels are filled from those that are left, in place of ``replacement``.
    """

    points: int = POINTS
    normalise: bool = False
    model_masked: nn.Module | None = None
    up_to: float = 100.0
    inpaint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            raise UsageError(f"points is a whole number from 2, not {self.points}")
        check_up_to(self.up_to, self.points)


def fidelity(
    model: nn.Module, images: Tensor, relevance: MapLike, target: TargetsLike = None, **options: Any
) -> FidelityResult:
    """MIF and LIF curves of ``relevance`` (B,H,W) or (B,gh,gw) for one target of ``images`` (B,C,H,W), normalised.

    ``target``: an output's index or name, a Target, a LongTensor (B,), or None (predicted class). Options: those of
    ``FidelityOptions`` (points, normalise, replacement, sigma, sigma_mm, spacing_mm, masks, seed, max_batch, …).

    >>> found = fidelity(vit, images, explain(vit, images, labels).relevance[:, 0], labels, points=5)
    >>> found.percent.tolist(), found.mif.shape, bool(np.allclose(found.area, found.area_lif - found.area_mif))
    ([0.0, 25.0, 50.0, 75.0, 100.0], (2, 5), True)
    """
    chosen = options_as(FidelityOptions, options)
    asked = scored_for_one(chosen.forward(model), images, target)
    if chosen.model_masked is not None:
        asked = read_by(asked, chosen.forward(chosen.model_masked))
    maps = as_pixels(relevance, len(asked.images), asked.size, asked.images.device)
    removed = Replacement("mean").of(asked.images) if chosen.inpaint else chosen.of(asked.images)
    ends = replaced_outputs(asked.forward, asked.outputs, removed)
    outputs = curve_outputs(
        asked.forward, asked.images, removed, maps[:, None], ends, chosen.points, chosen.seed, chosen.inpaint,
        chosen.up_to,
    )  # fmt: skip
    scores = asked.read(outputs)[:, 0, ..., 0].cpu().numpy()
    percent = curve_percent(chosen.points, chosen.up_to)
    return fidelity_result(
        scores, percent, broken(maps).cpu().numpy(), constant(maps).cpu().numpy(), chosen.normalise, chosen.up_to
    )


def check_up_to(up_to: float, points: int) -> None:
    """UsageError where ``up_to`` is no point of a curve with so many points beyond the first."""
    if not any(abs(up_to - percent) < _TINY for percent in np.linspace(0, 100, points)[1:]):
        raise UsageError(
            f"up_to is a point of the curve: a multiple of {100 / (points - 1):g} up to 100, not {up_to:g}"
        )


def curve_percent(points: int, up_to: float = 100.0) -> Floats:
    """(P,) percent removed at each point that is run: those up to ``up_to``, and 100, where everything is removed.

    >>> curve_percent(5, 50).tolist()
    [0.0, 25.0, 50.0, 100.0]
    """
    every = np.linspace(0, 100, points)
    return np.asarray(every[(every <= up_to + _TINY) | (every == 100)], dtype=np.float64)


def read_by(asked: Scored, forward: Forward) -> Scored:
    """The same images and targets (settled by the model that was explained), scored by another model."""
    images = forward.place(asked.images)
    outputs = forward.outputs(images)
    if outputs.values.shape != asked.outputs.values.shape:
        wide, asked_width = outputs.values.shape[-1], asked.outputs.values.shape[-1]
        raise UsageError(f"model_masked has {wide} outputs, the model {asked_width}; give a copy of the same model")
    return Scored(forward, images, asked.targets, outputs, asked.targets.scores(outputs))


def replaced_outputs(forward: Forward, plain: Outputs, removed: Tensor) -> Outputs:
    """(B,2,C) outputs of the images and of the images with every pixel replaced: the two ends of every curve."""
    return Outputs.join([one.map(lambda part: part.unsqueeze(1)) for one in (plain, forward.outputs(removed))], dim=1)


def curve_outputs(
    forward: Forward, images: Tensor, removed: Tensor, maps: Tensor, ends: Outputs, points: int, seed: int,
    inpaint: bool = False, up_to: float = 100.0,
) -> Outputs:  # fmt: skip
    """Outputs (B,M,2,P,C) at ``curve_percent`` along MIF (first) and LIF of M maps (B,M,H,W) an image.

    Equal maps are run once.
    ``inpaint``: removed pixels are filled from those that are left; ``removed`` is then what is shown where none is.
    """
    different, which = distinct(maps)
    ranks = pixel_ranks(different, seed)
    count = different.shape[1]
    low, high = _removed_ranks(points, up_to, ranks.shape[-2] * ranks.shape[-1], ranks.device)
    copies = len(low)

    def fill(buffer: Tensor, image: int, first: int, last: int) -> None:
        at = torch.arange(first, last, device=ranks.device)
        pixel_rank, step = ranks[image, at // copies], at % copies
        gone = (pixel_rank >= low[step, None, None]) & (pixel_rank < high[step, None, None])
        if inpaint:
            buffer.copy_(inpainted(images[image].expand(len(gone), -1, -1, -1), gone[:, None]))
        else:
            torch.where(gone[:, None], removed[image], images[image], out=buffer)

    inner = forward.copies(images, count * copies, fill)
    known = [(part, edge) for part, edge in zip(inner, ends, strict=True) if part is not None and edge is not None]
    return Outputs(*(_with_ends(part, edge, count, which) for part, edge in known))


def fidelity_result(
    scores: Floats, percent: Floats, not_finite: np.ndarray, is_constant: np.ndarray, normalise: bool = False,
    up_to: float = 100.0,
) -> FidelityResult:  # fmt: skip
    """Areas (over 0 to ``up_to`` percent) and reasons from scores (B,2,P) at ``percent`` (P,), MIF first."""
    scores = scores.copy()
    first = scores[:, 0, 0].copy()
    replaced = scores[:, 0, -1].copy()
    unscalable = np.zeros(len(scores), dtype=bool)
    if normalise:
        unscalable = np.abs(first) <= _TINY * np.abs(scores).max((1, 2))
        scores /= np.where(unscalable, np.nan, first)[:, None, None]
    scores[not_finite] = np.nan
    mif, lif = scores[:, 0], scores[:, 1]
    kept = percent <= up_to + _TINY
    areas = trapezoid(scores[..., kept], percent[kept])
    reasons = first_reason(
        (not_finite, NOT_FINITE),
        (unscalable, "the first value is 0, so the curve cannot be divided by it"),
        (~finite(scores, (1, 2)), "the model's score is not finite"),
        (is_constant, f"{CONSTANT}: its order is the seeded permutation"),
        n=len(scores),
    )
    return FidelityResult(
        percent=percent,
        mif=mif,
        lif=lif,
        area_mif=areas[:, 0],
        area_lif=areas[:, 1],
        area=areas[:, 1] - areas[:, 0],
        score=first,
        replaced_score=replaced,
        at_stake=first - replaced,
        reasons=reasons,
    )


def _removed_ranks(points: int, up_to: float, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks [low, high) that are removed at each inner point: first along MIF, then along LIF."""
    shares = [point / (points - 1) for point in range(1, points - 1)]
    counts = [round(share * pixels) for share in shares if 100 * share <= up_to + _TINY]
    low = [pixels - count for count in counts] + [0] * len(counts)
    high = [pixels] * len(counts) + counts
    return torch.tensor(low, device=device), torch.tensor(high, device=device)


def _with_ends(inner: Tensor, ends: Tensor, count: int, which: list[int]) -> Tensor:
    """(B, count·2·(P−2), C) and the ends (B,2,C) → (B,M,2,P,C) for the M maps that ``which`` points from."""
    curves = inner.unflatten(1, (count, 2, -1))
    edge = ends[:, None, None].expand(-1, count, 2, -1, -1)
    return torch.cat([edge[..., :1, :], curves, edge[..., 1:, :]], dim=-2)[:, which]
