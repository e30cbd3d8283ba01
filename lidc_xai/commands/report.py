"""``lidc-xai report``: pages that a radiologist can read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer
from pydantic import Field

from lidc_xai.commands.common import add_verb, need_model, need_out, need_path, pick_device, words
from lidc_xai.config import Config
from lidc_xai.run import Run, versions


class ReportConfig(Config):
    """Write the report of a store.

    index.html is the study; each nodule has a page (HTML, PDF, JSON). Maps that explain wrote are taken from
    --maps; without it they are computed.
    """

    store: Path | None = Field(None, description="A store made by prepare.")
    model: str | None = Field(None, description="A model folder made by train (or a shipped model's name).")
    maps: Path | None = Field(None, description="The folder that explain wrote to.")
    nodule: list[str] = Field([], description="Nodule ids; repeat it or separate by commas. All by default.")
    method: list[str] = Field(["cdam", "attention"], description="Methods to show, separated by commas.")
    dicom: Path | None = Field(None, description="The DICOM folder of the store: shows 72 mm around each nodule.")
    paper: Literal["A4", "Letter"] = Field("A4", description="Of the PDF: A4 or Letter.")
    pdf: bool = Field(True, description="Also write PDF; off with --set pdf=false.")
    jobs: int = Field(1, ge=1, description="Processes.")
    title: str = Field("Lung nodules: what the model reads and why", description="Title of the study page.")


def report(config: ReportConfig, run: Run) -> None:
    """Predict, explain where needed, and write the pages."""
    store_path = need_path(config.store, "--store")
    out = need_out(config)
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodule_maps import maps_of_store
    from lidc_xai.predict import predict
    from lidc_xai.reporting import study_report

    store = CropStore(store_path)
    model = need_model(config.model)
    ids, methods = words(config.nodule) or store.nodule_ids, words(config.method)
    maps_folder = need_path(config.maps, "--maps") if config.maps else out
    maps = maps_of_store(model, store, maps_folder, ids, methods, pick_device(config.device))
    result = study_report(
        store,
        out,
        predictions=predict(model, store, nodule_ids=ids),
        maps=maps,
        model_info=model.training_info,
        run_info={"argv": run.argv, "seed": config.seed, "versions": versions()},
        dicom=need_path(config.dicom, "--dicom") if config.dicom else None,
        nodule_ids=ids,
        paper=config.paper,
        title=config.title,
        pdf=config.pdf,
        jobs=config.jobs,
    )
    run.skipped = result.skipped
    run.results = {"pages": len(result.paths)}
    print(result.index)


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    add_verb(
        app,
        "report",
        ReportConfig,
        report,
        "lidc-xai report --store runs/real --model runs/demo/model --out runs/report",
    )
