"""From the benchmark's rows to tables: one mean with its interval per method, output and metric; comparisons; curves.

Planes of a case are averaged first, then outputs where a table joins them; the bootstrap draws whole clusters
(patients).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lidc_xai.evaluation.statistics import (
    EXACT,
    RESAMPLES,
    bootstrap_curve,
    compare_methods,
    exact_share,
)

ALL_OUTPUTS = "all outputs"
_SHARES = ("/pointing", "/pointing_2mm", "/increase")
"""Metrics that are 0 or 1 on every plane: their means are shares."""
SUMMARY_COLUMNS = [
    "metric", "method", "output", "group", "mean", "low", "high", "n", "clusters", "undefined", "note",
]  # fmt: skip
CURVE_COLUMNS = ["method", "output", "x", "mean", "low", "high", "n"]
KEYS = ("case", "cluster", "group", "method", "output", "metric")
HEADLINES = (
    "fidelity/area", "fidelity_lung/area", "box/area", "box_lung/area", "discrimination/fidelity", "discrimination/box",
    "compactness/value", "adcc/adcc", "localisation/auprc", "causes/auprc",
)  # fmt: skip
"""One figure of each metric, for whether metrics agree on which method is better."""


def figures(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case, method, output and metric: value (mean over planes), defined planes, planes, note."""
    scalars = rows[rows["x"].isna()]
    keys = [scalars[name].astype(str) for name in KEYS]
    noted = scalars["note"].astype(str)
    table = scalars.assign(defined=np.isfinite(scalars["value"]), noted=noted.where(noted != "", None))
    grouped = table.groupby(keys, sort=False)
    means = grouped.agg(value=("value", "mean"), defined=("defined", "sum"), planes=("value", "size"))
    return means.assign(note=grouped["noted"].first().fillna("")).reset_index()


def summarise(
    per_case: pd.DataFrame,
    *,
    outputs: Iterable[str] | None = None,
    by_group: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean and 95 % interval per method, output and metric (and group); outputs are also joined as "all outputs".

    ``outputs``: those to keep. Columns: metric, method, output, (group,) mean, low, high, n, clusters, undefined, note;
    n counts cases with a value, undefined those without.
    """
    if outputs is not None:
        per_case = per_case[per_case["output"].isin([*outputs, ""])]
    named = per_case[per_case["output"] != ""]
    several = named.groupby("metric")["output"].transform("nunique") > 1
    joined = (
        named[several]
        .groupby([k for k in KEYS if k != "output"], sort=False, as_index=False)
        .agg(value=("value", "mean"), note=("note", "max"))
    )
    parts = pd.concat([per_case, joined.assign(output=ALL_OUTPUTS)], ignore_index=True)
    keys = ["metric", *(["group"] if by_group else [])]
    summaries = [_summary_of(of_metric, resamples, seed) for _, of_metric in parts.groupby(keys, sort=False)]
    if not summaries:
        return pd.DataFrame(columns=SUMMARY_COLUMNS)
    table = pd.concat(summaries, ignore_index=True)
    return table if by_group else table.drop(columns="group")


def _summary_of(of_metric: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """The rows of one metric (and group): every method and output is drawn with the same patients."""
    columns = ["method", "output"]
    wide = of_metric.pivot_table(
        index=["case", "cluster"], columns=columns, values="value", aggfunc="mean", sort=False, dropna=False
    )
    noted = of_metric.assign(note=of_metric["note"].where(of_metric["note"] != "", None))
    rows = noted.groupby(columns, sort=False).agg(rows=("value", "size"), note=("note", "first"))
    rows["note"] = rows["note"].fillna("")
    wide = wide.reindex(columns=rows.index)
    clusters = _labels(wide.index.get_level_values("case"), wide.index.get_level_values("cluster"))
    means = bootstrap_curve(wide.to_numpy(), clusters, resamples=resamples, seed=seed)
    codes = pd.factorize(np.asarray(clusters, dtype=object))[0]
    defined = np.isfinite(wide.to_numpy())
    means["clusters"] = [len(set(codes[column])) for column in defined.T]
    means["undefined"] = rows["rows"].to_numpy() - means["n"].to_numpy()
    why = np.where(means["n"] == 0, "undefined for every sample", "")
    why = np.where((means["n"] > 0) & (means["clusters"] < 2), "no interval from a single patient", why)
    alike = means["mean"].isin([0.0, 1.0]) & (means["clusters"] > 1) & of_metric["metric"].iloc[0].endswith(_SHARES)
    for place in np.flatnonzero(alike):
        means.loc[place, ["low", "high"]] = exact_share(means["mean"][place], means["clusters"][place])
    why = np.where(alike, EXACT, why)
    means["note"] = ["; ".join(text for text in (a, b) if text) for a, b in zip(why, rows["note"], strict=True)]
    names = rows.index.to_frame(index=False)
    names.insert(0, "metric", of_metric["metric"].iloc[0])
    names["group"] = of_metric["group"].iloc[0]
    return pd.concat([names, means], axis=1)[SUMMARY_COLUMNS]


def comparisons(
    per_case: pd.DataFrame,
    metric: str,
    output: str = ALL_OUTPUTS,
    *,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences between methods on ``metric`` (all pairs, or against ``reference``), Holm-corrected.

    Cases where either is undefined are left out of that pair and counted.
    """
    chosen = per_case[per_case["metric"] == metric]
    if output != ALL_OUTPUTS:
        chosen = chosen[chosen["output"] == output]
    wide = chosen.pivot_table(index=["case", "cluster"], columns="method", values="value", aggfunc="mean", sort=False)
    clusters = _labels(wide.index.get_level_values("case"), wide.index.get_level_values("cluster"))
    return compare_methods(wide, clusters, reference=reference, resamples=resamples, seed=seed)


def curves(rows: pd.DataFrame, metric: str, *, outputs: Iterable[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean curve with a 95 % band per method and output: method, output, x, mean, low, high, n."""
    points = rows[(rows["metric"] == metric) & rows["x"].notna()]
    if outputs is not None:
        points = points[points["output"].isin(list(outputs))]
    keys = [points[name].astype(str) for name in ("method", "output", "case", "cluster")]
    wide = points.groupby([*keys, "x"], sort=False)["value"].mean().unstack("x").sort_index(axis="columns")
    parts = []
    for names, some in wide.groupby(level=["method", "output"], sort=False):
        some = some.dropna(axis="columns", how="all")
        if some.empty:
            continue
        clusters = _labels(some.index.get_level_values("case"), some.index.get_level_values("cluster"))
        table = bootstrap_curve(some.to_numpy(), clusters, seed=seed)
        table.insert(0, "x", some.columns.to_numpy(dtype=np.float64))
        table.insert(0, "output", str(names[1]))
        table.insert(0, "method", str(names[0]))
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=CURVE_COLUMNS)


def _labels(cases: Iterable[object], clusters: Iterable[object]) -> list[str]:
    """A case without a cluster is one of its own."""
    return [str(cluster) or f"case {case}" for case, cluster in zip(cases, clusters, strict=True)]
