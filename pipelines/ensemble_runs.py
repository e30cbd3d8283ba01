"""Average the out-of-fold predictions of several cross-validated runs (seeds) on the same splits, and evaluate.

    python pipelines/ensemble_runs.py --runs runs/png-seed0 runs/png-seed1 runs/png-seed2 --out runs/png-ensemble

Calibrated probabilities are averaged as log-odds, raw outputs and biomarkers as they are. Beside the metrics of the
average, ``seeds.csv`` holds each run's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, LidcXaiError
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import Run
from lidc_xai.training import evaluate_predictions
from lidc_xai.training.loop.run_files import read_predictions

PROBABILITY, FLOOR = "malignancy_probability", 1e-6
NEEDED = ("nodule_id", "fold", "malignancy_logit", PROBABILITY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and say what stopped it in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="folders that cross-validate wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    run = Run("ensemble_runs", sys.argv[1:] if arguments is None else list(arguments), {})
    run.out = options.out
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tables = [read_predictions(folder, NEEDED) for folder in options.runs]
        write_csv(options.out / "predictions.csv", averaged(tables, options.runs))
        whole = evaluate_predictions(options.out / "predictions.csv", options.out, resamples=options.resamples)
        rows = [headline(str(folder.name), evaluate_predictions(table, resamples=200)) for folder, table in
                zip(options.runs, tables, strict=True)]  # fmt: skip
        seeds = pd.DataFrame([*rows, headline("average", whole)])
        write_csv(options.out / "seeds.csv", seeds)
        print(seeds.round(4).to_string(index=False))
    except LidcXaiError as error:
        print(f"ensemble_runs: {error}", file=sys.stderr)
        run.write("failed")
        return error.exit_code
    run.write("done")
    return 0


def averaged(tables: Sequence[pd.DataFrame], names: Sequence[Path]) -> pd.DataFrame:
    """The first table with predictions replaced by the mean over all; nodules and folds must be the same."""
    first = tables[0]
    for table, name in zip(tables[1:], names[1:], strict=True):
        if not table[["nodule_id", "fold"]].equals(first[["nodule_id", "fold"]]):
            raise DataError(f"{name}: tests other nodules or folds than {names[0]}; average runs on the same splits")
    found = first.copy()
    for column in ("malignancy_logit", *BIOMARKERS):
        if column in first:
            found[column] = np.mean([table[column] for table in tables], axis=0)
    odds = [logit(table[PROBABILITY].clip(FLOOR, 1 - FLOOR)) for table in tables]
    found[PROBABILITY] = expit(np.mean(odds, axis=0))
    return found


def headline(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run in a row."""
    malignancy = metrics["malignancy"]
    row: dict[str, Any] = {"run": name}
    row |= {metric: malignancy["all"][metric]["value"] for metric in ("auc", "accuracy", "brier", "ece")}
    row["accuracy 8–12 mm"] = malignancy["8–12 mm"]["accuracy"]["value"]
    row["mean MSE(z)"] = metrics["biomarkers"]["mean"]["mse_z"]["value"]
    return row


if __name__ == "__main__":
    raise SystemExit(main())
