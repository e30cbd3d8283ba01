"""The report of a cohort: flow, figures with intervals, calibration, profiles, galleries, checklist and model card."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lidc_xai.errors import DependencyError
from lidc_xai.evaluation.decision import decision_curve
from lidc_xai.files import plain, write_json, write_text
from lidc_xai.nodules.failures import Subgroup, failure_table
from lidc_xai.ratings import OUTPUTS
from lidc_xai.reporting import glossary
from lidc_xai.reporting.cohort.charts import (
    biomarker_chart,
    decision_chart,
    profile_chart,
    reliability_chart,
    strata_chart,
)
from lidc_xai.reporting.cohort.claim import claim_checklist, tripod_checklist
from lidc_xai.reporting.cohort.figures import cohort_overlap, flow, galleries, radial_curves, size_of
from lidc_xai.reporting.cohort.verdict import cohort_verdict
from lidc_xai.reporting.nodule.words import reads_words
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.parts import ReportParts, is_control, map_of
from lidc_xai.reporting.pdf import write_pdf
from lidc_xai.reporting.study import Pages, ReportResult, parts_of_study, study_page, wanted_ids, write_pages
from lidc_xai.skipped import Skipped, write_skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

_FIGURES = (
    ("auc", "AUC"), ("auc_within_folds", "AUC within folds"), ("accuracy", "Accuracy"),
    ("sensitivity", "Sensitivity"), ("specificity", "Specificity"), ("brier", "Brier score"),
    ("ece", "Calibration error"),
)  # fmt: skip
_ERRORS = (("mse_z", "MSE (standardised)"), ("mae", "Mean absolute error"), ("r2", "R²"), ("spearman", "Spearman"))


def cohort_report(
    store: CropStore,
    out: Path | str,
    predictions: pd.DataFrame | None = None,
    metrics: Mapping[str, Any] | None = None,
    *,
    exclusions: pd.DataFrame | None = None,
    benchmark: Path | str | None = None,
    dicom: Path | str | None = None,
    nodule_ids: Sequence[str] | None = None,
    title: str = "Lung nodules: a cohort, a model, and its reasons",
    pdf: bool = True,
    nodule_pdf: bool = False,
    jobs: int = 1,
    **parts: Any,
) -> ReportResult:
    """Write ``out/index.html`` (the cohort; also ``cohort.pdf`` and ``cohort.json``), ``out/nodules.html`` (the table)
    and a page per nodule.

    predictions: ``predictions.csv`` of a cross-validation, or the table of ``predict``. metrics: as
    ``evaluate_predictions`` returns them. exclusions: ``cohort_exclusions(name)``, for the flow from the database on.
    benchmark: folder of a finished benchmark, whose tables are linked. pdf: of the cohort's page; nodule_pdf: of every
    nodule too. ``parts``: the other fields of ``ReportParts`` (maps, model_info, …). All is optional; what is missing
    is said on the page.

    >>> cohort_report(store, folder / "cohort", pdf=False).index.suffix
    '.html'
    """
    out, ids = Path(out), wanted_ids(store, nodule_ids)
    made_from = parts_of_study(store, ids, dicom, {**parts, "predictions": predictions})
    pages = write_pages(store, ids, out / "nodules", made_from, pdf=nodule_pdf, jobs=jobs, study_link="../nodules.html")
    infos = (made_from.model_info, made_from.run_info)
    write_text(out / "nodules.html", study_page("Nodules", pages, None, *infos, back="index.html"))
    facts = _facts(store, ids, made_from, pages, metrics, exclusions)
    drawn = _drawn(store, ids, made_from, pages, facts)
    values = {**facts, **drawn, "title": title, "benchmark": _beside(benchmark, out)}
    paths = [out / "index.html", out / "cohort.json", out / "nodules.html"]
    write_text(paths[0], render("cohort.html.j2", **values, interactive=True, glossary=glossary.FILE))
    write_json(paths[1], plain(facts))
    if pdf:
        try:
            paths.append(
                write_pdf(render("cohort.html.j2", **values, interactive=False), out / "cohort.pdf", made_from.paper)
            )
        except DependencyError as error:
            pages.skipped.append(Skipped("", "pdf", str(error)))
    write_skipped(out, pages.skipped)
    return ReportResult(paths[0], [*paths, *pages.paths, glossary.write_glossary(out)], pages.skipped)


def _facts(
    store: CropStore,
    ids: Sequence[str],
    parts: ReportParts,
    pages: Pages,
    metrics: Mapping[str, Any] | None,
    exclusions: pd.DataFrame | None,
) -> dict[str, Any]:
    manifest = store.manifest.set_index("nodule_id").loc[list(ids)]
    counted = _counted(metrics, parts, ids)
    facts: dict[str, Any] = {
        "nodules": len(ids),
        "patients": int(manifest["patient_id"].nunique()),
        "simulated": bool(manifest["simulated"].any()),
        "edited": bool((manifest["edited"] != "").any()),
        "crop": f"{manifest['size_mm'].iloc[0]:g} mm at {manifest['spacing_mm'].iloc[0]:g} mm" if len(ids) else "",
        "flow": flow(store, parts.predictions, exclusions, ids, performance=bool(metrics) and not counted),
        "metrics": metrics or {},
        "verdict": cohort_verdict(metrics or {}),
        "performance": malignancy_table(metrics or {}),
        "biomarkers": biomarker_table(metrics or {}),
        "overlap": cohort_overlap(pages.rows),
        "failures": _failures(store, parts, ids),
        "counted": counted,
        "model": parts.model_info or {},
        "run": parts.run_info or {},
        "reads": reads_words(parts.model_info),
        "trained_on": sum(row["status"] == "trained_on" for row in pages.rows),
        "missing": _missing(parts, metrics),
    }
    facts["claim"], facts["tripod"] = claim_checklist(facts), tripod_checklist(facts)
    return facts


def _failures(store: CropStore, parts: ReportParts, ids: Sequence[str]) -> list[Subgroup]:
    table = parts.predictions
    if table is None or "malignancy_probability" not in table or "nodule_id" not in table:
        return []
    return failure_table(table[table["nodule_id"].isin(ids)], store.manifest, store.votes)


def _counted(metrics: Mapping[str, Any] | None, parts: ReportParts, ids: Sequence[str]) -> str:
    """Where the figures count other nodules than the report shows, how many."""
    nodules = (metrics or {}).get("nodules")
    if nodules is None or parts.predictions is None or nodules == len(set(parts.predictions["nodule_id"]) & set(ids)):
        return ""
    return (
        f"The tables and charts of performance count all {nodules} nodules of the predictions; the decision curve, "
        f"where it fails, the maps and the galleries only the {len(ids)} that this report shows."
    )


def _drawn(
    store: CropStore, ids: Sequence[str], parts: ReportParts, pages: Pages, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Charts and galleries: what the page draws from the facts."""
    metrics = facts["metrics"]
    charts: dict[str, Any] = {}
    if metrics.get("malignancy"):
        charts["auc"] = strata_chart(metrics, "auc", "AUC")
        charts["accuracy"] = strata_chart(metrics, "accuracy", "Accuracy")
        table = _labelled(store, parts, ids)
        if table is not None:
            charts["decision"] = decision_chart(decision_curve(table["label"], table["malignancy_probability"]))
        charts["reliability"] = reliability_chart(metrics["malignancy"].get("reliability") or [])
    if metrics.get("biomarkers"):
        charts["biomarkers"] = biomarker_chart(metrics)
    explaining = [name for name in parts.maps if not is_control(name)]
    profiles = {}
    if explaining:
        curves = radial_curves(store, lambda nodule_id: map_of(parts.maps[explaining[0]], nodule_id), ids)
        profiles = {name: profile_chart(name, curves[name]) for name in OUTPUTS if name in curves}
    shown = {row["nodule_id"]: row for row in pages.rows}
    return {
        "charts": charts,
        "profiles": profiles,
        "primary": explaining[0] if explaining else "",
        "galleries": galleries(list(shown.values())),
    }


