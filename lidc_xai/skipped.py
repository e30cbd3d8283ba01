"""What was not done and why: the rows of ``skipped.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from lidc_xai.files import write_text

FIELDS = ("nodule_id", "stage", "reason")


@dataclass(frozen=True, order=True)
class Skipped:
    """One case that was left out: its id (nodule, scan or file), the stage that left it out, and the reason."""

    nodule_id: str
    stage: str
    reason: str


def write_skipped(folder: Path | str, rows: Iterable[Skipped]) -> Path:
    """Write ``folder/skipped.csv`` atomically, sorted, with a header even where there is no row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(astuple(row) for row in sorted(set(rows)))
    path = Path(folder) / "skipped.csv"
    write_text(path, buffer.getvalue())
    return path


def read_skipped(folder: Path | str) -> list[Skipped]:
    """Rows of ``folder/skipped.csv``; an absent file has none."""
    path = Path(folder) / "skipped.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [Skipped(*(row[field] for field in FIELDS)) for row in csv.DictReader(stream)]
