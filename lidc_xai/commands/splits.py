"""``lidc-xai download``, ``split`` and ``cohort``: data from its archive, patients into folds, annotations."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from lidc_xai.commands.common import StoreConfig, need_out, need_path, print_table, verb, words
from lidc_xai.config import Config
from lidc_xai.csv_files import csv_text, write_csv
from lidc_xai.run import Run


class DownloadConfig(Config):
    """Fetch CT series of LIDC-IDRI from the Imaging Data Commons.

    Asks before more than 500 MB; goes on where it was interrupted. Needs the extra lidc-xai[download].
    """

    patients: list[str] = Field([], description="Patients, separated by commas: LIDC-IDRI-0001 or 1.")
    cohort: str | None = Field(None, description="All patients of a named cohort instead.")
    yes: bool = Field(False, description="Do not ask.")


@verb("lidc-xai download --patients LIDC-IDRI-0001 --out /data/LIDC-IDRI")
def download(config: DownloadConfig, run: Run) -> None:
    """Fetch and say where."""
    from lidc_xai.data import download as fetch

    result = fetch(words(config.patients) or None, need_out(config), cohort=config.cohort, yes=config.yes)
    run.results = {"folders": len(result.folders), "fetched": result.fetched, "fetched_mb": result.fetched_mb}
    print(f"{config.out}: {len(result.folders)} series, {result.fetched} fetched ({result.fetched_mb:.0f} MB)")


class SplitConfig(StoreConfig):
    """Split a store's patients into folds.

    Writes STORE/splits/*.json: stratified folds by patient, with a validation part out of each training part. The kind
    "paper" splits by nodule as published, and is labelled as leaking.
    """

    folds: int = Field(5, ge=2, description="Number of folds.")
    kind: Literal["patient", "paper"] = Field("patient", description="patient or paper (leaks).")
    validation_share: float = Field(0.15, ge=0, lt=1, description="Share of the training patients kept for choices.")
    seed: int = Field(44, ge=0, description="Seed of the split.")


@verb("lidc-xai split --store runs/store --folds 5")
def split(config: SplitConfig, run: Run) -> None:
    """Split, write, and show the folds."""
    store_path = need_path(config.store, "--store")
    from lidc_xai.data import load_splits, split_store
    from lidc_xai.data.splits import describe
    from lidc_xai.imaging import CropStore

    path = split_store(store_path, config.folds, config.seed, config.kind, config.validation_share)
    splits = load_splits(path)
    print_table(describe(splits, CropStore(store_path).manifest), sys.stderr)
    print(path)


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
