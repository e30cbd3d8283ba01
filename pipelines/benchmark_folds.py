"""The benchmark on out-of-fold nodules: each is explained by the model of the fold that tested its patient.

    python pipelines/benchmark_folds.py --config configs/benchmark_lidc_png.yaml --run runs/png-seed0 \\
        --store runs/png --out runs/png-benchmark

Takes one nodule of each of ``nodules`` patients, drawn by the seed from the run's predictions.csv. Every fold's results
lie in OUT/fold-k; the tables in OUT join them, and metric_correlations.csv says whether the metrics agree on which
method is better. A killed run goes on with the same command.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import Field

from lidc_xai.config import Config, load_config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.report import write_benchmark
from lidc_xai.evaluation.benchmark.runner import read_parts
from lidc_xai.evaluation.benchmark.tables import HEADLINES, figures, metric_correlations
from lidc_xai.files import atomic_path
from lidc_xai.imaging import CropStore
from lidc_xai.models import load_model
from lidc_xai.nodules.cases import benchmark_store
from lidc_xai.progress import say, show_progress
from lidc_xai.run import Run
from lidc_xai.skipped import write_skipped
from lidc_xai.training.loop.run_files import read_predictions


class Study(Config):
    """Fields of the YAML."""

    run: Path | None = Field(None, description="A folder that cross-validate wrote.")
    store: Path | None = Field(None, description="The store of that run.")
    nodules: int = Field(150, ge=1, description="Patients to sample, one nodule of each.")
    folds: list[int] = Field([], description="Only these folds; empty: all that the run has.")
    jobs: int = Field(1, ge=1, description="Processes.")
    benchmark: BenchmarkOptions = BenchmarkOptions()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and say what stopped it in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML with the fields of Study")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="also inside groups: a.b=c")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    flags = {name: getattr(options, name) for name in ("run", "store", "out") if getattr(options, name) is not None}
    run = Run("benchmark_folds", sys.argv[1:] if arguments is None else list(arguments), {})
    try:
        study = load_config(Study, options.config, options.set, flags)
        run.config, run.out = study.model_dump(mode="json"), study.out
        options.out.mkdir(parents=True, exist_ok=True)
        with show_progress(not options.quiet):
            measure(study, options.out, run)
    except LidcXaiError as error:
        print(f"benchmark_folds: {error}", file=sys.stderr)
        run.write("failed")
        return error.exit_code
    run.write("done")
    return 3 if run.skipped else 0


def measure(study: Study, out: Path, run: Run) -> None:
    """Every fold's sample, then the joined tables."""
    if study.run is None or study.store is None:
        raise UsageError("--run and --store are needed: a cross-validated run, and the store that it was made from")
    store = CropStore(study.store)
    chosen = sample(study)
    skipped = []
    for fold, ids in chosen.groupby("fold")["nodule_id"]:
        say(f"fold {fold}: {len(ids)} nodules that its model never saw")
        folder = out / f"fold-{fold}"
        found = benchmark_store(
            load_model(study.run / f"fold-{fold}" / "model"), store, folder, study.benchmark,
            nodule_ids=ids.tolist(), jobs=study.jobs,
        )  # fmt: skip
        skipped += found.skipped
        for part in sorted((folder / "parts").glob("*.parquet")):
            with atomic_path(out / "parts" / part.name) as temporary:
                shutil.copyfile(part, temporary)
    write_skipped(out, skipped)
    run.skipped = skipped
    patients = chosen["patient_id"].nunique()
    summary = write_benchmark(
        out,
        title="Maps on real nodules, out of fold",
        about=[
            f"LIDC-IDRI nodules, one of each of {patients} patients, explained by the model of {study.run.name} that "
            "never saw the patient. The figures describe agreement and what the model reacts to; they say nothing of "
            "cancer.",
        ],
    )
    present = [metric for metric in HEADLINES if (summary["metric"] == metric).any()]
    if len(present) > 1:
        rho, _ = metric_correlations(figures(read_parts(out)), present)
        write_csv(out / "metric_correlations.csv", rho, index=True)


def sample(study: Study) -> pd.DataFrame:
    """One test nodule of each of so many patients, drawn by the seed: columns fold, patient_id, nodule_id."""
    assert study.run is not None
    table = read_predictions(study.run)[["fold", "patient_id", "nodule_id"]]
    if study.folds:
        table = table[table["fold"].isin(study.folds)]
    if not len(table):
        raise DataError(f"{study.run}: no nodule of the folds {study.folds}; it has others")
    one = table.sample(frac=1, random_state=study.seed).drop_duplicates("patient_id")
    return one.head(study.nodules).sort_values(["fold", "nodule_id"])


if __name__ == "__main__":
    raise SystemExit(main())
