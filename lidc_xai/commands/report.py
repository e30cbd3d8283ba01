"""``lidc-xai report``: pages that a radiologist can read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from lidc_xai.commands.common import (
    ModelConfig,
    model_names,
    need_models,
    need_out,
    need_path,
    pick_device,
    usable_nodules,
    verb,
    words,
)
from lidc_xai.run import Run, versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from lidc_xai.imaging import CropStore
    from lidc_xai.models import NoduleModel
    from lidc_xai.nodules.maps import NoduleMaps
    from lidc_xai.reporting import ReportResult


class ReportConfig(ModelConfig):
    """Write the report of a store.

    index.html is the study; each nodule has a page (HTML, PDF, JSON). Maps that explain wrote are taken from --maps;
    without it they are computed. With --predictions of a cross-validation it is a cohort report: flow, performance with
    intervals and strata, calibration, baselines, galleries. Given a cross-validated run as --model, each nodule is
    predicted and explained by the fold that never saw its patient; given several models or runs, by the mean of all
    that never saw it, with the patches that another training would draw alike.
    """

    predictions: Path | None = Field(None, description="predictions.csv of cross-validate: a cohort report.")
    cohort: str | None = Field(None, description="Of a cohort report: the named cohort, for the flow of exclusions.")
    benchmark: Path | None = Field(None, description="Of a cohort report: the folder of a finished benchmark.")
    controls: bool = Field(True, description="Show maps of the same model with random weights; off with --set.")
    curves: list[str] = Field(["malignancy"], description="Outputs with a deletion curve; none with --set curves=[].")
    similar: Path | None = Field(None, description="A store of rated nodules: the five most like each, beside it.")
    turning: bool = Field(
        False,
        description="Of wrong or borderline nodules, the smallest edit that turns the verdict; by --set.",
    )
    every_slice: bool = Field(False, description="In the viewer, maps evaluated on every scanned slice.")
    maps: Path | None = Field(None, description="The folder that explain wrote to.")
    nodule: list[str] = Field(
        [], description="Nodule ids; repeat it or separate by commas. All (of --predictions) by default."
    )
    method: list[str] = Field(
        ["attn_lrp", "cdam", "attention"], description="Methods to show, separated by commas (docs/faithfulness.md)."
    )
    dicom: Path | None = Field(None, description="The DICOM folder of the store: shows 72 mm around each nodule.")
    paper: Literal["A4", "Letter"] = Field("A4", description="Of the PDF: A4 or Letter.")
    pdf: bool = Field(True, description="Also write PDF; off with --set pdf=false.")
    format: Literal["full", "summary"] = Field("full", description="Of a nodule's PDF: full, or summary (one page).")
    keep_ids: bool = Field(False, description="Print patient and series of one's own CT; left out by default.")
    jobs: int = Field(1, ge=1, description="Processes.")
    title: str | None = Field(None, description="Title of the first page.")


@verb("lidc-xai report --store runs/real --model runs/demo/model --out runs/report")
def report(config: ReportConfig, run: Run) -> None:
    """Predict, explain where needed, and write the pages."""
    store_path = need_path(config.store, "--store")
    out = need_out(config)
    models = need_models(config.model, config.weights)
    from lidc_xai.imaging import CropStore
    from lidc_xai.models.saved import member_folders
    from lidc_xai.nodules._predict import predict
    from lidc_xai.nodules.explained import explain_out_of_fold, shared_info, with_baselines
    from lidc_xai.nodules.strength import cohort_anchors, recorded_anchors, save_anchors, save_noise
    from lidc_xai.reporting import study_report
    from lidc_xai.reporting.values import base_names

    store = CropStore(store_path)
    ids, device = usable_nodules(store, _wanted(config, store), run, config.limit), pick_device(config.device)
    predictions = predict(models, store, nodule_ids=ids, device=device)
    folder = need_path(config.maps, "--maps") if config.maps else out
    explained = explain_out_of_fold(
        models, store, folder, ids, words(config.method), device,
        controls=config.controls, curves=words(config.curves), seed=config.seed,
    )  # fmt: skip
    dense: Mapping[str, Mapping[str, NoduleMaps]] = {}
    if config.every_slice:
        dense = explain_out_of_fold(models, store, folder, ids, words(config.method), device, every_slice=True).maps
    # recorded first: the same colour is the same strength in every report of a model; a cohort report renews them
    measured, held = cohort_anchors(models, store, explained.maps), recorded_anchors(models[0].training_info)
    anchors = {**held, **measured} if config.predictions else {**measured, **held}
    runs = [Path(name) for name in model_names(config.model)]
    if config.predictions:  # a nodule of one's own has no cohort to be held against
        for run_folder in runs:
            save_anchors(run_folder, anchors)
        save_noise([folder for run_folder in runs for folder in member_folders(run_folder)], explained.noise)
    similar = _similar(config, models, store, ids, predictions, device)
    turning = _turning(config, models, store, ids, predictions, explained.maps, device) if config.turning else {}
    shared: dict[str, Any] = {
        "turning": turning,
        "similar": similar,
        "anchors": anchors,
        "summary": config.format == "summary",
        "keep_ids": config.keep_ids,
        "maps": explained.maps,
        "dense": dense,
        "curves": explained.curves,
        "model_info": _recorded(config, runs, shared_info(models)),
        "run_info": {"argv": base_names(run.argv), "seed": config.seed, "versions": versions()},
        "dicom": need_path(config.dicom, "--dicom") if config.dicom else None,
        "nodule_ids": ids,
        "paper": config.paper,
        "pdf": config.pdf,
        "jobs": config.jobs,
        **({"title": config.title} if config.title else {}),
    }
    if config.predictions:
        result = _cohort_report(config, store, out, predictions, shared)
    else:
        result = study_report(store, out, predictions=with_baselines(predictions, runs[0]), **shared)
    run.skipped += [*explained.skipped, *result.skipped]
    run.results = {"pages": len(result.paths)}
    print(result.index)


def _recorded(config: ReportConfig, runs: list[Path], info: dict[str, Any]) -> dict[str, Any]:
    """The models' record with what a cross-validation says of them: what goes with a high rating, how often they side
    with the readers, and what their own diameter alone gives. Of the predictions given, which renew the record, else
    the record's own, else of the runs."""
    from lidc_xai.nodules.record import ASSOCIATIONS, OWN_SIZE, UNSEEN, associations, own_size, unseen_accuracy
    from lidc_xai.nodules.strength import save_field
    from lidc_xai.training.assessment import read_predictions_table

    predicted = [path for run_folder in runs if (path := run_folder / "predictions.csv").is_file()]
    tables = [read_predictions_table(path) for path in ([config.predictions] if config.predictions else predicted)]
    found: dict[str, Any] = {}
    if tables:
        told = associations(tables[0])
        found[ASSOCIATIONS] = {"malignancy": {name: asdict(one) for name, one in told.items()}} if told else None
    if tables and (config.predictions or len(predicted) == len(runs)):
        measured = unseen_accuracy(tables)
        found[UNSEEN] = asdict(measured) if measured else None
        line = own_size(tables)
        found[OWN_SIZE] = asdict(line) if line else None
    found = {name: value for name, value in found.items() if value}
    if not config.predictions:
        return {**found, **info}
    for name, value in found.items():
        of_mean = name in (UNSEEN, OWN_SIZE) and len(runs) > 1  # a mean's figures are no member's
        for run_folder in [] if of_mean else runs:
            save_field(run_folder, name, value)
    return {**info, **found}


