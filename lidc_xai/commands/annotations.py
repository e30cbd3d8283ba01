"""``lidc-xai cohort``: the annotation database as tables."""

from __future__ import annotations

import sys

from pydantic import Field

from lidc_xai.commands.common import need_out, verb
from lidc_xai.config import Config
from lidc_xai.csv_files import csv_text, write_csv
from lidc_xai.run import Run


class CohortConfig(Config):
    """Write a named cohort and its exclusions.

    One row per nodule (label, ratings, position), and one row per nodule left out, with the reason. Without
    --out the table goes to standard output as CSV.
    """

    name: str = Field("paper854", description="paper854, deterministic855, all862 or full1366.")


@verb("lidc-xai cohort --name paper854 --out runs/cohort")
def cohort(config: CohortConfig, run: Run) -> None:
    """Select, write and count."""
    from lidc_xai.annotations import cohort_exclusions, select_cohort

    table = select_cohort(config.name)
    counts = {
        "nodules": len(table),
        "malignant": int((table["label"] == 1).sum()),
        "benign": int((table["label"] == 0).sum()),
        "patients": int(table["patient_id"].nunique()),
    }
    run.results = counts
    summary = f"{config.name}: " + ", ".join(f"{value} {name}" for name, value in counts.items())
    print(f"{summary} (rated above/below 3 by the readers' median)", file=sys.stderr)
    if config.out is None:
        sys.stdout.write(csv_text(table))
        return
    out = need_out(config)
    exclusions = cohort_exclusions(config.name)
    write_csv(out / f"{config.name}.csv", table)
    write_csv(out / f"{config.name}_excluded.csv", exclusions)
    print(f"{out / config.name}.csv and {config.name}_excluded.csv ({len(exclusions)} rows)", file=sys.stderr)
