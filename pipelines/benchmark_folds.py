"""The benchmark on out-of-fold nodules: each is explained by the model of the fold that tested its patient.

    python pipelines/benchmark_folds.py --config configs/benchmark_lidc_png.yaml --run runs/png-seed0 \\
        --store runs/png --out runs/png-benchmark

Takes one nodule of each of ``nodules`` patients, drawn by the seed from the run's predictions.csv. Every fold's results
lie in OUT/fold-k; the tables in OUT join them, and metric_correlations.csv says whether the metrics agree on which
method is better. A killed run goes on with the same command.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import Field
from studies.precision import metric_correlations

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.report import write_benchmark
from lidc_xai.evaluation.benchmark.runner import read_parts
from lidc_xai.evaluation.benchmark.tables import HEADLINES, figures
from lidc_xai.files import atomic_path
from lidc_xai.imaging import CropStore
from lidc_xai.models import load_model
from lidc_xai.nodules.cases import benchmark_store
from lidc_xai.progress import say
from lidc_xai.reporting import benchmark_report
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_predictions


class Study(Config):
    """Fields of the YAML."""

    run: Path = Field(description="A folder that cross-validate wrote.")
    store: Path = Field(description="The store of that run.")
    nodules: int = Field(150, ge=1, description="Patients to sample, one nodule of each.")
    folds: list[int] = Field([], description="Only these folds; empty: all that the run has.")
    jobs: int = Field(1, ge=1, description="Processes.")
    benchmark: BenchmarkOptions = BenchmarkOptions()


def measure(study: Study, run: Run) -> None:
    """Every fold's sample, then the joined tables."""
    out = need_out(study)
    store = CropStore(study.store)
    chosen = sample(study)
    for fold, ids in chosen.groupby("fold")["nodule_id"]:
        say(f"fold {fold}: {len(ids)} nodules that its model never saw")
        folder = out / f"fold-{fold}"
        measured = benchmark_store(
            load_model(study.run / f"fold-{fold}" / "model"), store, folder, study.benchmark,
            nodule_ids=ids.tolist(), jobs=study.jobs,
        )  # fmt: skip
        run.skipped += measured.skipped
        for part in sorted((folder / "parts").glob("*.parquet")):
            with atomic_path(out / "parts" / part.name) as temporary:
                shutil.copyfile(part, temporary)
    patients = chosen["patient_id"].nunique()
    title = "Maps on real nodules, none seen by the model that explains it"
    about = [
        f"LIDC-IDRI nodules, one of each of {patients} patients, explained by the model of {study.run.name} that never "
        "saw the patient. The figures describe agreement and what the model reacts to; they say nothing of cancer.",
    ]
    summary = write_benchmark(out, title=title, about=about)
    run.skipped += benchmark_report(out, out / "report", title=title, about=about, seen=[]).skipped
    present = [metric for metric in HEADLINES if (summary["metric"] == metric).any()]
    if len(present) > 1:
        rho, _ = metric_correlations(figures(read_parts(out)), present)
        write_csv(out / "metric_correlations.csv", rho, index=True)


def sample(study: Study) -> pd.DataFrame:
    """One test nodule of each of so many patients, drawn by the seed: columns fold, patient_id, nodule_id."""
    table = read_predictions(study.run)[["fold", "patient_id", "nodule_id"]]
    if study.folds:
        table = table[table["fold"].isin(study.folds)]
    if not len(table):
        raise DataError(f"{study.run}: no nodule of the folds {study.folds}; it has others")
    one = table.sample(frac=1, random_state=study.seed).drop_duplicates("patient_id")
    return one.head(study.nodules).sort_values(["fold", "nodule_id"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("benchmark_folds", Study, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
