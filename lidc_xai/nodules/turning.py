"""The smallest edit that turns a verdict: what the model would have had to see to say the opposite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.errors import DataError
from lidc_xai.ratings import EVEN_CHANCE
from lidc_xai.simulate.edits.edit import EDITS, edit_nodule

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules._predict import Models
    from lidc_xai.nodules.maps import NoduleMaps

DOSES = (0.25, 0.5, 0.75, 1.0)
NEAR = 0.15
"""A probability this near to one half is borderline."""
DIRECTIONS = {"diameter": ("larger", "smaller"), "margin": ("blurred", "sharpened")}


@dataclass(frozen=True)
class Turn:
    """An edit that turns the verdict. ``before`` and ``after``: calibrated probability of a high malignancy rating;
    ``crop``: edited, (z, y, x); ``changed``: its edited voxels; ``asked``: how many edits and doses were tried."""

    edit: str
    dose: float
    before: float
    after: float
    crop: NoduleCrop
    changed: np.ndarray
    asked: int


def wants_turning(row: Mapping[str, Any], label: float | None) -> bool:
    """Whether a prediction is wrong against the readers' label (None or NaN: indeterminate), or borderline.

    >>> wants_turning({"malignancy_probability": 0.9}, 0), wants_turning({"malignancy_probability": 0.9}, 1)
    (True, False)
    """
    probability = float(row.get("malignancy_probability", np.nan))
    if not np.isfinite(probability):
        return False
    wrong = label is not None and np.isfinite(label) and (probability > EVEN_CHANCE) != bool(label)
    return bool(wrong or abs(probability - 0.5) <= NEAR)


def smallest_turn(models: Models, crop: NoduleCrop, *, seed: int = 0, device: str = "cpu") -> Turn | None:
    """The edit of smallest |dose| (of several, the one that goes furthest) by which the verdict changes sides.

    Tried are all edits but ``remove``, at doses .25, .5, .75 and 1, and for diameter and margin also downwards. None
    where none of them turns it; ``DataError`` where the nodule cannot be edited.

    >>> turn = smallest_turn(model, crop)
    >>> turn is None or (turn.before > 0.5) != (turn.after > 0.5)
    True
    """
    from lidc_xai.nodules._predict import predict

    before = float(predict(models, crop, device=device)["malignancy_probability"].iloc[0])
    edit_nodule(crop, "subtlety", 0.0)  # says at once why a nodule cannot be edited
    asked = 0
    for size in DOSES:
        turned: list[Turn] = []
        for name, dose in _tried(size):
            try:
                edited, changed = edit_nodule(crop, name, dose, seed)
            except DataError:
                continue
            asked += 1
            after = float(predict(models, edited, device=device)["malignancy_probability"].iloc[0])
            if (after > EVEN_CHANCE) != (before > EVEN_CHANCE):
                turned.append(Turn(name, dose, before, after, edited, changed, asked))
        if turned:
            return max(turned, key=lambda turn: abs(turn.after - turn.before))
    return None


def map_on_turn(turn: Turn, maps: NoduleMaps) -> tuple[float, float] | None:
    """Where the map of malignancy (its log-odds) speaks for the verdict: the share of that relevance that lies on the
    edited pixels of the explained planes, and the share of those planes that was edited. None where nothing speaks for
    it or no explained plane was edited."""
    from lidc_xai.evaluation.geometry import in_plane
    from lidc_xai.imaging.planes import extract_plane

    if "malignancy" not in maps.output_names:
        return None
    sign = 1.0 if turn.before > EVEN_CHANCE else -1.0
    scores = sign * maps.relevance[:, maps.output_names.index("malignancy")]
    planes = [
        extract_plane(turn.changed, turn.crop.affine, view, index).image
        for view, index in zip(maps.views, maps.indices, strict=True)
    ]
    plane = in_plane(scores, np.stack(planes), 1.0)
    speaking = np.maximum(plane.maps, 0)
    if not plane.masks.any() or speaking.sum() <= 0:
        return None
    return float((speaking * plane.masks).sum() / speaking.sum()), float(plane.masks.mean())


def in_words(turn: Turn | None, on_map: tuple[float, float] | None, method: str) -> list[str]:
    """Two lines for a page."""
    if turn is None:
        return ["No edit tried turns the verdict: it does not hang on any one of these properties alone."]
    up, down = DIRECTIONS.get(turn.edit, ("", ""))
    how = f" ({up if turn.dose > 0 else down})" if up else ""
    first = (
        f"The smallest edit found that turns the verdict: {turn.edit} at dose {turn.dose:g}{how} takes the probability "
        f"of a high rating from {turn.before:.2f} to {turn.after:.2f}."
    )
    if on_map is None:
        return [first, f"The {method} map of malignancy says nothing about it: no explained plane was edited."]
    share, area = on_map
    points = "points there" if share >= 2 * area else "does not point there"
    return [
        first,
        f"Of what speaks for the verdict in the {method} map of malignancy, {share:.0%} lies on the edited pixels, "
        f"{area:.0%} of the plane: the map {points} (at least twice its share of the plane).",
    ]


def _tried(size: float) -> Sequence[tuple[str, float]]:
    tries = []
    for name, edit in EDITS.items():
        if name != "remove":
            tries.append((name, size))
            if edit.lowest < 0:
                tries.append((name, -size))
    return tries
