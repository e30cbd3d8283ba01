"""From ratings to what is drawn: which look each rating asks for, ratings set by hand, and independently drawn ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import UsageError
from lidc_xai.ratings import CALCIFICATION_ABSENT, READER_RATINGS, SCALES
from lidc_xai.simulate.grid import stream

CAUSES = ("calcification", "margin", "spiculation", "texture")
"""Biomarkers that some voxels carry. Subtlety, sphericity, lobulation and diameter belong to the nodule as a whole."""

NEUTRAL = {"calcification": CALCIFICATION_ABSENT, "margin": 4.0, "spiculation": 1.0, "texture": 5.0, "subtlety": 5.0}
"""How a biomarker is drawn that is switched off."""


@dataclass(frozen=True)
class Expression:
    """What is drawn: mean ratings over the readers; the calcification code that most of those gave who saw calcium, and
    the share of readers who did."""

    texture: float
    margin: float
    spiculation: float
    subtlety: float
    calcification: int
    calcified: float
    internal_structure: int


def express(nodule: Nodule, without: Collection[str] = (), switched_off: Collection[str] = ()) -> Expression:
    """The look that the readers' ratings of ``nodule`` ask for.

    ``without``: causes that are taken away from a nodule that has them: no calcium, no spicules; margin and texture,
    which every nodule has, are drawn at the other end of their scale. ``switched_off``: drawn the same in every nodule.
    """
    check_names(without, CAUSES, "without")
    check_names(switched_off, tuple(NEUTRAL), "switched_off")
    mean = {
        name: float(np.mean([reading.ratings[name] for reading in nodule.readers]))
        for name in ("texture", "margin", "spiculation", "subtlety")
    }
    for name in {"margin", "texture"} & set(without):
        mean[name] = 1.0 if mean[name] > 3 else 5.0
    if "spiculation" in without:
        mean["spiculation"] = 1.0
    mean.update({name: NEUTRAL[name] for name in switched_off if name in mean})
    codes = [reading.ratings["calcification"] for reading in nodule.readers]
    seen = [code for code in codes if code != CALCIFICATION_ABSENT]
    if "calcification" in {*without, *switched_off} or not seen:
        code, share = CALCIFICATION_ABSENT, 0.0
    else:
        code, share = _most_common(seen), len(seen) / len(codes)
    structure = _most_common([reading.ratings["internal_structure"] for reading in nodule.readers])
    return Expression(**mean, calcification=code, calcified=share, internal_structure=structure)


def check_names(names: Collection[str], known: Collection[str], option: str) -> None:
    """UsageError for a name that the option does not know."""
    for name in [names] if isinstance(names, str) else names:
        if name not in known or isinstance(names, str):
            raise UsageError(f"{option}={names!r}: give a tuple of names out of {', '.join(known)}")


def with_ratings(nodule: Nodule, ratings: Mapping[str, float]) -> Nodule:
    """``nodule`` as if every reader had given ``ratings`` (rounded); its contours, and so its diameter, stay.

    Raises UsageError for a name that is no rating or a value outside its scale.

    >>> [reading.ratings["texture"] for reading in with_ratings(nodule, {"texture": 2}).readers]
    [2, 2, 2, 2]
    """
    for name, value in ratings.items():
        if name not in READER_RATINGS:
            raise UsageError(f"ratings: {name!r} cannot be set; choose among {', '.join(READER_RATINGS)}")
        if not SCALES[name].low <= round(value) <= SCALES[name].high:
            raise UsageError(f"ratings: {name}={value} is outside {SCALES[name].unit}")
    whole = {name: round(value) for name, value in ratings.items()}
    return replace(
        nodule, readers=[replace(reading, ratings={**reading.ratings, **whole}) for reading in nodule.readers]
    )


def independent_ratings(nodules: Iterable[Nodule], seed: int = 0) -> dict[str, dict[str, int]]:
    """Ratings drawn independently of each other, per nodule_id: subtlety, calcification, margin, spiculation, texture.

    Half of the nodules have no calcium; the rest is uniform over the scale. Lobulation, sphericity and diameter stay
    the real ones, since the real contours show them. Malignancy follows from the drawn ratings and the real diameter
    by a stated rule with noise: spiculation and diameter raise it, calcium and a sharp margin lower it.

    >>> drawn = independent_ratings([nodule], seed=0)[nodule.nodule_id]
    >>> 1 <= drawn["spiculation"] <= 5
    True
    """
    return {nodule.nodule_id: _drawn(nodule, stream(seed, nodule.nodule_id, "ratings")) for nodule in nodules}


def _drawn(nodule: Nodule, rng: np.random.Generator) -> dict[str, int]:
    drawn = {name: int(rng.integers(1, 6)) for name in ("subtlety", "margin", "spiculation", "texture")}
    calcified = rng.uniform() < 0.5
    drawn["calcification"] = int(rng.integers(1, 6)) if calcified else CALCIFICATION_ABSENT
    drawn["internal_structure"] = 1
    diameter = float(np.nanmean([reading.diameter_mm for reading in nodule.readers] or [8.0]))
    score = 0.5 * (drawn["spiculation"] - 3) - 0.25 * (drawn["margin"] - 3) + 0.12 * (min(diameter, 25) - 10)
    score += rng.normal(0, 0.5) - (1.2 if calcified else -0.4)
    step = min(max(round(abs(score)), 1), 2)  # never indeterminate: every nodule keeps a label
    drawn["malignancy"] = 3 + step if score > 0 else 3 - step
    return drawn


def _most_common(codes: list[int]) -> int:
    counted = Counter(codes)
    return min(counted, key=lambda code: (-counted[code], code))
