"""The tables of docs/results.md from a run's metrics.json, as Markdown.

python pipelines/results_tables.py --run runs/png-ensemble
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lidc_xai.errors import LidcXaiError
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.training.run_files import read_metrics

NAMES = {
    "model": "**model**",
    "diameter_only": "readers' diameter only",
    "mask_oracle": "size, mean and SD inside the readers' mask (an oracle)",
    "ratings_without_diameter": "seven reader ratings, without diameter",
    "reader_ratings": "eight reader ratings",
}
STRATA = ("< 8 mm", "8–12 mm", "12–20 mm", "≥ 20 mm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a folder with metrics.json")
    options = parser.parse_args(arguments)
    try:
        metrics = read_metrics(options.run)
        for table in (malignancy, differences, strata, biomarkers):
            print("\n".join(table(metrics)), end="\n\n")
    except LidcXaiError as error:
        print(f"results_tables: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def told(figure: dict[str, Any] | None) -> str:
    """A figure with its interval."""
    if figure is None or figure.get("value") is None:
        return "undefined"
    low, high = figure.get("low"), figure.get("high")
    return f"{figure['value']:.3f}" + (f" [{low:.3f}–{high:.3f}]" if low is not None and high is not None else "")


def malignancy(metrics: dict[str, Any]) -> list[str]:
    """The model and every baseline on the same folds."""
    shown = ("auc", "accuracy", "sensitivity", "specificity", "brier", "ece")
    lines = [f"{metrics['nodules']} nodules of {metrics['patients']} patients, out of fold", ""]
    lines += ["| | AUC | ACC | sensitivity | specificity | Brier | ECE |", "|---|---|---|---|---|---|---|"]
    rows = {"model": metrics["malignancy"]} | {k: v["malignancy"] for k, v in metrics["baselines"].items()}
    for name, figures in rows.items():
        lines.append(f"| {NAMES.get(name, name)} | " + " | ".join(told(figures["all"].get(m)) for m in shown) + " |")
    return lines


def differences(metrics: dict[str, Any]) -> list[str]:
    """Model minus baseline, paired by patient."""
    lines = ["| model minus | nodules | AUC | ACC |", "|---|---|---|---|"]
    found = {(c["b"], c["part"], c["metric"]): c for c in metrics["comparisons"] if c["a"] == "model"}
    for name, part in dict.fromkeys((b, part) for b, part, _ in found):
        cells = []
        for metric in ("auc", "accuracy"):
            one = found.get((name, part, metric))
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
        own, other = metrics["malignancy"][part], beside[part]
        cells = [told(one.get(metric)) for metric in ("accuracy", "auc") for one in (own, other)]
        lines.append(f"| {part} | {own['nodules']} | " + " | ".join(cells) + " |")
    return lines


def biomarkers(metrics: dict[str, Any]) -> list[str]:
    """Errors and correlations, beside the readers' own noise."""
    lines = [
        "| biomarker | MSE(z) | readers' noise floor | MAE, own units | R² | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    noise = metrics.get("reader_noise", {})
    for name in BIOMARKERS:
        own = metrics["biomarkers"].get(name)
        if own:
            floor = noise.get(name, {}).get("floor_mse_z")
            cells = [told(own["mse_z"]), f"{floor:.2f}" if floor is not None else "–"]
            cells += [told(own.get(metric)) for metric in ("mae", "r2", "spearman")]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"| mean | {told(metrics['biomarkers']['mean']['mse_z'])} | | | | |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
