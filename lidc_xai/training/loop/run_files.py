"""What other scripts read from the folder of a cross-validated run: its predictions and its metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_xai.errors import DataError, UsageError


def read_predictions(run: Path | str, columns: Sequence[str] = ("nodule_id", "patient_id", "fold")) -> pd.DataFrame:
    """``predictions.csv`` of ``run`` by nodule id; ``DataError`` where it lacks one of ``columns``."""
    path = _file(run, "predictions.csv")
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it is no predictions.csv of cross-validate")
    return table.sort_values("nodule_id", ignore_index=True)


def read_metrics(run: Path | str) -> dict[str, Any]:
    """``metrics.json`` of ``run``; ``DataError`` where it is damaged or something else."""
    path = _file(run, "metrics.json")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); make it again with lidc-xai evaluate") from error
    missing = [name for name in ("malignancy", "biomarkers", "baselines", "leaks") if name not in metrics]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; it is no metrics.json of cross-validate")
    return dict(metrics)


def _file(run: Path | str, name: str) -> Path:
    path = Path(run) / name
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a folder that cross-validate has finished")
    return path
