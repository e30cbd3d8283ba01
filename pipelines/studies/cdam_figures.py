"""Pictures of the CDAM study: maps over photographs in rows, and CDAM against attention token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.benchmark.curves import COLOURS
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.explain import explain
from lidc_xai.files import atomic_path
from lidc_xai.imagenet.classifier import RANDOM, Classifier
from lidc_xai.imagenet.panel import overlay, strength

_CELL, _LETTERS = 1.75, 28  # inches of a map, letters of a heading's line above it


@dataclass(frozen=True)
class MapCell:
    """One map of a picture: ``heading`` above it, ``relevance`` (h, w) raw, ``method`` (decides the scale)."""

    heading: str
    relevance: np.ndarray
    method: str = "cdam"


@dataclass(frozen=True)
class MapRow:
    """``pixels`` (H, W, 3) uint8 as the model saw them, a label, and the maps beside it."""

    pixels: np.ndarray
    label: str
    maps: tuple[MapCell, ...]


def draw_map_rows(path: Path, rows: Sequence[MapRow], title: str, random: bool = False) -> None:
    """A PNG with a row per entry: the photograph, then its maps, each with its own scale below it."""
    columns = 1 + max(len(row.maps) for row in rows)
    height = _CELL * 1.28 * len(rows) + 0.6 + 0.25 * random
    figure = Figure(figsize=(_CELL * columns + 0.2, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        axes[r, 0].imshow(row.pixels)
        axes[r, 0].set_ylabel(row.label, fontsize=7)
        for c, cell in enumerate(row.maps, start=1):
            shown, scale = strength(cell.relevance, cell.method, row.pixels.shape[:2])
            axes[r, c].imshow(overlay(row.pixels, shown))
            axes[r, c].set_title(fill(cell.heading, _LETTERS), fontsize=7)
            axes[r, c].set_xlabel(scale, fontsize=6)
        for c in range(columns):
            axes[r, c].set_xticks([])
            axes[r, c].set_yticks([])
            axes[r, c].set_visible(c <= len(row.maps))
    figure.suptitle(title, fontsize=8)
    if random:
        figure.supxlabel(RANDOM.upper(), fontsize=8, color="crimson", fontweight="bold")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "lidc_xai"})


def attention_tokens(classifier: Classifier, images: Tensor, targets: Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Per image, class and token: attention and CDAM. Columns image, target (0, 1), token, attention, cdam."""
    found = explain(classifier.model, images, targets, ["attention", "cdam"])
    attention, cdam = (found[name].relevance.double().cpu().numpy() for name in ("attention", "cdam"))
    count, classes = cdam.shape[:2]
    tokens = int(np.prod(cdam.shape[2:]))
    image, target, token = np.indices((count, classes, tokens))
    return pd.DataFrame(
        {
            "image": np.asarray(names, dtype=object)[image.ravel()],
            "target": target.ravel(),
            "token": token.ravel(),
            "attention": attention.ravel(),
            "cdam": cdam.ravel(),
        }
    )


def attention_agreement(tokens: pd.DataFrame) -> pd.DataFrame:
    """Per image, mean over its classes: ``spearman`` of |CDAM| with attention over the tokens, and ``low``, the share
    of Σ|CDAM| on the tenth of the tokens with the least attention."""
    rows = []
    for (image, _), own in tokens.groupby(["image", "target"], sort=False):
        size = own["cdam"].abs()
        order = np.argsort(own["attention"].to_numpy(), kind="stable")[: len(own) // 10]
        rows.append(
            {
                "image": image,
                "spearman": float(spearman(size, own["attention"])),
                "low": float(size.to_numpy()[order].sum() / size.sum()),
            }
        )
    return pd.DataFrame(rows).groupby("image", sort=False)[["spearman", "low"]].mean().reset_index()


def draw_attention(path: Path, tokens: pd.DataFrame, title: str) -> None:
    """Figure S1: every token's CDAM by its attention, and how the two rank the tokens alike."""
    figure = Figure(figsize=(8.4, 3.7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for target, label in ((0, "first class"), (1, "second class")):
        own = tokens[tokens["target"] == target]
        if len(own):
            left.plot(own["attention"], own["cdam"], ".", ms=2.5, alpha=0.5, color=COLOURS[target], label=label)
    left.axhline(0, color="#999999", lw=0.6)
    left.set_xlabel("attention of the class token to the patch", fontsize=9)
    left.set_ylabel("CDAM of the patch", fontsize=9)
    left.legend(fontsize=8, markerscale=3)
    agreement = attention_agreement(tokens)["spearman"].dropna()
    right.hist(agreement, bins=np.linspace(-1, 1, 41).tolist(), color=COLOURS[0])
    found = bootstrap_mean(agreement)
    right.set_title(f"mean {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], n = {found.n}", fontsize=8)
    right.set_xlabel("Spearman, |CDAM| with attention", fontsize=9)
    right.set_ylabel("images", fontsize=9)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "lidc_xai"})


def draw_curves(path: Path, curves: pd.DataFrame, title: str) -> None:
    """``path``.png and .csv: mean MIF and LIF curves and box correlations (columns metric, method, x, value)."""
    write_csv(path.with_name(f"{path.name}.csv"), curves)
    figure = Figure(figsize=(14, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("fidelity/mif", "most important first", "% of pixels blurred", "score of the class"),
        ("fidelity/lif", "least important first", "% of pixels blurred", ""),
        ("box/correlation", "box sensitivity", "side of the box, px", "Pearson"),
    )
    methods = list(dict.fromkeys(curves["method"]))
    for axis, (metric, heading, x, y) in zip(figure.subplots(1, 3), panels, strict=True):
        for m, method in enumerate(methods):
            own = curves[(curves["metric"] == metric) & (curves["method"] == method)].sort_values("x")
            style = "-" if m < len(COLOURS) else "--"
            axis.plot(own["x"], own["value"], style, lw=1.4, color=COLOURS[m % len(COLOURS)], label=method)
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel(x, fontsize=8)
        axis.set_ylabel(y, fontsize=8)
        axis.tick_params(labelsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(title, fontsize=9)
    with atomic_path(path.with_name(f"{path.name}.png")) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "lidc_xai"})
