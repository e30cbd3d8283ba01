"""The vocabulary: the eight biomarkers, LIDC's rating scales with what their ends mean, and the label rule.

Every rating is a radiologist's opinion about one nodule. The malignancy label says on which side of "indeterminate"
the readers' median lies; it is not pathology.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType

RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True)
class Scale:
    """One rated property: its range, its unit and what its two ends mean."""

    name: str
    low: float
    high: float
    unit: str
    low_words: str
    high_words: str
    codes: MappingProxyType[int, str] = field(default_factory=lambda: MappingProxyType({}))

    def towards(self, sign: int) -> str:
        """Words for a positive (``sign`` > 0) or negative relevance: the end of the scale that it argues for."""
        return f"towards {self.high_words if sign > 0 else self.low_words}"

    def compared(self, sign: int) -> str:
        """A nodule with more (``sign`` > 0) or less of the property than another.

        >>> SCALES["lobulation"].compared(-1), SCALES["margin"].compared(1), SCALES["diameter"].compared(1)
        ('less lobulated', 'sharper', 'larger')
        """
        words = self.high_words if sign > 0 else self.low_words
        if words in _COMPARATIVES:
            return _COMPARATIVES[words]
        return f"less {words.removeprefix('not ')}" if words.startswith("not ") else f"more {words}"

    def in_words(self, value: float) -> str:
        """The nearest described step of the scale for ``value``; for a scale without steps, value and unit."""
        if not self.codes:
            return f"{value:.1f} {self.unit}"
        return self.codes[min(self.codes, key=lambda code: abs(code - value))]


_COMPARATIVES = {"sharp": "sharper", "round": "rounder", "linear": "less round", "large": "larger", "small": "smaller"}


_TABLE = {  # low end, high end, and what the codes from 1 on mean
    "malignancy": (
        "a low malignancy rating", "a high malignancy rating", "highly unlikely malignant",
        "moderately unlikely malignant", "indeterminate", "moderately suspicious", "highly suspicious",
    ),
    "subtlety": (
        "subtle", "obvious", "extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious",
    ),
    "internal_structure": ("soft tissue", "air", "soft tissue", "fluid", "fat", "air"),
    "calcification": (
        "calcified", "no calcification", "popcorn", "laminated", "solid", "non-central", "central", "absent",
    ),
    "sphericity": ("linear", "round", "linear", "ovoid to linear", "ovoid", "ovoid to round", "round"),
    "margin": (
        "poorly defined", "sharp", "poorly defined", "near poorly defined", "medium margin", "near sharp", "sharp",
    ),
    "lobulation": (
        "not lobulated", "lobulated", "no lobulation", "nearly no lobulation", "medium lobulation",
        "near marked lobulation", "marked lobulation",
    ),
    "spiculation": (
        "not spiculated", "spiculated", "no spiculation", "nearly no spiculation", "medium spiculation",
        "near marked spiculation", "marked spiculation",
    ),
    "texture": (
        "ground-glass", "solid", "ground-glass", "ground-glass to mixed", "part-solid", "solid to mixed", "solid",
    ),
}  # fmt: skip


def _scale(name: str, low_words: str, high_words: str, *steps: str) -> Scale:
    codes = MappingProxyType(dict(enumerate(steps, start=1)))
    return Scale(name, 1, len(steps), f"1–{len(steps)}", low_words, high_words, codes)


_SCALES = (
    *(_scale(name, *words) for name, words in _TABLE.items()),
    Scale("diameter", 0.0, float("inf"), "mm", "small", "large"),
)
SCALES: MappingProxyType[str, Scale] = MappingProxyType({scale.name: scale for scale in _SCALES})

BIOMARKERS = (
    "subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture", "diameter",
)  # fmt: skip
OUTPUTS = ("malignancy", *BIOMARKERS)
"""Everything a model can be trained for: one binary output and eight regression outputs."""

READER_RATINGS = (
    "subtlety", "internal_structure", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture",
    "malignancy",
)  # fmt: skip
"""The nine ratings that a reader gave to an annotation (diameter is measured from the contours)."""

PAPER_OUTPUT_ORDER = (
    "subtlety", "calcification", "margin", "lobulation", "spiculation", "diameter", "texture", "sphericity",
)  # fmt: skip
"""Order of the eight outputs in the code of arXiv 2312.02364's authors."""

CALCIFICATION_ABSENT = 6
INDETERMINATE = 3
EVEN_CHANCE = 0.5
"""A probability is on the high side only above it, as a rating is only above ``INDETERMINATE``: exactly one half is not
high, in accuracies, subgroups, tables and words alike."""


def malignancy_label(votes: Iterable[float]) -> int | None:
    """1 where the readers' median malignancy is above 3, 0 where it is below, ``None`` where it is 3."""
    middle = median(votes)
    if middle == INDETERMINATE:
        return None
    return int(middle > INDETERMINATE)
