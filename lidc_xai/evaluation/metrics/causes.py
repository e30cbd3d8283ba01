"""Against known causes: in simulated CT the voxels that carry a rating are known, so a map has a right answer.

Four biomarkers have a carrier: calcified foci, spicules, the rim (margin) and the ground-glass or solid body (texture).
Subtlety, sphericity, lobulation and diameter belong to the nodule as a whole: they have none.

A map is read with the sign of the cause: relevance that argues the way the cause argues is positive. Calcium lowers the
calcification code (6 = absent), spicules raise spiculation; rim and body argue both ways: as they move the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lidc_xai.errors import DataError
from lidc_xai.evaluation.forward import Forward, Precision
from lidc_xai.evaluation.geometry import Spacing
from lidc_xai.evaluation.maps import MapLike, as_map
from lidc_xai.evaluation.metrics._localisation import LocalisationResult, localisation
from lidc_xai.evaluation.results import Result, first_reason
from lidc_xai.evaluation.statistics import Floats

CARRIERS = {
    "calcification": "calcified foci",
    "spiculation": "spicules",
    "margin": "rim",
    "texture": "ground-glass or solid body",
}
FIXED_SIGN = {"calcification": -1.0, "spiculation": 1.0}


def cause_localisation(
    relevance: MapLike, masks: ArrayLike | Tensor, spacing_mm: Spacing, sign: ArrayLike = 1.0, *, seed: int = 0
) -> LocalisationResult:
    """``localisation`` of ``sign`` · relevance (B,h,w) against the voxels that carry the cause, (B,H,W) in the plane.

    ``sign``: one number or (B,): which way the cause moves the output (``cause_sign``). A plane without the cause is
    undefined and counted.

    >>> spot = torch.zeros(1, 8, 8, dtype=torch.bool)
    >>> spot[0, 2:4, 2:4] = True
    >>> cause_localisation(-spot.double(), spot, 1.0, sign=-1.0).auprc.tolist()      # what speaks against the output
    [1.0]
    """
    maps = as_map(relevance, len(relevance), torch.device("cpu"))
    signs = torch.as_tensor(np.broadcast_to(np.asarray(sign, dtype=np.float64), (len(maps),)).copy())
    return localisation(maps * signs[:, None, None], masks, spacing_mm, seed=seed)


def cause_sign(biomarker: str, moved: ArrayLike) -> Floats:
    """(B,) which way a cause argues: fixed for calcium and spicules, else the sign of what it moved.

    ``moved`` (B,): f(x) − f(x without the cause), or the standardised output itself where no such pair is at hand.

    >>> cause_sign("margin", np.array([0.4, -0.2])).tolist()
    [1.0, -1.0]
    """
    change = np.asarray(moved, dtype=np.float64)
    if biomarker not in CARRIERS:
        raise DataError(f"{biomarker!r} has no carrier; those that have: {', '.join(CARRIERS)}")
    return np.full(change.shape, FIXED_SIGN[biomarker]) if biomarker in FIXED_SIGN else np.where(change < 0, -1.0, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class CauseEffect(Result):
    """``change`` (B,outputs): f(x) − f(x without the cause), per output; ``own`` (B,): of the cause's own output."""

    outputs: tuple[str, ...]
    change: Floats
    own: Floats

    figures: ClassVar[tuple[str, ...]] = ("own",)
    shared: ClassVar[tuple[str, ...]] = ("outputs",)


def cause_effects(
    model: nn.Module,
    images: Tensor,
    without: Mapping[str, Tensor],
    *,
    max_batch: int = 64,
    precision: Precision = "float32",
) -> dict[str, CauseEffect]:
    """Does removing each cause move the outputs? The control without which a cause mask is no ground truth.

    ``images`` (B,C,H,W) and, per biomarker, the same images simulated ``without`` its cause. Images that are equal with
    and without (they never had the cause) are undefined and counted.

    >>> planes = nodule_images(model, crop)
    >>> cause_effects(model, planes, {"spiculation": 0.9 * planes})["spiculation"].own.shape
    (3,)
    """
    forward = Forward(model, max_batch, precision)
    images = forward.place(images)
    names = tuple(getattr(model, "output_names", None) or ())
    plain = forward.outputs(images).values.cpu().numpy()
    names = names or tuple(str(column) for column in range(plain.shape[1]))
    effects = {}
    for biomarker, changed in without.items():
        changed = forward.place(changed)
        if changed.shape != images.shape:
            raise DataError(
                f"{biomarker}: images without the cause are {tuple(changed.shape)}, not {tuple(images.shape)}"
            )
        change = plain - forward.outputs(changed).values.cpu().numpy()
        same = (changed == images).flatten(1).all(1).cpu().numpy()
        change[same] = np.nan
        own_change = change[:, names.index(biomarker)] if biomarker in names else np.full(len(change), np.nan)
        reasons = first_reason(
            (same, "the image has no such cause"),
            (~np.isfinite(own_change), f"the model has no output {biomarker!r}"),
            n=len(change),
        )
        effects[biomarker] = CauseEffect(outputs=names, change=change, own=own_change, reasons=reasons)
    return effects
