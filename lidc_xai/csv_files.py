"""The one way to write CSV: a cell that a spreadsheet would run as a formula becomes plain text, numbers stay numbers;
and the one way to read such a table back.

A patient called ``=HYPERLINK(…)`` is a formula to Excel and LibreOffice, quoted or not. A text that begins with one of
= + - @, a tab or a carriage return, and is no number, gets an apostrophe before it, which they show as text.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidc_xai.errors import DataError
from lidc_xai.files import write_text

if TYPE_CHECKING:
    import pandas as pd

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def defused(value: Any) -> Any:
    """``value`` as it may stand in a cell; anything but a text that would be a formula is given back as it is.

    >>> [defused(text) for text in ("=1+1", "-1000", "@here", "benign")]
    ["'=1+1", '-1000', "'@here", 'benign']
    """
    if not isinstance(value, str) or not value.startswith(_STARTS_A_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_text(table: pd.DataFrame, index: bool = False) -> str:
    """A table as CSV, lines ended by a line feed, with as many digits as it takes to read the same numbers back."""
    safe = table.rename(columns=defused)
    for place, kind in enumerate(table.dtypes):
        if kind.name in ("object", "category", "string", "str"):
            safe.isetitem(place, [defused(value) for value in table.iloc[:, place].astype(object)])
    if index:
        safe.index = safe.index.map(defused)
    return safe.to_csv(index=index, lineterminator="\n")


def write_csv(path: Path | str, table: pd.DataFrame, index: bool = False) -> None:
    """Write :func:`csv_text` atomically."""
    write_text(path, csv_text(table, index))


def read_table(
    path: Path | str, needed: Sequence[str] = (), numbers: Callable[[str], bool] | None = None
) -> pd.DataFrame:
    """A CSV table; DataError where it is no CSV, lacks a column of ``needed`` or names a nodule twice.

    ``nodule_id`` and ``patient_id`` are text, whatever they look like; columns for which ``numbers`` is true are
    finite numbers, else DataError says which cell is none.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"nodule_id": str, "patient_id": str}, keep_default_na=True)
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})") from error
    missing = [name for name in needed if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}")
    if "nodule_id" in needed and table["nodule_id"].isna().any():
        raise DataError(f"{path}: row {int(table['nodule_id'].isna().to_numpy().argmax()) + 1} has no nodule_id")
    if "nodule_id" in needed and table["nodule_id"].duplicated().any():
        twice = table["nodule_id"][table["nodule_id"].duplicated()]
        raise DataError(f"{path}: nodule {twice.iloc[0]!r} is there twice")
    for name in table:
        if numbers is not None and numbers(str(name)):
            values = pd.to_numeric(table[name], errors="coerce")
            bad = table[name][(values.isna() & table[name].notna()) | values.isin([math.inf, -math.inf])]
            if len(bad):
                raise DataError(f"{path}: column {name!r} has {str(bad.iloc[0])!r}, which is no finite number")
            table[name] = values
    return table


def rows_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of plain values as CSV, where no table is at hand."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([defused(cell) for cell in row] for row in rows)
    return buffer.getvalue()
