"""A benchmark's summary for a page: tables (who is best, who cannot be told from the best, controls) and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from markupsafe import Markup

from lidc_xai.reporting.nodule.facts import method_title
from lidc_xai.reporting.plots import COLOURS, Chart, limits

if TYPE_CHECKING:
    from lidc_xai.evaluation.benchmark.report import Cells


class Cell(TypedDict):
    """One figure: its mean, 95 % interval and counts; ``best`` of its column, ``tied`` with the best."""

    value: float | None
    low: float | None
    high: float | None
    undefined: int
    best: bool
    tied: bool
    n: int


class Row(TypedDict):
    """A method: ``chance`` says whether it beats the centred disc ("yes", "no", "not told apart", "" not measured)."""

    method: str
    title: str
    control: bool
    chance: str
    cells: list[Cell]
    published: str


class BenchmarkTable(TypedDict):
    """One layout for one output, or ``joined`` over all. ``leading``: place of the column that ranks the rows."""

    title: str
    about: str
    joined: bool
    anchor: str
    leading: int | None
    columns: list[dict[str, Any]]
    rows: list[Row]
    notes: list[str]


def benchmark_tables(
    summary: pd.DataFrame, compared: pd.DataFrame, per_case: pd.DataFrame, known: pd.DataFrame | None = None
) -> list[BenchmarkTable]:
    """One table per layout of the benchmark and output, the joined one first.

    Controls (random numbers, the centred disc, random weights, readers) come last and are not ranked. A method beats
    chance where the paired 95 % interval of its difference from the centred disc lies on the better side of 0.
    """
    from lidc_xai.evaluation.benchmark.layouts import LAYOUTS
    from lidc_xai.evaluation.benchmark.report import Cells, best_methods
    from lidc_xai.evaluation.benchmark.tables import ALL_OUTPUTS

    cells = Cells.of(summary, compared, best_methods(summary))
    tables: list[BenchmarkTable] = []
    for number, layout in enumerate(LAYOUTS):
        metrics = [metric for metric, _, _ in layout.columns]
        chosen = summary[summary["metric"].isin(metrics)]
        outputs = sorted({str(name) for name in chosen["output"] if name}, key=lambda name: (name != ALL_OUTPUTS, name))
        for place, output in enumerate(outputs or ([""] if len(chosen) else [])):
            part = chosen[chosen["output"].isin([output, ""])]
            columns = [column for column in layout.columns if (part["metric"] == column[0]).any()]
            leading, methods = _leading(columns), [*dict.fromkeys(part["method"][part["mean"].notna()])]
            chance = {} if leading is None else _beats_disc(per_case, columns[leading], output)
            tables.append(
                {
                    "title": layout.title if output in ("", ALL_OUTPUTS) else f"{layout.title}: {output}",
                    "about": layout.about,
                    "joined": place == 0,
                    "anchor": f"table-{number}",
                    "leading": leading,
                    "columns": [{"title": heading, "better": better} for _, heading, better in columns],
                    "rows": _rows(cells, methods, columns, output, chance, known),
                    "notes": sorted({str(note) for note in part["note"] if note}),
                }
            )
    return tables


def _leading(columns: list[tuple[str, str, bool | None]]) -> int | None:
    """The column that ranks a table: its headline, else the first where higher is better."""
    from lidc_xai.evaluation.benchmark.tables import HEADLINES

    headline = next((k for k, column in enumerate(columns) if column[0] in HEADLINES and column[2]), None)
    return headline if headline is not None else next((k for k, column in enumerate(columns) if column[2]), None)


def _beats_disc(per_case: pd.DataFrame, column: tuple[str, str, bool | None], output: str) -> dict[str, str]:
    """Method -> whether it beats the centred disc on one column, from the same cases."""
    from lidc_xai.evaluation.benchmark.options import DISC
    from lidc_xai.evaluation.benchmark.tables import comparisons

    cases = per_case[per_case["metric"] == column[0]]
    if not (cases["method"] == DISC).any():
        return {}
    verdicts = {}
    for row in comparisons(cases, column[0], output, reference=DISC).itertuples():
        name = str(row.b if row.a == DISC else row.a)
        sign = (1 if column[2] else -1) * (-1 if row.a == DISC else 1)
        low, high = sorted((sign * float(row.low), sign * float(row.high)))  # type: ignore[arg-type]
        verdicts[name] = "yes" if low > 0 else "no" if high < 0 else "not told apart"
    return verdicts


def _rows(
    cells: Cells,
    methods: Sequence[str],
    columns: list[tuple[str, str, bool | None]],
    output: str,
    chance: Mapping[str, str],
    known: pd.DataFrame | None,
) -> list[Row]:
    """By the leading column, best first; controls, and methods without a value there, behind the others."""
    from lidc_xai.evaluation.benchmark.report import is_unranked, published_words

    leading, _, higher = columns[_leading(columns) or 0]

    def place(method: str) -> tuple[bool, bool, float]:
        row = cells.get(leading, output, method)
        value = np.nan if row is None else float(row.mean)
        return is_unranked(method), not np.isfinite(value), value if higher is False else -value

    return [
        {
            "method": method,
            "title": method_title(method),
            "control": is_unranked(method),
            "chance": chance.get(method, ""),
            "cells": [_cell(cells, metric, output, method) for metric, _, _ in columns],
            "published": published_words(known, method, [metric for metric, _, _ in columns]),
        }
        for method in sorted(methods, key=place)
    ]


def _cell(cells: Cells, metric: str, output: str, method: str) -> Cell:
    from lidc_xai.evaluation.benchmark.report import is_tie

    row = cells.get(metric, output, method)
    if row is None:
        return {"value": None, "low": None, "high": None, "undefined": 0, "best": False, "tied": False, "n": 0}
    value, low, high = (float(end) if np.isfinite(end) else None for end in (row.mean, row.low, row.high))
    best = cells.best.get((metric, output)) == method
    return {
        "value": value,
        "low": low,
        "high": high,
        "undefined": int(row.undefined),
        "best": best,
        "tied": not best and is_tie(cells.p.get((metric, output, method))),
        "n": int(row.n),
    }


def benchmark_curves(results: Path, outputs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Charts of every curve that the benchmark measured: ``title``, ``charts`` (output and drawing), ``legend``."""
    from lidc_xai.evaluation.benchmark.curves import FIGURES
    from lidc_xai.evaluation.benchmark.runner import read_parts
    from lidc_xai.evaluation.benchmark.tables import curves

    rows = read_parts(results)
    drawn = []
    for figure in FIGURES:
        for metric, title in zip(figure.metrics, figure.titles, strict=True):
            table = curves(rows, metric, outputs=outputs)
            if not len(table):
                continue
            methods = [name for name in dict.fromkeys(table["method"]) if "@" not in name]
            looks = {
                name: (COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % 3]) for k, name in enumerate(methods)
            }
            charts = [
                {"output": str(output), "svg": _curve_chart(part, looks, figure.x, figure.y, f"{title}, {output}")}
                for output, part in table.groupby("output", sort=False)
            ]
            legend = [{"title": method_title(name), "colour": c, "dash": d} for name, (c, d) in looks.items()]
            drawn.append(
                {"title": f"{figure.name.replace('-', ' ').capitalize()}: {title}", "charts": charts, "legend": legend}
            )
    return drawn


_DASHES = ("none", "5 3", "2 2")


def _curve_chart(part: pd.DataFrame, looks: dict[str, tuple[str, str]], x: str, y: str, label: str) -> Markup:
    shown = part[part["method"].isin(looks)]
    chart = Chart(
        (float(shown["x"].min()), float(shown["x"].max())),
        limits(shown["mean"], shown["low"], shown["high"]),
        x,
        y,
        label,
        320,
        220,
    )
    for method, (colour, dash) in looks.items():
        line = shown[shown["method"] == method].sort_values("x")
        columns = [line[name].to_numpy(dtype=np.float64).tolist() for name in ("x", "mean", "low", "high")]
        chart.band(columns[0], columns[2], columns[3], colour)
        chart.line(columns[0], columns[1], colour, dash=dash)
    return chart.svg()
