"""The benchmark in files: tidy Parquet and CSV, the tables as Markdown, and the curves. Its page is drawn by
``reporting.benchmark_report``.

figures.parquet      one value per case, method, output and metric
summary.parquet/.csv means with 95 % intervals, n, undefined, notes
comparisons.csv      every method against the best of its column, Holm-corrected
benchmark.md         the tables; curves-*.svg
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.benchmark.curves import FIGURES, draw_curves
from lidc_xai.evaluation.benchmark.layouts import LAYOUTS, Layout
from lidc_xai.evaluation.benchmark.options import DISC, MODEL, RANDOM_WEIGHTS, READERS, TARGET
from lidc_xai.evaluation.benchmark.runner import read_parts
from lidc_xai.evaluation.benchmark.tables import ALL_OUTPUTS, comparisons, curves, figures, summarise
from lidc_xai.evaluation.statistics import RESAMPLES
from lidc_xai.files import atomic_path, write_text
from lidc_xai.ratings import RESEARCH_USE_ONLY

READING = (
    "Means over cases with 95 % intervals (bootstrap by patient). Bold: best of the column. †: cannot be told from the "
    "best (paired sign-flip test by patient, Holm-corrected over the column, p ≥ 0.05). n−: cases without a value; the "
    "notes below the table say why. Methods marked @random_weights, the centred disc, random numbers and the readers "
    "are controls and take no part in the ranking."
)


@dataclass(frozen=True)
class TextTable:
    """A table as text: ``rows`` of cells under ``headings``; ``best`` marks cells; ``notes`` stand below."""

    title: str
    about: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]
    notes: tuple[str, ...]


def write_benchmark(
    out: Path | str,
    *,
    title: str = "How far the maps can be trusted",
    about: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    known: pd.DataFrame | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Write all of the above from ``out/parts`` and return the summary.

    ``about``: paragraphs at the top (model, data, date). ``outputs``: those to show and to join. ``known``: published
    figures (``pipelines/studies/published.py``) to show beside.

    >>> options = BenchmarkOptions(methods=("cdam", "saliency"), metrics=("compactness",))
    >>> run = run_benchmark(vit, [(images, labels, None)], folder / "tables", options)
    >>> sorted(write_benchmark(folder / "tables", resamples=10)["method"].unique())
    ['cdam', 'centred_disc', 'saliency']
    """
    folder = Path(out)
    rows = read_parts(folder)
    per_case = figures(rows)
    summary = summarise(per_case, outputs=outputs, resamples=resamples, seed=seed)
    for name, frame in (("figures", per_case), ("summary", summary)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    write_csv(folder / "summary.csv", summary)
    best = best_methods(summary)
    tested = _all_comparisons(per_case, best, resamples, seed)
    write_csv(folder / "comparisons.csv", tested)
    cells = Cells.of(summary, tested, best)
    tables = [
        _text_table(layout, cells, output, known)
        for first in (True, False)  # the joined tables first, then the same by output
        for layout in LAYOUTS
        for place, output in enumerate(_outputs_shown(layout, summary))
        if (place == 0) == first
    ]
    for figure in FIGURES:
        drawn = {metric: curves(rows, metric, outputs=outputs, seed=seed) for metric in figure.metrics}
        if any(len(curve) for curve in drawn.values()):
            write_text(folder / f"curves-{figure.name}.svg", draw_curves(figure, drawn))
    counts = f"{per_case['case'].nunique()} cases of {_patients(per_case)} patients."
    head = [*about, counts, READING]
    write_text(folder / "benchmark.md", markdown_page(title, head, tables))
    return summary


def is_unranked(method: str) -> bool:
    """Whether a row takes no part in the ranking: chance, the centred disc, random weights, readers, the model."""
    return method in (DISC, READERS, MODEL, "random") or method.endswith(RANDOM_WEIGHTS)


def _patients(per_case: pd.DataFrame) -> int:
    return int(per_case["cluster"].where(per_case["cluster"] != "", per_case["case"]).nunique())


def _outputs_shown(layout: Layout, summary: pd.DataFrame) -> list[str]:
    """The joined outputs first, then each of them; a table of one output alone."""
    in_table = summary[summary["metric"].isin([metric for metric, _, _ in layout.columns]) & (summary["output"] != "")]
    names = list(dict.fromkeys(in_table["output"]))
    return sorted(names, key=lambda name: name != ALL_OUTPUTS)


def best_methods(summary: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(metric, output) → the best method, for every column that has a better and a worse."""
    best_of = {}
    for layout in LAYOUTS:
        for metric, _, higher in layout.columns:
            for output in _outputs_shown(layout, summary):
                best = _best(summary, metric, output, higher)
                if best is not None:
                    best_of[metric, output] = best
    return best_of


def _all_comparisons(
    per_case: pd.DataFrame, best: dict[tuple[str, str], str], resamples: int, seed: int
) -> pd.DataFrame:
    """Each method against the best of its column."""
    ranked = per_case[~per_case["method"].map(is_unranked)]
    by_metric = dict(iter(ranked.groupby("metric")))
    parts = [
        comparisons(by_metric[metric], metric, output, reference=name, resamples=resamples, seed=seed).assign(
            metric=metric, output=output
        )
        for (metric, output), name in best.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["a", "b", "metric", "output"])


def _best(summary: pd.DataFrame, metric: str, output: str, higher: bool | None) -> str | None:
    ranked = summary[(summary["metric"] == metric) & (summary["output"] == output) & summary["mean"].notna()]
    ranked = ranked[~ranked["method"].map(is_unranked)]
    if higher is None or len(ranked) < 2 or ranked["mean"].nunique() < 2:
        return None
    order = ranked["mean"] if higher else -ranked["mean"]
    return str(ranked["method"].to_numpy()[int(np.argmax(order.to_numpy()))])


@dataclass(frozen=True)
class Cells:
    """The summary by (metric, output, method), the best method of each column, and p-values against it."""

    rows: dict[tuple[str, str, str], Any]
    best: dict[tuple[str, str], str]
    p: dict[tuple[str, str, str], float]

    @classmethod
    def of(cls, summary: pd.DataFrame, tested: pd.DataFrame, best: dict[tuple[str, str], str]) -> Cells:
        rows = {_place(row, "method"): row for row in summary.itertuples()}
        p = {_place(row, "b"): float(getattr(row, "p_holm", np.nan)) for row in tested.itertuples()}
        return cls(rows, best, p)

    def get(self, metric: str, output: str, method: str) -> Any:
        """The row of one cell, or None; a row that belongs to no output (the readers) stands in every table."""
        return self.rows.get((metric, output, method)) or self.rows.get((metric, "", method))


def _place(row: Any, method: str) -> tuple[str, str, str]:
    return str(row.metric), str(row.output), str(getattr(row, method))


def _text_table(layout: Layout, cells: Cells, output: str, known: pd.DataFrame | None) -> TextTable:
    present = {(metric, where) for metric, where, _ in cells.rows}
    shown = [column for column in layout.columns if (column[0], output) in present]
    metrics = [metric for metric, _, _ in shown]
    names = {name for metric, where, name in cells.rows if metric in metrics and where in (output, "")}
    methods = _ordered(names, cells, output, shown)
    joined = known is not None and output in (ALL_OUTPUTS, TARGET)
    beside = known[known["metric"].isin(metrics)] if known is not None and joined else pd.DataFrame()
    rows, best, notes = [], set(), []
    for r, method in enumerate(methods):
        texts = [method]
        for c, metric in enumerate(metrics):
            row = cells.get(metric, output, method)
            texts.append(_cell(row, cells.p.get((metric, output, method))))
            if cells.best.get((metric, output)) == method:
                best.add((r, c + 1))
            if row is not None and row.note:
                notes.append((method, row.note))
        if len(beside):
            texts.append(published_words(beside, method, metrics))
        rows.append(tuple(texts))
    arrows = {True: " ↑", False: " ↓", None: ""}
    headings = ["method", *(heading + arrows[higher] for _, heading, higher in shown)]
    headings += ["published"] if len(beside) else []
    title = layout.title if output == ALL_OUTPUTS else f"{layout.title}: {output}"
    return TextTable(title, layout.about, tuple(headings), tuple(rows), frozenset(best), tuple(_gathered(notes)))


def published_words(known: pd.DataFrame | None, method: str, metrics: Sequence[str]) -> str:
    """What is published of a method by some metrics."""
    if known is None:
        return ""
    told = known[(known["method"] == method) & known["metric"].isin(metrics)]
    return "; ".join(f"{row.metric} {row.value:g} ({row.note})" for row in told.itertuples())


def _ordered(
    names: Iterable[str], cells: Cells, output: str, shown: Sequence[tuple[str, str, bool | None]]
) -> list[str]:
    """Methods by the table's main column, best first; controls behind them."""
    if not shown:
        return []
    metric, _, higher = next((column for column in shown if column[2]), shown[0])

    def place(name: str) -> tuple[bool, float, str]:
        row = cells.get(metric, output, name)
        mean = np.nan if row is None else float(row.mean)
        return is_unranked(name), np.inf if np.isnan(mean) else (-mean if higher else mean), name

    return sorted(names, key=place)


def _cell(row: Any, p: float | None) -> str:
    if row is None:
        return "–"
    if not np.isfinite(row.mean):
        return f"undefined (n− {row.undefined})"
    interval = "" if not np.isfinite(row.low) else f" [{_number(row.low)}, {_number(row.high)}]"
    missing = f" (n− {row.undefined})" if row.undefined else ""
    tie = " †" if is_tie(p) else ""
    return f"{_number(row.mean)}{interval}{missing}{tie}"


def is_tie(p: float | None) -> bool:
    """Whether a method cannot be told from the best of its column: p-value of the two, None where there is none."""
    return p is not None and p >= 0.05


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def _gathered(notes: list[tuple[str, str]]) -> list[str]:
    """One line per reason, naming the methods that it stands for."""
    methods_of: dict[str, list[str]] = {}
    for method, reason in notes:
        places = methods_of.setdefault(reason, [])
        if method not in places:
            places.append(method)
    lines = []
    for reason, methods in methods_of.items():
        who = ", ".join(methods) if len(methods) <= 6 else f"{', '.join(methods[:5])} and {len(methods) - 5} more"
        lines.append(f"{who}: {reason}")
    return lines


def markdown_page(title: str, head: Sequence[str], tables: Sequence[TextTable]) -> str:
    """A title, paragraphs and tables as Markdown."""
    lines = [f"# {title}", "", *(f"{text}\n" for text in (*head, RESEARCH_USE_ONLY))]
    for table in tables:
        lines += [f"## {table.title}", "", table.about, ""]
        lines += ["| " + " | ".join(table.headings) + " |", "|" + " --- |" * len(table.headings)]
        for r, row in enumerate(table.rows):
            cells = [f"**{cell}**" if (r, c) in table.best else cell.replace("|", "\\|") for c, cell in enumerate(row)]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *(f"- {note}" for note in table.notes), ""]
    return "\n".join(lines)
