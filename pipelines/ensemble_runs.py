"""Average the out-of-fold predictions of several cross-validated runs (seeds) on the same splits, and evaluate.

    python pipelines/ensemble_runs.py --runs runs/png-seed0,runs/png-seed1,runs/png-seed2 --out runs/png-ensemble

Logits and biomarkers are averaged; probabilities and intervals are calibrated anew on them. Beside the metrics of the
average, ``seeds.csv`` holds each run's own.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from lidc_xai.training import evaluate_predictions
from lidc_xai.training.assessment import read_predictions
from lidc_xai.training.intervals import cross_fitted

NEEDED = ("nodule_id", "fold", "malignancy_logit")


class Options(Config):
    """Runs to average."""

    runs: list[str] = Field(min_length=1, description="Folders that cross-validate wrote, separated by commas.")
    resamples: int = Field(2000, ge=1, description="Replicates of the intervals.")


def average(options: Options, run: Run) -> None:
    """Average, evaluate, and say each run's figures beside the average's."""
    out, folders = need_out(options), [Path(name) for name in words(options.runs)]
    tables = [read_predictions(folder, NEEDED) for folder in folders]
    write_csv(out / "predictions.csv", averaged(tables, folders))
    whole = evaluate_predictions(out / "predictions.csv", out, resamples=options.resamples)
    rows = [
        headline(folder.name, evaluate_predictions(table, resamples=200))
        for folder, table in zip(folders, tables, strict=True)
    ]
    seeds = pd.DataFrame([*rows, headline("average", whole)])
    write_csv(out / "seeds.csv", seeds)
    print(seeds.round(4).to_string(index=False))


def averaged(tables: Sequence[pd.DataFrame], names: Sequence[Path]) -> pd.DataFrame:
    """The first table with raw outputs replaced by their mean over all; nodules and folds must be the same.

    Probabilities, intervals and sets are those of the averaged outputs: of each fold from the other folds.
    """
    first = tables[0]
    for table, name in zip(tables[1:], names[1:], strict=True):
        if not table[["nodule_id", "fold"]].equals(first[["nodule_id", "fold"]]):
            raise DataError(f"{name}: tests other nodules or folds than {names[0]}; average runs on the same splits")
    together = first.copy()
    for column in ("malignancy_logit", *BIOMARKERS):
        if column in first:
            together[column] = np.mean([table[column] for table in tables], axis=0)
    return cross_fitted(together)[0]


def headline(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run in a row."""
    malignancy = metrics["malignancy"]
    row: dict[str, Any] = {"run": name}
    row |= {metric: malignancy["all"][metric]["value"] for metric in ("auc", "accuracy", "brier", "ece")}
    row["accuracy 8–12 mm"] = malignancy["8–12 mm"]["accuracy"]["value"]
    row["mean MSE(z)"] = metrics["biomarkers"]["mean"]["mse_z"]["value"]
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("ensemble_runs", Options, average, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
