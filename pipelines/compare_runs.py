"""Cross-validated runs side by side, paired on the nodules that all of them tested.

    python pipelines/compare_runs.py --runs runs/full-seed0,runs/lora-seed0,runs/scratch --out runs/compared

Writes compared.csv and prints a Markdown table: AUC, ACC, ECE and mean MSE(z) of every run, and each run's difference
to the first with a 95 % interval by patient. The leak ledger is such a comparison (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_predictions
from lidc_xai.training.bootstrap import metric_difference, metric_interval
from lidc_xai.training.metrics import accuracy, auc, expected_calibration_error, mean_value

CLASSIFIED = {"AUC": auc, "ACC": accuracy, "ECE": expected_calibration_error}
BOTH = "mean MSE(z)"


class Options(Config):
    """Runs to compare."""

    runs: list[str] = Field(min_length=1, description="Folders that cross-validate wrote, separated by commas.")
    resamples: int = Field(2000, ge=1, description="Replicates of the intervals.")


def compare(options: Options, run: Run) -> None:
    """Read, pair, measure, write."""
    names = [Path(name) for name in words(options.runs)]
    tables = paired([read_predictions(name) for name in names], names)
    rows = [figures(name.name, table, tables[0], options.resamples) for name, table in zip(names, tables, strict=True)]
    write_csv(need_out(options) / "compared.csv", pd.DataFrame(rows))
    print("\n".join(markdown(rows, len(tables[0]), tables[0]["patient_id"].nunique())))


def paired(tables: Sequence[pd.DataFrame], names: Sequence[Path]) -> list[pd.DataFrame]:
    """The tables' rows of the nodules that all have, in one order."""
    common = set.intersection(*(set(table["nodule_id"]) for table in tables))
    if not common:
        raise DataError(f"{names[0]} and {names[-1]} tested no nodule in common; compare runs of one store")
    return [table[table["nodule_id"].isin(common)].reset_index(drop=True) for table in tables]


def figures(name: str, table: pd.DataFrame, first: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """One run's figures, and how far each lies from the first run's."""
    row: dict[str, Any] = {"run": name}
    patients = table["patient_id"].tolist()
    for metric, function in CLASSIFIED.items():
        if "malignancy_probability" in table:
            y, p = (table[column].to_numpy(np.float64) for column in ("label", "malignancy_probability"))
            interval = metric_interval(function, y, p, patients, resamples=resamples)
            row |= {metric: interval.mean, f"{metric} low": interval.low, f"{metric} high": interval.high}
            if table is not first and "malignancy_probability" in first:
                other = first["malignancy_probability"].to_numpy(np.float64)
                beside = metric_difference(function, y, p, other, patients, resamples=resamples)
                row |= _difference(metric, beside)
    errors, others = squared_errors(table), squared_errors(first)
    if errors is not None:
        interval = metric_interval(mean_value, errors, errors, patients, resamples=resamples)
        row |= {BOTH: interval.mean, f"{BOTH} low": interval.low, f"{BOTH} high": interval.high}
        if table is not first and others is not None:
            row |= _difference(
                BOTH, metric_difference(mean_value, errors, errors, others, patients, resamples=resamples)
            )
    return row


def squared_errors(table: pd.DataFrame) -> np.ndarray | None:
    """(n,) mean squared error over the biomarkers, each in units of its training deviation; None without any."""
    columns = [
        ((table[name] - table[f"{name}_readers"]) / table[f"{name}_train_sd"]) ** 2
        for name in BIOMARKERS
        if name in table
    ]
    return None if not columns else np.mean(columns, axis=0)


def _difference(metric: str, beside: Any) -> dict[str, Any]:
    return {
        f"Δ {metric}": beside.difference, f"Δ {metric} low": beside.low, f"Δ {metric} high": beside.high,
    }  # fmt: skip


def markdown(rows: Sequence[Mapping[str, Any]], nodules: int, patients: int) -> list[str]:
    """A table for a page: figures with intervals, then differences to the first run."""
    columns = [name for name in (*CLASSIFIED, BOTH) if any(name in row for row in rows)]
    shown = columns + [f"Δ {name}" for name in columns]
    lines = [f"{nodules} nodules of {patients} patients; Δ: minus {rows[0]['run']}", ""]
    lines += ["| run | " + " | ".join(shown) + " |", "|" + "---|" * (len(shown) + 1)]
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        lines.append(f"| {row['run']} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return "–"
    sign = "+" if name.startswith("Δ") else ""
    return f"{row[name]:{sign}.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("compare_runs", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
