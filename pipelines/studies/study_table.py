"""A study's results: rows with the published figure beside ours, claims with a verdict, and both in files and pictures.

table.csv      one row per figure: published, here, its 95 % interval, here − published, n
findings.json  what the paper states, the effect that was found and whether its interval shows or refutes it
study.md/.html both as a page; figure.png and figure.svg
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.benchmark.curves import COLOURS
from lidc_xai.evaluation.benchmark.report import TextTable, markdown_page
from lidc_xai.evaluation.statistics import Interval, PairedDifference
from lidc_xai.files import atomic_path, plain, write_json, write_text
from lidc_xai.ratings import RESEARCH_USE_ONLY

COLUMNS = (
    "data", "model", "method", "metric", "published", "place", "here", "low", "high", "difference", "n", "differs",
    "note",
)  # fmt: skip
FEWEST = 10
"""So many images at least for a verdict: a bootstrap of fewer is too narrow."""
_MARK = 4.5
_ROW, _BETWEEN = 0.11, 0.6  # inches of a row of marks; rows between methods


@dataclass(frozen=True)
class Row:
    """One figure. ``data``: which images; ``published``: the paper's figure, NaN where it prints none, up to
    ``published_high`` where it gives a range, and ``place`` where it stands.

    ``like``: the paper's images that these stand for. ``differs``: what is not as the paper has it (model, images);
    empty: nothing, so that the difference of the two figures may be read.
    """

    data: str
    model: str
    method: str
    metric: str
    here: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    published: float = np.nan
    published_high: float = np.nan
    place: str = ""
    like: str = ""
    differs: str = ""
    note: str = ""

    @classmethod
    def of(cls, data: str, model: str, method: str, metric: str, found: Interval, **more: Any) -> Row:
        """A row from a mean with its interval."""
        left_out = f"{found.undefined} undefined" if found.undefined else ""
        note = "; ".join(text for text in (more.pop("note", ""), found.note, left_out) if text)
        return cls(data, model, method, metric, found.mean, found.low, found.high, found.n, note=note, **more)

    @property
    def difference(self) -> float:
        """Here − published; NaN where model or images are others than the paper's."""
        return np.nan if self.differs else self.here - self.published


@dataclass(frozen=True)
class Finding:
    """A claim and its test. ``effect`` with its interval is expected above 0 where the claim holds.

    ``verdict``: "shown" or "refuted" where the whole interval lies on one side of 0 and 10 images or more stand behind
    it, else "not decided".
    """

    claim: str
    data: str
    model: str
    effect: float
    low: float
    high: float
    n: int
    p: float = np.nan
    note: str = ""

    @classmethod
    def of(
        cls, claim: str, data: str, model: str, found: Interval | PairedDifference, sign: int = 1, note: str = ""
    ) -> Finding:
        """``sign``: 1 where the claim says that the effect is positive, −1 where it says negative (it is turned)."""
        effect, p = (found.difference, found.p) if isinstance(found, PairedDifference) else (found.mean, np.nan)
        low, high = sorted((sign * found.low, sign * found.high))
        return cls(claim, data, model, sign * effect, low, high, found.n, p, note)

    @property
    def verdict(self) -> str:
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return "not decided (no interval)"
        if self.n < FEWEST:
            return f"not decided (n < {FEWEST})"
        return "shown" if self.low > 0 else "refuted" if self.high < 0 else "not decided"


def alike(
    claim: str, data: str, model: str, found: Interval | PairedDifference, within: float, note: str = ""
) -> Finding:
    """A claim that an effect is none: shown where its whole interval lies within ± ``within``, refuted where outside.

    ``effect``: ``within`` less the effect's size.

    >>> from lidc_xai.evaluation.statistics import Interval
    >>> found = alike("the same", "images", "m", Interval(-0.1, -0.3, 0.2, 20, 20, 0), within=0.5)
    >>> found.verdict, round(found.effect, 3), round(found.low, 3), round(found.high, 3)
    ('shown', 0.4, 0.2, 0.5)
    """
    effect = found.difference if isinstance(found, PairedDifference) else found.mean
    nearest = 0.0 if found.low <= 0 <= found.high else min(abs(found.low), abs(found.high))
    low, high = within - max(abs(found.low), abs(found.high)), within - nearest
    note = "; ".join(text for text in (note, f"margin {within:g}") if text)
    return Finding(claim, data, model, within - abs(effect), low, high, found.n, note=note)


