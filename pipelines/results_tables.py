"""The tables of docs/results.md as Markdown: from a run's metrics.json, or from a benchmark's summary.csv.

python pipelines/results_tables.py --run runs/png-ensemble
python pipelines/results_tables.py --benchmark runs/png-benchmark
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from lidc_xai.commands.common import need_path
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.benchmark.tables import ALL_OUTPUTS
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_metrics

NAMES = {
    "model": "**model**",
    "diameter_only": "readers' diameter only",
    "mask_oracle": "size, mean and SD inside the readers' mask (an oracle)",
    "ratings_without_diameter": "seven reader ratings, without diameter",
    "reader_ratings": "eight reader ratings",
}
MEASURED = {
    "fidelity_lung/area": "A LIF − A MIF, lung",
    "box_lung/area": "box, lung",
    "discrimination_lung/fidelity": "Δ fidelity, lung",
    "discrimination_lung/box": "Δ box, lung",
    "compactness/value": "below 5 %",
    "localisation/auprc": "AUPRC",
    "localisation/pointing_2mm": "peak within 2 mm",
    "localisation/iou": "IoU",
    "randomisation/spearman": "random weights: ρ",
    "noise/spearman": "noise: ρ",
}
RADIAL = {"radial/body": "body", "radial/edge": "edge", "radial/outside": "outside the edge"}
STRATA = ("< 8 mm", "8–12 mm", "12–20 mm", "≥ 20 mm")


class Options(Config):
    """What to tabulate: one of the two."""

    run: Path | None = Field(None, description="A folder with metrics.json.")
    benchmark: Path | None = Field(None, description="A folder with summary.csv, as benchmark_folds writes it.")


def tabulate(options: Options, run: Run) -> None:
    """Print the tables."""
    if (options.run is None) == (options.benchmark is None):
        raise UsageError("give one of --run and --benchmark")
    if options.benchmark is not None:
        print("\n".join(benchmarked(options.benchmark)))
        return
    metrics = read_metrics(need_path(options.run, "--run"))
    for table in (malignancy, differences, strata, biomarkers):
        print("\n".join(table(metrics)), end="\n\n")


def told(figure: dict[str, Any] | None) -> str:
    """A figure with its interval."""
    if figure is None or figure.get("value") is None:
        return "undefined"
    low, high = figure.get("low"), figure.get("high")
    return f"{figure['value']:.3f}" + (f" [{low:.3f}–{high:.3f}]" if low is not None and high is not None else "")


def malignancy(metrics: dict[str, Any]) -> list[str]:
    """The model and every baseline on the same folds."""
    shown = ("auc", "auc_within_folds", "accuracy", "sensitivity", "specificity", "brier", "ece")
    lines = [f"{metrics['nodules']} nodules of {metrics['patients']} patients, out of fold", ""]
    lines += ["| | AUC | AUC within folds | ACC | sensitivity | specificity | Brier | ECE |", "|" + "---|" * 8]
    rows = {"model": metrics["malignancy"]} | {k: v["malignancy"] for k, v in metrics["baselines"].items()}
    for name, figures in rows.items():
        lines.append(f"| {NAMES.get(name, name)} | " + " | ".join(told(figures["all"].get(m)) for m in shown) + " |")
    return lines


def differences(metrics: dict[str, Any]) -> list[str]:
    """Model minus baseline, paired by patient."""
    lines = ["| model minus | nodules | AUC | AUC within folds | ACC |", "|---|---|---|---|---|"]
    compared = {(c["b"], c["part"], c["metric"]): c for c in metrics["comparisons"] if c["a"] == "model"}
    for name, part in dict.fromkeys((b, part) for b, part, _ in compared):
        cells = []
        for metric in ("auc", "auc_within_folds", "accuracy"):
            one = compared.get((name, part, metric))
            known = one is not None and one["difference"] is not None
            cells.append(
                f"{one['difference']:+.3f} [{one['low']:+.3f} to {one['high']:+.3f}], p = {one['p']:.3f}"
                if known
                else "–"
            )
        lines.append(f"| {NAMES.get(name, name)} | {part} | " + " | ".join(cells) + " |")
    return lines


def strata(metrics: dict[str, Any]) -> list[str]:
    """By the readers' diameter."""
    lines = ["| diameter | n | ACC | ACC, diameter only | AUC | AUC, diameter only |", "|---|---|---|---|---|---|"]
    beside = metrics["baselines"]["diameter_only"]["malignancy"]
    for part in STRATA:
        figures, other = metrics["malignancy"][part], beside[part]
        cells = [told(one.get(metric)) for metric in ("accuracy", "auc") for one in (figures, other)]
        lines.append(f"| {part} | {figures['nodules']} | " + " | ".join(cells) + " |")
    return lines


def biomarkers(metrics: dict[str, Any]) -> list[str]:
    """Errors and correlations, beside the readers' own noise."""
    lines = [
        "| biomarker | MSE(z) | readers' noise floor | MAE, own units | R² | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    noise = metrics.get("reader_noise", {})
    for name in BIOMARKERS:
        figures = metrics["biomarkers"].get(name)
        if figures:
            floor = noise.get(name, {}).get("floor_mse_z")
            cells = [told(figures["mse_z"]), f"{floor:.2f}" if floor is not None else "–"]
            cells += [told(figures.get(metric)) for metric in ("mae", "r2", "spearman")]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"| mean | {told(metrics['biomarkers']['mean']['mse_z'])} | | | | |")
    return lines


def benchmarked(folder: Path) -> list[str]:
    """Methods × metrics over all outputs, then CDAM's radial profile by output."""
    path = folder / "summary.csv"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a folder that benchmark_folds has finished")
    try:
        summary = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})") from error
    missing = [name for name in ("metric", "method", "output", "mean", "low", "high") if name not in summary]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it is no summary.csv of benchmark_folds")
    joined = summary[(summary["output"] == ALL_OUTPUTS) | summary["output"].isna()]
    joined = joined[~joined["method"].str.contains("@") | (joined["method"] == "cdam@random_weights")]
    lines = _wide(joined, "method", {k: v for k, v in MEASURED.items() if (joined["metric"] == k).any()})
    profile = summary[(summary["method"] == "cdam") & (summary["output"] != ALL_OUTPUTS)]
    if profile["metric"].isin(list(RADIAL)).any():
        lines += ["", "CDAM's radial profile, scaled by the largest magnitude:", "", *_wide(profile, "output", RADIAL)]
    return lines


def _wide(table: pd.DataFrame, rows: str, columns: dict[str, str]) -> list[str]:
    lines = [f"| {rows} | " + " | ".join(columns.values()) + " |", "|" + "---|" * (len(columns) + 1)]
    chosen = table[table["metric"].isin(list(columns))]
    for name in dict.fromkeys(chosen[rows]):
        by_metric = chosen[chosen[rows] == name].set_index("metric")
        lines.append(f"| {name} | " + " | ".join(_cell(by_metric, metric) for metric in columns) + " |")
    return lines


def _cell(by_metric: pd.DataFrame, metric: str) -> str:
    if metric not in by_metric.index or pd.isna(by_metric.loc[metric, "mean"]):
        return "–"
    mean, low, high = (float(by_metric.loc[metric, name]) for name in ("mean", "low", "high"))
    digits = 1 if abs(mean) >= 10 else 2 if not metric.startswith("radial") else 3
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("results_tables", Options, tabulate, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
