"""Where a cross-validated model is good and where not: subgroups, the nodules it gets wrong, and the decision curve.

    python pipelines/subgroups.py --run runs/dinov2-seed0 --store runs/png --out runs/subgroups

Writes subgroups.csv (AUC, ACC and mean MSE(z) with intervals by patient, the diameter-only baseline beside), wrong.csv
(nodules on the other side of one half than the readers' median, worst first, with what the readers said), and
decision.csv (net benefit), and prints the subgroups as Markdown. Every grouping was named before it was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.decision import decision_curve
from lidc_xai.evaluation.statistics import DIAMETER_STRATA, diameter_stratum
from lidc_xai.imaging import CropStore
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_predictions
from lidc_xai.training.bootstrap import metric_interval
from lidc_xai.training.metrics import accuracy, auc, mean_value

FEWEST = 20
"""Nodules that a subgroup needs for a row."""
DIAMETER = "baseline.diameter_only.malignancy_probability"
SHOWN = ("AUC", "ACC", "ACC, diameter only", "mean MSE(z)")


class Options(Config):
    """A run and its store."""

    run: Path = Field(description="A folder that cross-validate or ensemble_runs wrote.")
    store: Path = Field(description="The store of that run.")
    resamples: int = Field(2000, ge=1, description="Replicates of the intervals.")


def subgroups(options: Options, run: Run) -> None:
    """Group, measure, write."""
    out = need_out(options)
    table = read_predictions(options.run, ("nodule_id", "patient_id", "label", "malignancy_probability", DIAMETER))
    facts = CropStore(options.store).manifest.set_index("nodule_id")
    columns = ["scanner", "slice_thickness_mm", "hu_source", "malignancy_sd"]
    table = table.join(facts[[name for name in columns if name in facts]], on="nodule_id")
    rows = [
        {"group": group, "part": part, **figures(table[inside], options.resamples)}
        for group, part, inside in groups(table)
        if inside.sum() >= FEWEST
    ]
    write_csv(out / "subgroups.csv", pd.DataFrame(rows))
    write_csv(out / "wrong.csv", wrong(table))
    curve = decision_curve(table["label"], table["malignancy_probability"])
    curve["diameter only"] = decision_curve(table["label"], table[DIAMETER])["model"]
    write_csv(out / "decision.csv", curve)
    print("\n".join(markdown(rows)))


def groups(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """Name of the grouping, of the part, and which rows are in it."""
    strata = table["diameter_readers"].map(diameter_stratum)
    for _, name in DIAMETER_STRATA:
        yield "readers' diameter", name, strata == name
    if "texture_readers" in table:
        for low, high, name in ((0, 3, "below 3: ground glass or part solid"), (3, 4.5, "3 to 4.5"), (4.5, 6, "solid")):
            yield "readers' texture", name, table["texture_readers"].between(low, high, inclusive="left")
    spread = table["malignancy_sd"]
    for low, high, name in ((-1, 0.5, "SD of votes below .5"), (0.5, 1, ".5 to 1"), (1, 9, "1 and more")):
        yield "readers' agreement", name, (spread >= low) & (spread < high)
    if "slice_thickness_mm" in table:
        thickness = pd.to_numeric(table["slice_thickness_mm"])
        for low, high, name in ((0, 1.5, "below 1.5 mm"), (1.5, 2.5, "1.5 to 2.4 mm"), (2.5, 9, "2.5 mm and more")):
            yield "slice thickness", name, (thickness >= low) & (thickness < high)
    for column, name in (("scanner", "scanner"), ("hu_source", "HU")):
        if column in table:
            values = (
                table[column].astype("object").fillna("unknown").map(lambda text: str(text).split(" ")[0] or "unknown")
            )
            for value in sorted(set(values)):
                yield name, value, values == value


def figures(part: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Counts, then every figure with its ends."""
    patients = part["patient_id"].tolist()
    label = part["label"].to_numpy(np.float64)
    errors = [
        ((part[name] - part[f"{name}_readers"]) / part[f"{name}_train_sd"]) ** 2 for name in BIOMARKERS if name in part
    ]
    wanted = {
        "AUC": (auc, label, part["malignancy_probability"]),
        "ACC": (accuracy, label, part["malignancy_probability"]),
        "ACC, diameter only": (accuracy, label, part[DIAMETER]),
    }
    if errors:
        mean = np.mean(errors, axis=0)
        wanted["mean MSE(z)"] = (mean_value, mean, mean)
    row: dict[str, Any] = {"nodules": len(part), "patients": len(set(patients)), "positives": int((label > 0.5).sum())}
    for name, (metric, y, predicted) in wanted.items():
        found = metric_interval(metric, y, np.asarray(predicted, np.float64), patients, resamples=resamples)
        row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
    return row


def wrong(table: pd.DataFrame) -> pd.DataFrame:
    """The nodules on the wrong side, worst first."""
    p, label = table["malignancy_probability"], table["label"]
    chosen = table[((p > 0.5) != (label > 0.5)) & label.notna()].copy()
    chosen["off_by"] = (chosen["malignancy_probability"] - chosen["label"]).abs()
    kept = ["nodule_id", "label", "malignancy_probability", "malignancy_readers", "malignancy_readers_sd", "n_readers"]
    said = [f"{name}{end}" for name in BIOMARKERS for end in ("", "_readers") if f"{name}{end}" in table]
    kept += ["diameter_readers", *(name for name in said if name != "diameter_readers"), DIAMETER]
    return chosen.sort_values("off_by", ascending=False)[[*kept, "off_by"]].reset_index(drop=True)


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The subgroups as a table for a page."""
    shown = [name for name in SHOWN if any(name in row for row in rows)]
    lines = ["| | n (rated above 3) | " + " | ".join(shown) + " |", "|" + "---|" * (len(shown) + 2)]
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        counts = f"{row['nodules']} ({row['positives']})"
        lines.append(f"| {row['group']}: {row['part']} | {counts} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any], name: str) -> str:
    value, low, high = (row.get(f"{name}{end}", np.nan) for end in ("", " low", " high"))
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("subgroups", Options, subgroups, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
