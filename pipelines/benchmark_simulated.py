"""The benchmark with a right answer: every method on simulated nodules whose causes are known.

Ratings are drawn independently of each other, so that a model cannot read one from another; it learns from other
patients. Steps, each kept and not repeated: crops of training and test patients (the test crops once more without each
cause), the model and its held-out figures, the benchmark, the sanity checks, a control model for which one biomarker
was switched off, tables and findings.

    python pipelines/benchmark_simulated.py --config configs/benchmark_simulated.yaml --out runs/benchmark-simulated
    python pipelines/benchmark_simulated.py --limit 6 --out runs/dry        # a dry run: every step, small
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field
from studies.precision import metric_correlations, precision_by_samples

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import UsageError
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.report import write_benchmark
from lidc_xai.evaluation.benchmark.runner import read_parts
from lidc_xai.evaluation.benchmark.tables import HEADLINES, comparisons, figures, summarise
from lidc_xai.evaluation.metrics.causes import CARRIERS
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.files import plain, write_json
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel
from lidc_xai.nodules._predict import predict
from lidc_xai.nodules.cases import benchmark_store
from lidc_xai.progress import say
from lidc_xai.reporting import benchmark_report
from lidc_xai.run import Run
from lidc_xai.simulate import simulate_store
from lidc_xai.training import fit
from lidc_xai.training.options import FitOptions

CONTROL_METRICS = ("causes",)


class Study(Config):
    """Fields of ``configs/benchmark_simulated.yaml``."""

    test_nodules: int = Field(100, ge=2, description="Simulated test nodules.")
    test_patients: int = Field(40, ge=2, description="At least so many test patients.")
    train_nodules: int = Field(700, ge=8, description="Simulated nodules of other patients, to train on.")
    size_mm: float = Field(32.0, gt=0, description="Side of the crops.")
    views: list[str] = Field(["axial"], description="Planes that are measured.")
    jobs: int = Field(1, ge=1, description="Processes.")
    fit: FitOptions = FitOptions()
    benchmark: BenchmarkOptions = BenchmarkOptions()
    sanity: BenchmarkOptions = BenchmarkOptions(metrics=("randomisation", "noise", "runs"), disc=False)
    sanity_nodules: int = Field(10, ge=1, description="Test nodules for the sanity checks.")
    switched_off: str = Field("spiculation", description="Biomarker of the control model; empty: none.")
    limit: int | None = Field(None, ge=1, description="A dry run with so many test nodules, one epoch and few boxes.")


def small(study: Study, limit: int) -> Study:
    """The same study at the size of a dry run."""
    few = {"boxes": 8, "points": 5}
    return study.model_copy(
        update={
            "test_nodules": limit,
            "test_patients": 2,
            "train_nodules": 4 * limit,
            "sanity_nodules": min(2, study.sanity_nodules),
            "fit": study.fit.model_copy(update={"epochs": 1, "validation_share": 0.3}),
            "benchmark": study.benchmark.model_copy(update=few),
        }
    )


def study_run(study: Study, run: Run) -> None:
    """All steps."""
    out = need_out(study)
    study = small(study, study.limit) if study.limit else study
    train, test = choose_nodules(study)
    options: dict[str, Any] = {"seed": study.seed, "size_mm": study.size_mm, "jobs": study.jobs, "independent": True}
    say(f"{len(train)} training and {len(test)} test nodules, patients apart")
    training = simulate_store(out / "store-train", train, **options)
    testing = simulate_store(out / "store-test", test, **options)
    without = {
        cause: simulate_store(out / f"store-test-without-{cause}", test, without=(cause,), **options)
        for cause in CARRIERS
    }
    model = fit(training, out / "fit", options=study.fit).model
    held_out = held_out_figures(model, testing)
    common: dict[str, Any] = {"views": study.views, "without": without, "jobs": study.jobs}
    benchmark_store(model, testing, out / "benchmark", study.benchmark, **common)
    benchmark_store(
        model, testing, out / "sanity", study.sanity, nodule_ids=testing.nodule_ids[: study.sanity_nodules],
        views=study.views, jobs=study.jobs,
    )  # fmt: skip
    about = about_text(study, training, testing, held_out)
    summary = write_benchmark(out / "benchmark", title="Benchmark on simulated nodules with known causes", about=about)
    write_benchmark(out / "sanity", title="Sanity checks on simulated nodules", about=about)
    for name in ("benchmark", "sanity"):
        benchmark_report(out / name, out / name / "report", about=about, simulated=True, seen=[], pdf=False)
    results = {"held_out": held_out.to_dict("records"), **findings(out / "benchmark", summary)}
    if study.switched_off:
        results["switched_off"] = control(study, train, testing, without, options, out, summary)
    write_json(out / "findings.json", plain(results))
    run.results = {"nodules": len(testing), "patients": int(testing.manifest["patient_id"].nunique())}


def choose_nodules(study: Study) -> tuple[list[Nodule], list[Nodule]]:
    """Training and test nodules with three readers or more, of different patients, drawn by the seed."""
    by_patient: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        if nodule.n_readers >= 3 and not nodule.ambiguous:
            by_patient.setdefault(nodule.patient_id, []).append(nodule)
    patients = list(np.random.default_rng(study.seed).permutation(sorted(by_patient)))
    test: list[Nodule] = []
    tested = 0
    while patients and (len(test) < study.test_nodules or tested < study.test_patients):
        test += by_patient[patients.pop()]
        tested += 1
    train = [nodule for patient in patients for nodule in by_patient[patient]][: study.train_nodules]
    if not train:
        raise UsageError("test_nodules leaves no patient to train on")
    return train, test


def held_out_figures(model: NoduleModel, store: CropStore) -> pd.DataFrame:
    """Per output: Spearman correlation (AUC for malignancy) of prediction and drawn rating on the test nodules."""
    from sklearn.metrics import roc_auc_score

    table = predict(model, store).merge(store.manifest, on="nodule_id", suffixes=("_predicted", ""))
    rows: list[dict[str, Any]] = []
    for name in model.output_names:
        if name == "malignancy":
            auc = float(roc_auc_score(table["label"].astype(int), table["malignancy_probability"]))
            rows.append({"output": name, "figure": "AUC", "value": auc, "n": len(table)})
        else:
            rho = float(spearman(table[f"{name}_predicted"], table[name]))
            rows.append({"output": name, "figure": "Spearman", "value": rho, "n": len(table)})
    return pd.DataFrame(rows)


def about_text(study: Study, training: CropStore, testing: CropStore, held_out: pd.DataFrame) -> list[str]:
    """What the tables stand on."""
    told = {
        row.output: f"{row.value:.2f}" if np.isfinite(row.value) else "undefined (constant)"
        for row in held_out.itertuples()
    }
    learned = ", ".join(f"{name} {value}" for name, value in told.items())
    patients = [store.manifest["patient_id"].nunique() for store in (training, testing)]
    return [
        "SIMULATED CT around real LIDC-IDRI annotations; ratings drawn independently of each other, so that what "
        "carries each of them is known. These figures compare explanation methods; they say nothing about patients.",
        f"Model: {study.fit.model.backbone}, trained on {len(training)} nodules of {patients[0]} patients; measured on "
        f"{len(testing)} nodules of {patients[1]} others, {', '.join(study.views)} planes of {study.size_mm:g} mm.",
        f"What the model learned, on the test nodules (AUC for malignancy, Spearman for the biomarkers): {learned}. "
        "A map of an output that was not learned explains noise.",
    ]


def findings(out: Path, summary: pd.DataFrame) -> dict[str, Any]:
    """What the tables say: CDAM against each rival, agreement of metrics, precision by number of patients, sizes."""
    rows = read_parts(out)
    per_case = figures(rows)
    present = [metric for metric in HEADLINES if (summary["metric"] == metric).any()]
    ranked = per_case[~per_case["method"].str.contains("@") & ~per_case["method"].isin(["readers", "model"])]
    tests = []
    for metric in present:
        if (ranked.loc[ranked["metric"] == metric, "method"] == "cdam").any():
            tests.append(comparisons(ranked, metric, reference="cdam").assign(metric=metric))
    against = pd.concat(tests, ignore_index=True) if tests else pd.DataFrame()
    write_csv(out / "cdam_against_others.csv", against)
    rho, count = metric_correlations(per_case, present)
    write_csv(out / "metric_correlations.csv", rho, index=True)
    write_csv(out / "by_size.csv", summarise(per_case, by_group=True))
    some = per_case[(per_case["metric"] == present[0]) & (per_case["method"] == per_case["method"].iloc[0])]
    sizes = sorted({10, 25, 50, 100, 200, 400} | {some["cluster"].nunique()})
    precision = precision_by_samples(some["value"], sizes, some["cluster"].tolist())
    write_csv(out / "precision_by_patients.csv", precision)
    moved = per_case[per_case["metric"] == "causes/moved"]
    effects = {
        name: str(bootstrap_mean(some["value"], some["cluster"].tolist())) for name, some in moved.groupby("output")
    }
    return {
        "cause_moves_its_output": effects,
        "cdam_against_others": against.to_dict("records"),
        "metric_correlations": rho.to_dict(),
        "metric_correlation_counts": count.to_dict(),
    }


def control(
    study: Study,
    train: Sequence[Nodule],
    testing: CropStore,
    without: dict[str, CropStore],
    options: dict[str, Any],
    out: Path,
    summary: pd.DataFrame,
) -> dict[str, Any]:
    """A model that never saw the biomarker's look (the ratings vary, the images do not): its maps must not find it."""
    name = study.switched_off
    if name not in CARRIERS:
        raise UsageError(f"switched_off {name!r} has no carrier; choose one of {', '.join(CARRIERS)}")
    store = simulate_store(out / "store-train-off", train, switched_off=(name,), **options)
    model = fit(store, out / "fit-off", options=study.fit).model
    chosen = study.benchmark.model_copy(
        update={"metrics": CONTROL_METRICS, "outputs": (name,), "random_weights": False}
    )
    benchmark_store(
        model, testing, out / "switched-off", chosen, views=study.views, without={name: without[name]}, jobs=study.jobs
    )  # fmt: skip
    off = write_benchmark(out / "switched-off", title=f"Control: {name} switched off in training")
    rows = []
    for label, table in (("learned", summary), ("switched off", off)):
        of_output = table[(table["metric"] == "causes/auprc") & (table["output"] == name)]
        rows += [
            {"model": label, **row} for row in of_output[["method", "mean", "low", "high", "n"]].to_dict("records")
        ]
    return {"biomarker": name, "auprc": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("benchmark_simulated", Study, study_run, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
