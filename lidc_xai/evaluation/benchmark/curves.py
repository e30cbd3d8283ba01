"""The benchmark's curves as SVG: one panel per metric, one line with its 95 % band per method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import cycle, islice

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lidc_xai.evaluation.benchmark.options import RANDOM_WEIGHTS

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#555555", "#882255", "#44aa99",
)  # fmt: skip
"""Distinct for people who do not see red and green apart; line styles tell those apart that share a colour."""
DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class CurveFigure:
    """A picture: its file name, its panels (metrics) with their titles, what the axes are, whether 0 is drawn."""

    name: str
    metrics: tuple[str, ...]
    titles: tuple[str, ...]
    x: str
    y: str
    zero: bool = False


FIGURES = (
    CurveFigure(
        "fidelity", ("fidelity/mif", "fidelity/lif"), ("most important first", "least important first"),
        "pixels replaced by the blurred image (%)", "score of the own output",
    ),
    CurveFigure(
        "fidelity-lung", ("fidelity_lung/mif", "fidelity_lung/lif"), ("most important first", "least important first"),
        "pixels replaced by lung (%)", "score of the own output",
    ),
    CurveFigure(
        "box", ("box/correlation", "box_lung/correlation"), ("blurred", "lung"), "side of the box (px)",
        "correlation of relevance and loss", zero=True,
    ),
    CurveFigure(
        "deletion", ("deletion/deletion", "deletion/insertion"), ("deletion", "insertion"), "share of cells",
        "score of the own output",
    ),
    CurveFigure(
        "radial", ("radial/profile",), ("mean scaled relevance",), "distance from the boundary (mm, negative inside)",
        "relevance / max |relevance|", zero=True,
    ),
    CurveFigure(
        "randomisation", ("randomisation/spearman_by_stage",), ("random weights, from the head down",),
        "stages randomised", "Spearman correlation with the original map", zero=True,
    ),
)  # fmt: skip


def draw_curves(figure: CurveFigure, drawn: Mapping[str, pd.DataFrame]) -> str:
    """SVG text of one picture: a row of panels per output."""
    panels = [
        (metric, title) for metric, title in zip(figure.metrics, figure.titles, strict=True) if len(drawn[metric])
    ]
    outputs = list(dict.fromkeys(output for metric, _ in panels for output in drawn[metric]["output"]))
    methods = list(dict.fromkeys(method for metric, _ in panels for method in drawn[metric]["method"]))
    methods = [method for method in methods if not method.endswith(RANDOM_WEIGHTS)]
    looks = dict(zip(methods, islice(cycle((c, d) for d in DASHES for c in COLOURS), len(methods)), strict=True))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lidc-xai", "font.size": 9}):
        picture = Figure(figsize=(4.2 * len(panels) + 2.4, 2.9 * len(outputs) + 0.4), layout="constrained")
        grid = picture.subplots(len(outputs), len(panels), squeeze=False, sharex=True, sharey="row")
        for r, output in enumerate(outputs):
            for c, (metric, title) in enumerate(panels):
                _panel(grid[r][c], drawn[metric][drawn[metric]["output"] == output], looks)
                if figure.zero:
                    grid[r][c].axhline(0, color="#999999", linewidth=0.6)
                grid[r][c].set_title(f"{output}: {title}" if output else title)
                grid[r][c].set_ylabel(figure.y if c == 0 else "")
                grid[r][c].set_xlabel(figure.x if r == len(outputs) - 1 else "")
        handles, labels = grid[0][0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside right upper", frameon=False)
        text = StringIO()
        picture.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _panel(axes: Axes, curves: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    for method, (colour, dashes) in looks.items():
        curve = curves[curves["method"] == method].sort_values("x")
        axes.plot(curve["x"], curve["mean"], color=colour, linestyle=dashes, linewidth=1.3, label=method)
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.12, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