def with_published(rows: Sequence[Row], known: pd.DataFrame, source: str) -> list[Row]:
    """Rows with the figures that ``source`` prints for their method and metric, on the images that they stand for."""
    found = []
    own = known[known["source"] == source]
    for row in rows:
        fits = own[(own["method"] == row.method) & (own["metric"] == row.metric)]
        fits = fits[fits["images"].isin(["", row.like])] if row.like else fits[:0]
        if fits.empty:
            found.append(row)
            continue
        low, high = float(fits["value"].min()), float(fits["value"].max())
        found.append(
            replace(
                row,
                published=low,
                published_high=high if high > low else np.nan,
                place=", ".join(fits["table"].unique()),
            )
        )
    return found


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with the columns of ``COLUMNS``."""
    values = [{**asdict(row), "difference": row.difference} for row in rows]
    return pd.DataFrame(values, columns=list(COLUMNS))


def write_study(
    folder: Path,
    title: str,
    about: Sequence[str],
    rows: Sequence[Row],
    findings: Sequence[Finding],
    not_run: Sequence[tuple[str, str]],
    panels: Mapping[str, str],
) -> None:
    """All files. ``not_run``: what was left out and why. ``panels``: metrics to draw, with their titles."""
    write_csv(folder / "table.csv", table_of(rows))
    told = [{**asdict(one), "verdict": one.verdict} for one in findings]
    write_json(folder / "findings.json", plain(told))
    tables = [_finding_table(findings), *_row_tables(rows, panels)]
    if not_run:
        cells = tuple((item, reason) for item, reason in not_run)
        tables.append(TextTable("Not run", "", ("what", "why, and what to bring"), cells, frozenset(), ()))
    picture = draw_rows(rows, panels, title)
    svg = _save(picture, folder)
    write_text(folder / "study.md", markdown_page(title, about, tables))
    write_text(folder / "study.html", _html_page(title, about, tables, {"Figure": svg}))


def _finding_table(findings: Sequence[Finding]) -> TextTable:
    about = (
        "The effect is turned so that a claim which holds is above 0; shown or refuted: the whole 95 % interval "
        "(bootstrap over images) lies on that side of 0."
    )
    rows = tuple(
        (one.claim, one.data, one.model, _interval(one.effect, one.low, one.high), str(one.n), one.verdict, one.note)
        for one in findings
    )
    return TextTable(
        "Claims", about, ("claim", "data", "model", "effect", "n", "verdict", "note"), rows, frozenset(), ()
    )  # fmt: skip


def _row_tables(rows: Sequence[Row], panels: Mapping[str, str]) -> list[TextTable]:
    """One table per data set and model; figures that are drawn stand first."""
    order = {metric: place for place, metric in enumerate(panels)}
    tables = []
    for data, model in dict.fromkeys((row.data, row.model) for row in rows):
        own = [row for row in rows if (row.data, row.model) == (data, model)]
        own.sort(key=lambda row: order.get(row.metric, len(order)))
        cells = tuple(
            (row.method, row.metric, printed(row), _interval(row.here, row.low, row.high), str(row.n),
             row.differs if row.place else "", row.note)
            for row in own
        )  # fmt: skip
        headings = ("method", "figure", "published", "here", "n", "differs", "note")
        tables.append(TextTable(f"{data}: {model}", "", headings, cells, frozenset(), ()))
    return tables


def printed(row: Row) -> str:
    """The paper's figure or range and its place; a dash where it prints none."""
    if not np.isfinite(row.published):
        return "–"
    upto = f" to {_number(row.published_high)}" if np.isfinite(row.published_high) else ""
    return f"{_number(row.published)}{upto} ({row.place})"


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "–"


def _interval(mean: float, low: float, high: float) -> str:
    between = f" [{_number(low)}, {_number(high)}]" if np.isfinite(low) and np.isfinite(high) else ""
    return _number(mean) + between


