"""Published figures that a table can show beside its own: only those whose source and meaning are certain.

The CDAM paper's tables stand on ImageNet models and on perturbations whose details are open, so that they are a
direction, not a value to be met. A full table of them is read from a CSV with the same columns (``read_published``).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lidc_xai.errors import DataError

COLUMNS = ("source", "table", "method", "metric", "value", "note")

MODEL = "model"
"""An optional column: the model that a figure belongs to; empty where the table has one model."""

CDAM_PAPER = "arXiv 2312.02364"

_KNOWN = (
    (CDAM_PAPER, "Table 1", "smoothgrad", "fidelity/area", -4.0, "signed gradients, not multiplied by the input"),
    (CDAM_PAPER, "Table 2", "attention", "discrimination/fidelity", 0.0, "equal maps for both classes"),
    (CDAM_PAPER, "Table 2", "attention", "discrimination/box", -0.2, "0 with the same boxes: theirs differed"),
    (CDAM_PAPER, "Table 2", "partial_lrp", "discrimination/fidelity", 3.0, "about; hardly class-sensitive"),
)


def published() -> pd.DataFrame:
    """What is known without the papers at hand: source, table, method, metric, value, note, model."""
    return pd.DataFrame(_KNOWN, columns=list(COLUMNS)).assign(**{MODEL: ""})


def read_published(path: Path | str) -> pd.DataFrame:
    """A CSV with the same columns, of which ``note`` and ``model`` may be absent; ``DataError`` where it is not one."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of published figures ({error})") from None
    missing = [name for name in COLUMNS[:-1] if name not in table.columns]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; wanted {', '.join(COLUMNS)}")
    if not pd.api.types.is_numeric_dtype(table["value"]):
        raise DataError(f"{path}: column 'value' holds text; give numbers")
    texts = {name: table[name].fillna("") if name in table else "" for name in ("note", MODEL)}
    return table.assign(**texts).reindex(columns=[*COLUMNS, MODEL])
