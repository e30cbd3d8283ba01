"""Every figure that the papers print and that a table here can show beside its own, from one file: published.csv.

Columns: source (arXiv number), table (its place in the paper), images and model (that the paper measured), method,
metric (as the benchmark names it), value, note. The CDAM paper's Tables 1 to 3 are of X_multi, its Table S1 of X_val;
perturbations whose details it leaves open make its figures a direction, not a value to be met.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from lidc_xai.errors import DataError

COLUMNS = ("source", "table", "method", "metric", "value", "note", "images", "model")
_NEEDED = COLUMNS[:5]
CDAM_PAPER = "arXiv 2312.02364"
RECIPROCAM_PAPER = "arXiv 2310.02588"
_FILE = Path(__file__).with_name("published.csv")


@cache
def _published() -> pd.DataFrame:
    return read_published(_FILE)


def published() -> pd.DataFrame:
    """All figures: the columns of ``COLUMNS``; empty text where the paper does not say.

    >>> known = published()
    >>> own = known[(known["method"] == "smoothgrad") & (known["metric"] == "fidelity/area")]
    >>> own[["table", "images", "value"]].values.tolist()
    [['Table 1', 'X_multi', -4.0], ['Table S1', 'X_val', -10.0]]
    """
    return _published().copy()


def read_published(path: Path | str) -> pd.DataFrame:
    """A CSV with the same columns, of which note, images and model may be absent; ``DataError`` where it is not one."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of published figures ({error})") from None
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; wanted {', '.join(COLUMNS)}")
    if not pd.api.types.is_numeric_dtype(table["value"]):
        raise DataError(f"{path}: column 'value' holds text; give numbers")
    texts = {name: table[name].fillna("") if name in table else "" for name in COLUMNS[5:]}
    return table.assign(**texts).reindex(columns=list(COLUMNS))
