"""What was not done and why: the rows of ``skipped.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from lidc_xai.csv_files import rows_text
from lidc_xai.files import write_text

FIELDS = ("nodule_id", "stage", "reason")
ABSENT = "absent"
"""Stage of a nodule whose images are simply not here: asked for, never found, nothing failed."""


_FOLDERS = re.compile(r"(?:^|(?<=[\s('\"]))(?:[A-Za-z]:)?[\\/](?:[^\s\\/][^\\/\n:;,'\"]*[\\/])+")
"""The folders of an absolute path in a sentence."""


@dataclass(frozen=True, order=True)
class Skipped:
    """One case that was left out: its id (nodule, scan or file), the stage that left it out, and the reason, which
    names files without their folders: the table is given to others.

    >>> Skipped("a", "store", "/home/doe/my runs/store/crops/a/ct.nii.gz: is damaged (1/2 of a slice)").reason
    'ct.nii.gz: is damaged (1/2 of a slice)'
    """

    nodule_id: str
    stage: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", _FOLDERS.sub("", self.reason))


def write_skipped(folder: Path | str, rows: Iterable[Skipped]) -> Path:
    """Write ``folder/skipped.csv`` atomically, sorted, with a header even where there is no row."""
    path = Path(folder) / "skipped.csv"
    write_text(path, rows_text([FIELDS, *(astuple(row) for row in sorted(set(rows)))]))
    return path


def read_skipped(folder: Path | str) -> list[Skipped]:
    """Rows of ``folder/skipped.csv``; an absent file has none."""
    path = Path(folder) / "skipped.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [Skipped(*(row[field] for field in FIELDS)) for row in csv.DictReader(stream)]


def in_words(rows: Iterable[Skipped]) -> str:
    """How many rows were left out, those that are simply absent apart: what failed is what wants looking at.

    >>> in_words([Skipped("a", "crop", "cut off"), Skipped("b", ABSENT, "not here")])
    '1 left out, 1 absent'
    """
    rows = set(rows)
    absent = sum(row.stage == ABSENT for row in rows)
    counts = {"left out": len(rows) - absent, "absent": absent}
    return ", ".join(f"{count} {words}" for words, count in counts.items() if count) or "0 left out"
