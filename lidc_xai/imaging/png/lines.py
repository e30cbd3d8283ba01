"""Calibrated pictures of the PNG edition: ``HU = slope · grey + intercept`` per slice, as a CSV file says.

Columns patient_id, nodule (the edition's ``nodule-<k>``), slice (``slice-<j>``), slope, intercept and rmse_hu, the
deviation of the fit in HU. Such a file comes from somebody who has true HU of the same slices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lidc_xai.errors import DataError, UsageError

COLUMNS = ("patient_id", "nodule", "slice", "slope", "intercept", "rmse_hu")
_NUMBERS = ("nodule", "slice", "slope", "intercept", "rmse_hu")


@dataclass(frozen=True)
class Line:
    """One picture's scale: HU of a grey step, HU of grey 0, and the fit's root mean square error in HU."""

    slope: float
    intercept: float
    rmse_hu: float


Lines = Mapping[int, Line]
"""Slice number -> its line."""


class HuLines:
    """The lines of a calibration file: ``of(patient_id, group)`` are those of one nodule of the edition.

    ``known``: (patient, group) of every nodule that exists; a row of another one makes the file wrong; ``None``
    compares nothing, to refuse a file that is wrong in itself before the nodules are read. Raises
    UsageError for a missing file; DataError, one line with file, row and field, for what cannot be a calibration.
    """

    def __init__(self, path: Path | str, known: Collection[tuple[str, int]] | None) -> None:
        self.path = Path(path)
        table = _read(self.path)
        for name in _NUMBERS:
            table[name] = pd.to_numeric(table[name], errors="coerce")
            self._refuse(table, ~np.isfinite(table[name]), f"{name} is no number")
        for name in ("nodule", "slice"):
            self._refuse(table, (table[name] < 0) | (table[name] % 1 != 0), f"{name} is no whole number from 0 on")
        self._refuse(table, table["slope"] <= 0, "slope is not above 0, so grey levels would have no HU")
        self._refuse(table, table["rmse_hu"] < 0, "rmse_hu is below 0")
        table = table.astype({"nodule": int, "slice": int})
        self._refuse(table, table.duplicated(["patient_id", "nodule", "slice"]), "the same slice stands there twice")
        if known is not None:
            strangers = [key not in known for key in zip(table["patient_id"], table["nodule"], strict=True)]
            mask = pd.Series(strangers, index=table.index, dtype=bool)
            self._refuse(table, mask, "there is no such nodule in LIDC-IDRI")
        self._lines: dict[tuple[str, int], dict[int, Line]] = {}
        for patient, nodule, number, *line in table.itertuples(index=False):
            self._lines.setdefault((patient, nodule), {})[number] = Line(*line)

    def __len__(self) -> int:
        return len(self._lines)

    def of(self, patient_id: str, group: int) -> Lines:
        """Lines by slice number; empty where the file has none of this nodule."""
        return self._lines.get((patient_id, group), {})

    def _refuse(self, table: pd.DataFrame, wrong: pd.Series, what: str) -> None:
        """One line for the first wrong row (the header is line 1)."""
        if not wrong.any():
            return
        place = int(np.flatnonzero(wrong)[0])
        row = table.iloc[place]
        nodule, number = (f"{row[name]:g}" if np.isfinite(row[name]) else "?" for name in ("nodule", "slice"))
        where = f"{self.path}: line {place + 2} ({row['patient_id']}, nodule {nodule}, slice {number})"
        more = f", and in {int(wrong.sum()) - 1} more rows" if wrong.sum() > 1 else ""
        raise DataError(f"{where}: {what}{more}; correct the row or leave it out (its HU are then estimated)")


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --hu is a CSV with the columns {', '.join(COLUMNS)}")
    try:
        table = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; wanted {', '.join(COLUMNS)}")
    if table.empty:
        raise DataError(f"{path}: holds no line; leave --hu out to have all HU estimated")
    return table[list(COLUMNS)]
