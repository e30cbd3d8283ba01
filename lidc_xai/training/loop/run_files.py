"""What other scripts read from the folder of a cross-validated run: its predictions and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_xai.csv_files import read_table
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import read_json
from lidc_xai.ratings import OUTPUTS


def read_predictions(run: Path | str, columns: Sequence[str] = ("nodule_id", "patient_id", "fold")) -> pd.DataFrame:
    """``predictions.csv`` of ``run`` by nodule id; ``DataError`` where it lacks one of ``columns``."""
    path = _file(run, "predictions.csv")
    table = read_predictions_table(path)
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it is no predictions.csv of cross-validate")
    return table.sort_values("nodule_id", ignore_index=True)


def read_predictions_table(path: Path | str) -> pd.DataFrame:
    """A predictions.csv as it lies there; ``DataError`` where a figure is no number or a nodule is there twice."""
    return read_table(path, ("nodule_id",), _is_figure)


def _is_figure(column: str) -> bool:
    named = column.startswith((*OUTPUTS, "p_calcified")) and not column.endswith(("_words", "_set"))
    return named or column.startswith("baseline.") or column in ("label", "fold", "n_readers")


def read_metrics(run: Path | str) -> dict[str, Any]:
    """``metrics.json`` of ``run``; ``DataError`` where it is damaged or something else."""
    path = _file(run, "metrics.json")
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: is a {type(metrics).__name__}; make it again with lidc-xai evaluate")
    missing = [name for name in ("malignancy", "biomarkers", "baselines", "leaks") if name not in metrics]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; it is no metrics.json of cross-validate")
    return metrics


def _file(run: Path | str, name: str) -> Path:
    path = Path(run) / name
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a folder that cross-validate has finished")
    return path