def _labelled(store: CropStore, parts: ReportParts, ids: Sequence[str]) -> pd.DataFrame | None:
    """Probability and label of the nodules that are shown."""
    table = parts.predictions
    if table is None or "malignancy_probability" not in table:
        return None
    labels = store.manifest[["nodule_id", "label"]].astype({"label": "Float64"})
    predicted = table[table["nodule_id"].isin(ids)][["nodule_id", "malignancy_probability"]]
    return predicted.merge(labels, on="nodule_id").dropna().astype({"label": float})


def malignancy_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the model and of every baseline, on all nodules: ``who`` and one entry per figure."""
    paths = {"Model": ("malignancy",)} | {
        name: ("baselines", name, "malignancy") for name in metrics.get("baselines", {})
    }
    sizes = {who: {key: size_of(metrics, *path, "all", key) for key, _ in _FIGURES} for who, path in paths.items()}
    shown = [(key, title) for key, title in _FIGURES if any(figures[key] for figures in sizes.values())]
    return [
        {"who": who, "figures": [{"title": title, **(figures[key] or {})} for key, title in shown]}
        for who, figures in sizes.items()
        if any(figures.values())
    ]


def biomarker_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per biomarker: its figures, the floor that the readers' noise sets, and their ICC."""
    rows = []
    for name, figures in (metrics.get("biomarkers") or {}).items():
        noise = (metrics.get("reader_noise") or {}).get(name) or {}
        columns = [{"title": title, **(size_of(figures, key) or {})} for key, title in _ERRORS]
        rows.append({"name": name, "figures": columns, "floor": noise.get("floor_mse_z"), "icc": noise.get("icc")})
    return rows


def _missing(parts: ReportParts, metrics: Mapping[str, Any] | None) -> list[str]:
    missing = []
    if parts.predictions is None:
        missing.append("Predictions: run lidc-xai cross-validate or predict.")
    if not metrics:
        missing.append("Performance: run lidc-xai evaluate on out-of-fold predictions.")
    if not parts.maps:
        missing.append("Maps: run lidc-xai explain.")
    return missing


def _beside(benchmark: Path | str | None, out: Path) -> str:
    """Address of a benchmark's page, relative to the report."""
    if benchmark is None:
        return ""
    page = next(
        (path for path in (Path(benchmark) / "report/index.html", Path(benchmark) / "index.html") if path.exists()),
        None,
    )
    return "" if page is None else Path(os.path.relpath(page, out)).as_posix()