def _wanted(config: ReportConfig, store: CropStore) -> list[str]:
    """The nodules asked for; of a cohort report without names, those of its table. Empty: all of the store."""
    if config.nodule or config.predictions is None:
        return words(config.nodule)
    from lidc_xai.training.assessment import read_predictions_table

    held = set(store.nodule_ids)
    table = read_predictions_table(need_path(config.predictions, "--predictions"))
    return [name for name in table["nodule_id"] if name in held]


def _similar(
    config: ReportConfig,
    models: list[NoduleModel],
    store: CropStore,
    ids: list[str],
    predictions: pd.DataFrame,
    device: str,
) -> dict[str, list[dict[str, Any]]]:
    """Rated nodules like each of those shown, with their pictures, from the user's own store of them."""
    if config.similar is None:
        return {}
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodules.similar import similar_nodules
    from lidc_xai.reporting.nodule.drawing import drawn_neighbours

    path = need_path(config.similar, "--similar")
    reference = store if path.resolve() == store.path.resolve() else CropStore(path)
    cache = need_out(config) / "features"
    near = similar_nodules(models, store, ids, reference, predictions=predictions, device=device, cache=cache)
    return drawn_neighbours(near, reference)


def _turning(
    config: ReportConfig,
    models: list[NoduleModel],
    store: CropStore,
    ids: list[str],
    predictions: pd.DataFrame,
    maps: Mapping[str, Mapping[str, NoduleMaps]],
    device: str,
) -> dict[str, dict[str, Any]]:
    """The smallest edit that turns the verdict, for nodules with outlines whose prediction is wrong or borderline."""
    from lidc_xai.errors import DataError
    from lidc_xai.nodules.explained import explaining_models
    from lidc_xai.nodules.turning import smallest_turn, wants_turning
    from lidc_xai.progress import track
    from lidc_xai.reporting.edited import drawn_turn
    from lidc_xai.reporting.values import number

    rows = {str(row["nodule_id"]): cast("dict[str, Any]", row) for row in predictions.to_dict("records")}
    shown = maps[words(config.method)[0]]
    labels = {name: number({"label": store.row(name)["label"]}, "label") for name in ids}
    asked = [name for name in ids if name in rows and wants_turning(rows[name], labels[name])]
    drawn = {}
    for nodule_id in track(asked, "turning edits", len(asked)):
        crop, used = store.load(nodule_id), explaining_models(models, str(store.row(nodule_id)["patient_id"]))
        try:
            turn = smallest_turn([models[k] for k in used] or models, crop, seed=config.seed, device=device)
        except DataError as error:
            drawn[nodule_id] = {"lines": [f"No edit could be tried: {error}"], "pictures": []}
            continue
        drawn[nodule_id] = drawn_turn(crop, turn, shown.get(nodule_id))
    return drawn


def _cohort_report(
    config: ReportConfig, store: CropStore, out: Path, predicted: pd.DataFrame, shared: dict[str, Any]
) -> ReportResult:
    from lidc_xai.annotations import cohort_exclusions
    from lidc_xai.nodules.explained import with_spread
    from lidc_xai.reporting import cohort_report
    from lidc_xai.training import evaluate_predictions
    from lidc_xai.training.assessment import read_predictions_table

    path = need_path(config.predictions, "--predictions")
    metrics = evaluate_predictions(path, seed=config.seed)
    exclusions = cohort_exclusions(config.cohort) if config.cohort else None
    benchmark = need_path(config.benchmark, "--benchmark") if config.benchmark else None
    table = with_spread(read_predictions_table(path), predicted)
    return cohort_report(store, out, table, metrics, exclusions=exclusions, benchmark=benchmark, **shared)
