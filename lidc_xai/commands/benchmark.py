"""``lidc-xai benchmark``: how far the maps can be trusted."""

from __future__ import annotations

from pydantic import Field

from lidc_xai.commands.common import ModelConfig, need_model, need_out, need_path, pick_device, verb, words
from lidc_xai.config import load_config
from lidc_xai.run import Run, versions


class BenchmarkConfig(ModelConfig):
    """Measure explanations on a store's nodules.

    Methods × metrics × outputs, case by case; a killed run goes on with the same command. Writes tidy Parquet, tables
    in Markdown and HTML with the published figures beside, curves, and a report. Everything about the measuring is
    under options: --set options.metrics=[fidelity,box].
    """

    model: str | None = Field(None, description="A model folder (RUN/model).")
    model_masked: str | None = Field(
        None, description="A copy of the model tuned with patches replaced (pipelines/tune_masked.py)."
    )
    views: list[str] = Field(["axial"], description="Planes to measure: axial, coronal, sagittal.")
    jobs: int = Field(1, ge=1, description="Processes that share the cases.")
    pdf: bool = Field(True, description="Also write PDF; off with --set pdf=false.")
    options: dict[str, object] = Field({}, description="Fields of BenchmarkOptions.")


@verb("lidc-xai benchmark --store runs/store --model runs/cv --out runs/b")
def benchmark(config: BenchmarkConfig, run: Run) -> None:
    """Measure, tabulate, report."""
    store_path, out = need_path(config.store, "--store"), need_out(config)
    from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
    from lidc_xai.evaluation.benchmark.report import write_benchmark
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodules.cases import benchmark_store
    from lidc_xai.nodules.record import known_patients
    from lidc_xai.reporting import benchmark_report
    from lidc_xai.reporting.values import base_names

    options = load_config(BenchmarkOptions, None, (), config.options)
    store = CropStore(store_path)
    model = need_model(config.model, config.weights).to(pick_device(config.device))
    masked = need_model(config.model_masked).to(pick_device(config.device)) if config.model_masked else None
    measured = benchmark_store(
        model,
        store,
        out,
        options,
        nodule_ids=(words(config.nodule) or store.nodule_ids)[: config.limit],
        views=words(config.views),
        model_masked=masked,
        jobs=config.jobs,
    )
    run.skipped = measured.skipped
    run.results = {"measured": measured.measured, "already_there": measured.already_there}
    write_benchmark(out)
    simulated, edited = bool(store.manifest["simulated"].any()), bool((store.manifest["edited"] != "").any())
    info = {"argv": base_names(run.argv), "seed": config.seed, "versions": versions()}
    seen = known_patients(model.training_info) or None
    page = benchmark_report(
        out, out / "report", simulated=simulated, edited=edited, seen=seen, run_info=info, pdf=config.pdf
    )
    run.skipped += page.skipped
    print(page.index)
