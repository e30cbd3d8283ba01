"""The report of a benchmark (tables and curves), and a sheet of images × methods × classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lidc_xai.errors import DataError, DependencyError, UsageError
from lidc_xai.files import plain, write_json, write_text
from lidc_xai.reporting import glossary
from lidc_xai.reporting.benchmark.tables import benchmark_curves, benchmark_tables
from lidc_xai.reporting.benchmark.verdict import verdict
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.pdf import write_pdf
from lidc_xai.reporting.pictures import map_picture, photograph
from lidc_xai.reporting.study import ReportResult
from lidc_xai.skipped import Skipped, write_skipped

if TYPE_CHECKING:
    from lidc_xai.explain import Explanation


def benchmark_report(
    results: Path | str,
    out: Path | str,
    *,
    about: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    title: str = "How far the maps can be trusted",
    simulated: bool = False,
    edited: bool = False,
    seen: Collection[str] | None = None,
    known: pd.DataFrame | None = None,
    run_info: Mapping[str, Any] | None = None,
    pdf: bool = True,
    paper: str = "A4",
) -> ReportResult:
    """Write ``out/index.html``, ``benchmark.json`` and (with ``pdf``) ``benchmark.pdf`` from a finished benchmark.

    The verdict comes first; tables of single outputs and curves are folded away. ``results``: folder that
    ``write_benchmark`` filled. ``about``: paragraphs at the top (model, data). ``outputs``: those whose curves are
    shown. ``seen``: patients that the model learned from (None: not recorded). ``known``: published figures to show
    beside. Raises UsageError where the folder holds no finished benchmark.

    >>> options = BenchmarkOptions(methods=("cdam",), metrics=("compactness",))
    >>> run = run_benchmark(vit, [(images, labels, None)], folder / "measured", options)
    >>> table = write_benchmark(folder / "measured", resamples=10)
    >>> benchmark_report(folder / "measured", folder / "page", pdf=False).index.suffix
    '.html'
    """
    results, out = Path(results), Path(out)
    if not (results / "summary.parquet").is_file():
        raise UsageError(f"{results}: holds no finished benchmark (summary.parquet); run lidc-xai benchmark first")
    from lidc_xai.evaluation.benchmark.runner import read_parts
    from lidc_xai.evaluation.benchmark.tables import figures

    try:
        summary = pd.read_parquet(results / "summary.parquet")
        compared = pd.read_csv(results / "comparisons.csv")
        per_case = figures(read_parts(results))
    except (OSError, ValueError) as error:
        raise DataError(f"{results}: cannot be read as benchmark results ({error}); run it again") from error
    tables = benchmark_tables(summary, compared, per_case, known)
    values = {
        "verdict": verdict(tables, per_case, seen),
        "title": title,
        "about": list(about),
        "tables": tables,
        "simulated": simulated,
        "edited": edited,
        "run": dict(run_info or {}),
    }
    drawn = {**values, "curves": benchmark_curves(results, outputs)}
    printed: dict[str, Any] = {**drawn, "tables": [table for table in tables if table["joined"]], "curves": []}
    skipped: list[Skipped] = []
    paths = [out / "index.html", out / "benchmark.json", glossary.write_glossary(out)]
    write_text(paths[0], render("benchmark.html.j2", **drawn, interactive=True, glossary=glossary.FILE))
    write_json(paths[1], plain(values))
    if pdf:
        try:
            html = render("benchmark.html.j2", **printed, interactive=False)
            paths.append(write_pdf(html, out / "benchmark.pdf", paper))
        except DependencyError as error:
            skipped.append(Skipped("", "pdf", str(error)))
    write_skipped(out, skipped)
    return ReportResult(paths[0], paths, skipped)


def image_sheet(
    images: Sequence[NDArray],
    explanations: Mapping[str, Explanation],
    out: Path | str,
    *,
    names: Sequence[str] | None = None,
    scores: Sequence[Sequence[str]] | None = None,
    title: str = "Images, methods, classes",
    per_panel: bool = True,
) -> Path:
    """Write ``out/sheet.html``: a row per image and class, a column per method, as in the CDAM paper's figure of cats
    and dogs.

    ``images``: (H, W, 3) uint8 or floats in [0, 1]; ``explanations``: method -> ``Explanation`` of the same images in
    the same order, relevance (B,T,·,·). ``names``: of the images; ``scores``: per image and target a text beside its
    name (such as a probability). ``per_panel``: every panel on its own symmetric scale (its largest absolute score
    stands below it), else one scale per method and image.

    >>> pixels = [np.zeros((32, 32, 3), np.uint8)] * 2
    >>> image_sheet(pixels, explain(vit, images, [0, 1], ["cdam"]), folder / "sheet.html").name
    'sheet.html'
    """
    if not explanations:
        raise UsageError("image_sheet needs at least one method's explanation")
    first, rows = next(iter(explanations.values())), []
    for b, image in enumerate(images):
        height, width = image.shape[:2]
        panels = []
        for t, target in enumerate(first.target_names):
            cells = []
            for method, explanation in explanations.items():
                given = explanation.relevance[b]
                maps = np.asarray(given.cpu() if hasattr(given, "cpu") else given)
                scores_here = maps[t].astype(np.float64)
                limit = float(np.abs(scores_here if per_panel else maps).max())
                cells.append(
                    {"method": method, "map": map_picture(scores_here, limit, (height, width), 160), "limit": limit}
                )
            words = scores[b][t] if scores is not None else ""
            panels.append({"target": target, "words": words, "cells": cells})
        label = names[b] if names is not None else f"image {b + 1}"
        rows.append({"name": label, "picture": photograph(image), "panels": panels})
    path = Path(out) / "sheet.html"
    values: dict[str, Any] = {
        "title": title,
        "rows": rows,
        "methods": list(explanations),
        "simulated": False,
        "edited": False,
    }
    write_text(path, render("sheet.html.j2", **values, interactive=True))
    return path
