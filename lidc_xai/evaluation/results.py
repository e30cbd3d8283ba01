"""What every metric returns: per-image arrays, the reason wherever a figure is undefined, and a summary."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lidc_xai.evaluation.statistics import RESAMPLES, Floats, bootstrap_mean

SUMMARY_COLUMNS = ("mean", "low", "high", "n", "undefined", "note")


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Base of the metrics' results for B images.

    ``reasons``: per image why a figure is undefined (NaN) or a limiting case with a value by definition; "" where all
    is well. ``figures`` names the (B,) arrays that a table shows; ``shared`` the fields that do not go by image.

    >>> found = compactness(torch.rand(4, 8, 8))
    >>> found.undefined, found.summary().loc["value", "n"]
    (0, np.int64(4))
    """

    reasons: tuple[str, ...]

    figures: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    limiting: ClassVar[tuple[str, ...]] = ("by definition", "seeded permutation", "left out")

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def undefined(self) -> int:
        """Number of images with an undefined or limiting figure; their reasons say which."""
        return sum(bool(reason) for reason in self.reasons)

    def summary(
        self, clusters: Sequence[Hashable] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> pd.DataFrame:
        """One row per figure: mean, low and high (95 % interval), n (defined), undefined or limiting cases, note.

        ``clusters``: a patient per image; whole patients are then drawn in the bootstrap.
        """
        rows = {}
        for name in self.figures:
            interval = bootstrap_mean(getattr(self, name), clusters, resamples=resamples, seed=seed)
            notes = [note for note in self.notes(name) if note]
            commonest = max(sorted(set(notes)), key=notes.count, default="")
            told = "; ".join(part for part in (interval.note, commonest) if part)
            rows[name] = (interval.mean, interval.low, interval.high, interval.n, len(notes), told)
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(SUMMARY_COLUMNS))

    def by_group(self, groups: Sequence[Hashable], **options: Any) -> pd.DataFrame:
        """``summary`` of each group (size, label); rows by (group, figure)."""
        labels = np.asarray(groups, dtype=object)
        clusters = options.pop("clusters", None)
        parts = {}
        for label in dict.fromkeys(groups):
            rows = np.flatnonzero(labels == label)
            chosen = None if clusters is None else [clusters[row] for row in rows]
            parts[label] = self.select(rows).summary(chosen, **options)
        return pd.concat(parts, names=["group", "figure"])

    def select(self, rows: NDArray[np.intp]) -> Self:
        """The same result for some of the images."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "reasons":
                value = tuple(value[row] for row in rows)
            elif item.name not in self.shared and value is not None:
                value = value[rows]
            values[item.name] = value
        return type(self)(**values)

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """Results of consecutive batches as one."""
        several = list(parts)
        values: dict[str, Any] = {}
        for item in fields(several[0]):
            each = [getattr(part, item.name) for part in several]
            if item.name == "reasons":
                values[item.name] = tuple(reason for reasons in each for reason in reasons)
            elif item.name in cls.shared or each[0] is None:
                values[item.name] = each[0]
            else:
                values[item.name] = np.concatenate(each)
        return cls(**values)

    def notes(self, name: str) -> tuple[str, ...]:
        """Per image what a table says beside the figure ``name``: why it is NaN, or in what way it is a limiting case.

        A reason that concerns another figure of the image alone is not repeated here.
        """
        values = getattr(self, name)
        return tuple(
            reason if not np.isfinite(value) or any(words in reason for words in self.limiting) else ""
            for value, reason in zip(values, self.reasons, strict=True)
        )


def trapezoid(values: Floats, at: Floats) -> Floats:
    """Area under (..., points) values at positions ``at`` (points,)."""
    return np.asarray(np.trapezoid(values, at, axis=-1), dtype=np.float64)


def finite(values: Floats, axis: int | tuple[int, ...]) -> NDArray[np.bool_]:
    """Where all of ``values`` along ``axis`` are finite."""
    return np.asarray(np.isfinite(values).all(axis))


def first_reason(*candidates: tuple[NDArray[np.bool_], str], n: int) -> tuple[str, ...]:
    """Per image the first text whose flag (n,) is set, else ""."""
    reasons = [""] * n
    for flags, text in reversed(candidates):
        for row in np.flatnonzero(flags):
            reasons[row] = text
    return tuple(reasons)