def draw_rows(rows: Sequence[Row], panels: Mapping[str, str], title: str) -> Figure:
    """One panel per metric: methods below each other, our means with intervals, published figures as hollow marks."""
    shown = {metric: [row for row in rows if row.metric == metric and np.isfinite(row.here)] for metric in panels}
    shown = {metric: own for metric, own in shown.items() if own}
    groups = list(dict.fromkeys((row.data, row.model) for own in shown.values() for row in own))
    columns = min(3, max(1, len(shown)))
    several = list(shown.items())
    lines = [several[start : start + columns] for start in range(0, len(several), columns)] or [[]]
    heights = [0.8 + _ROW * max((_extent(own) for _, own in line), default=1.0) for line in lines]
    figure = Figure(figsize=(5.2 * columns, sum(heights) + 0.4 + 0.18 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for axis in axes.ravel()[len(shown) :]:
        axis.set_axis_off()
    for axis, (metric, own) in zip(axes.ravel(), several, strict=False):
        _draw_panel(axis, own, groups, panels[metric])
    figure.suptitle(title, fontsize=11)
    handles = [
        figure.axes[0].plot([], [], "o", color=COLOURS[g % len(COLOURS)], ms=_MARK, label=f"{data}, {model}")[0]
        for g, (data, model) in enumerate(groups)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", fontsize=8, ncols=min(3, len(handles)))
    return figure


def _extent(own: Sequence[Row]) -> float:
    """Rows of marks in a panel, with a gap between methods."""
    return len(own) + _BETWEEN * len({row.method for row in own})


def _draw_panel(axis: Any, own: Sequence[Row], groups: Sequence[tuple[str, str]], title: str) -> None:
    axis.axvline(0, color="#999999", lw=0.6)
    ticks, names, y = [], [], 0.0
    for method in dict.fromkeys(row.method for row in own):
        marks = [row for row in own if row.method == method]
        ticks.append(y + (len(marks) - 1) / 2)
        names.append(method)
        for row in marks:
            _draw_mark(axis, row, y, COLOURS[groups.index((row.data, row.model)) % len(COLOURS)])
            y += 1
        y += _BETWEEN
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set_ylim(y - _BETWEEN, -1)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(title, fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_mark(axis: Any, row: Row, y: float, colour: str) -> None:
    if np.isfinite(row.low) and np.isfinite(row.high):
        axis.plot([row.low, row.high], [y, y], color=colour, lw=1.4)
    axis.plot([row.here], [y], "o", color=colour, ms=_MARK)
    if np.isfinite(row.published):
        axis.plot([row.published], [y], "D", mfc="none", mec=colour, ms=_MARK + 1)


def _save(figure: Figure, folder: Path) -> str:
    """figure.png and figure.svg; returns the SVG."""
    with atomic_path(folder / "figure.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "lidc_xai"})
    figure.set_layout_engine("none")  # laid out by now; once more would take as long again
    stream = StringIO()
    with rc_context({"svg.hashsalt": "lidc_xai"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    write_text(folder / "figure.svg", stream.getvalue())
    return stream.getvalue()


def _html_page(title: str, head: Sequence[str], tables: Sequence[TextTable], pictures: dict[str, str]) -> str:
    """The same as one HTML page, followed by ``pictures``: heading → SVG."""
    parts = [_PAGE_TOP.format(title=escape(title)), *(f"<p>{escape(text)}</p>" for text in (*head, RESEARCH_USE_ONLY))]
    for table in tables:
        headings = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.headings)
        parts.append(f"<h2>{escape(table.title)}</h2><p>{escape(table.about)}</p>")
        parts.append(f'<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>')
        for r, row in enumerate(table.rows):
            cells = "".join(
                f"<td><b>{escape(cell)}</b></td>" if (r, c) in table.best else f"<td>{escape(cell)}</td>"
                for c, cell in enumerate(row[1:], start=1)
            )
            parts.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
        parts.append("</tbody></table></div>")
        if table.notes:
            parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in table.notes) + "</ul>")
    for name, picture in pictures.items():
        parts.append(f"<h2>{escape(name)}</h2><figure>{picture[picture.index('<svg') :]}</figure>")
    return "\n".join([*parts, "</main></body></html>\n"])


_PAGE_TOP = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0; }}
main {{ max-width: 76rem; margin: auto; padding: 1.5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #8886; white-space: nowrap; }}
figure {{ margin: 0; background: #fff; overflow-x: auto; }} figure svg {{ max-width: 100%; height: auto; }}
</style></head><body><main><h1>{title}</h1>"""
