"""Charts of a cohort's report, from the metrics of ``evaluate_predictions`` and mean profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from lidc_xai.ratings import BIOMARKERS
from lidc_xai.reporting.cohort.figures import size_of
from lidc_xai.reporting.plots import COLOURS, GREY, Chart, limits
from lidc_xai.reporting.values import number, show

_NAN = float("nan")


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of nodules rated malignant against the mean probability, per bin, with the number of nodules below."""
    chart = Chart((0, 1), (0, 1), "mean probability of the bin", "share rated above 3", "Reliability diagram", 320, 300)
    chart.line([0, 1], [0, 1], GREY, dash="3 3")
    largest = max((row["nodules"] for row in bins), default=0) or 1
    for row in bins:
        if row["nodules"]:
            chart.bar(row["from"] + 0.005, row["to"] - 0.005, 0.18 * row["nodules"] / largest, GREY)
    for row in bins:
        mean, share = number(row, "mean_probability"), number(row, "share_positive")
        if mean is None or share is None:
            continue
        low, high = number(row, "low"), number(row, "high")
        chart.whisker(mean, _NAN if low is None else low, _NAN if high is None else high, COLOURS[0])
        chart.dot(mean, share, COLOURS[0], 3.6, f"{row['nodules']} nodules, {share:.2f} rated above 3")
    return chart.svg()


def strata_chart(metrics: Mapping[str, Any], figure: str, title: str) -> Markup:
    """One figure by size of the nodule, the model beside what the diameter alone reaches."""
    strata = [name for name in metrics["malignancy"] if isinstance(metrics["malignancy"][name], Mapping)]
    series: list[tuple[str, tuple[str, ...], str]] = [("model", ("malignancy",), COLOURS[0])]
    if size_of(metrics, "baselines", "diameter_only", "malignancy", "all", figure):
        series.append(("diameter alone", ("baselines", "diameter_only", "malignancy"), COLOURS[1]))
    values = [size_of(metrics, *path, name, figure) for _, path, _ in series for name in strata]
    ends = [end for value in values if value for end in value.values() if end is not None]
    chart = Chart(
        (-0.6, len(strata) - 0.4), (max(0.0, limits(ends)[0]), min(1.02, limits(ends)[1])), "", title,
        f"{title} by size", 380, 240, x_ticks=[], names=len(series),
    )  # fmt: skip
    for shift, (label, path, colour) in zip((-0.1, 0.1), series, strict=False):
        chart.line([], [], colour, label)
        for place, name in enumerate(strata):
            size = size_of(metrics, *path, name, figure)
            if size is None:
                continue
            low, high = (_NAN if size[end] is None else size[end] for end in ("low", "high"))
            chart.whisker(place + shift, low, high, colour)
            chart.dot(place + shift, size["value"], colour, 3.6, f"{label}, {name}: {show(size['value'], 3)}")
    for place, name in enumerate(strata):
        chart.words(place, name)
    return chart.svg()


def decision_chart(curve: pd.DataFrame) -> Markup:
    """Net benefit by threshold: the model, acting on all, acting on none."""
    at, model, everyone = (curve[name].to_numpy(dtype=np.float64) for name in ("threshold", "model", "all"))
    low = min(-0.05, float(model.min()))
    chart = Chart((0, 1), (low, float(max(model.max(), everyone.max())) * 1.1 + 0.02), "threshold of the probability",
                  "net benefit (per nodule)", "Decision curve", 320, 300, names=3)  # fmt: skip
    chart.line(at.tolist(), model.tolist(), COLOURS[0], "model")
    chart.line(at.tolist(), np.where(everyone >= low, everyone, np.nan).tolist(), COLOURS[1], "all", "5 3")
    chart.line([0, 1], [0, 0], GREY, "none", "2 2")
    return chart.svg()


def biomarker_chart(metrics: Mapping[str, Any]) -> Markup:
    """MSE (standardised) of every biomarker beside the diameter's and the floor that readers' disagreement sets."""
    names = [name for name in BIOMARKERS if name in metrics.get("biomarkers", {})]
    errors = {name: size_of(metrics, "biomarkers", name, "mse_z") for name in names}
    alone = {name: size_of(metrics, "baselines", "diameter_only", "biomarkers", name, "mse_z") for name in names}
    floors = {name: number(metrics.get("reader_noise", {}).get(name, {}), "floor_mse_z") for name in names}
    ends = [end for one in (*errors.values(), *alone.values()) if one for end in one.values() if end is not None]
    top = max([1.0, *ends]) * 1.05
    chart = Chart((-0.6, len(names) - 0.4), (0, top), "", "MSE, standardised", "Error of every biomarker", 560, 260,
                  x_ticks=[], names=3)  # fmt: skip
    for label, colour in (("model", COLOURS[0]), ("diameter alone", COLOURS[1]), ("readers’ own noise", GREY)):
        chart.line([], [], colour, label)
    for place, name in enumerate(names):
        floor = floors[name]
        if floor is not None:
            chart.line([place - 0.3, place + 0.3], [floor, floor], GREY)
        for shift, series, colour in ((-0.1, errors, COLOURS[0]), (0.12, alone, COLOURS[1])):
            value = series[name]
            if value is None:
                continue
            low, high = (_NAN if value[end] is None else value[end] for end in ("low", "high"))
            chart.whisker(place + shift, low, high, colour)
            chart.dot(place + shift, value["value"], colour, 3.4, f"{name}: {show(value['value'], 3)}")
        chart.words(place, name)
    return chart.svg()


def profile_chart(output: str, curve: pd.DataFrame) -> Markup:
    """Mean relevance of an output's map by distance from the outline of the nodule."""
    x = curve["distance_mm"].to_numpy(dtype=np.float64)
    low, high, mean = (curve[name].to_numpy(dtype=np.float64) for name in ("low", "high", "mean"))
    largest = max(abs(end) for end in limits(low, high, mean))
    chart = Chart(
        (float(x.min()), float(x.max())), (-largest, largest), "mm from the outline", "relevance / max",
        f"Radial profile of {output}", 260, 180,
    )  # fmt: skip
    chart.rule(x=0)
    chart.rule(y=0)
    chart.band(x.tolist(), low.tolist(), high.tolist(), COLOURS[0])
    chart.line(x.tolist(), mean.tolist(), COLOURS[0])
    return chart.svg()
