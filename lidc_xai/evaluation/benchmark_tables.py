"""From the benchmark's rows to tables: one mean with its interval per method, output and metric; comparisons; text.

Planes of a case are averaged first, then outputs where a table joins them; the bootstrap draws whole clusters (patients).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lidc_xai.evaluation.benchmark_options import DISC, RANDOM_WEIGHTS, READERS
from lidc_xai.evaluation.statistics import (
    RESAMPLES,
    bootstrap_curve,
    bootstrap_mean,
    compare_methods,
    rank_correlations,
)

ALL_OUTPUTS = "all outputs"
KEYS = ("case", "cluster", "group", "method", "output", "metric")


@dataclass(frozen=True)
class Layout:
    """A table: title, its columns as (metric, heading, higher is better, None: neither), what it is about."""

    title: str
    columns: tuple[tuple[str, str, bool | None], ...]
    about: str


LAYOUTS = (
    Layout(
        "Correctness",
        (
            ("fidelity/area_mif", "A MIF", False),
            ("fidelity/area_lif", "A LIF", True),
            ("fidelity/area", "A LIF − A MIF", True),
            ("box/area", "A box", True),
            ("fidelity/at_stake", "f(x) − f(all replaced)", None),
        ),
        "Score × percent of pixels removed (blurred); box: Pearson × box side in units of 8 px at 224.",
    ),
    Layout(
        "Correctness, removed pixels become lung",
        (
            ("fidelity_lung/area_mif", "A MIF", False),
            ("fidelity_lung/area_lif", "A LIF", True),
            ("fidelity_lung/area", "A LIF − A MIF", True),
            ("box_lung/area", "A box", True),
            ("fidelity_lung/at_stake", "f(x) − f(all replaced)", None),
        ),
        "The same, with the parenchyma around the nodule in place of the blurred image.",
    ),
    Layout(
        "Class discrimination",
        (
            ("discrimination/fidelity", "Δ fidelity", True),
            ("discrimination/box", "Δ box", True),
            ("discrimination_lung/fidelity", "Δ fidelity (lung)", True),
            ("discrimination_lung/box", "Δ box (lung)", True),
        ),
        "Own map minus other maps, both on the own output. A map that ignores the class scores exactly 0.",
    ),
    Layout(
        "Compactness",
        (("compactness/value", "share below 5 %", True), ("compactness/on_grid", "the same, patch means", True)),
        "Share of cells with |S| < 0.05 max S: pixels for pixel maps, tokens for token maps.",
    ),
    Layout(
        "ADCC",
        (
            ("adcc/adcc", "ADCC", True),
            ("adcc/average_drop", "average drop", False),
            ("adcc/coherency", "coherency", True),
            ("adcc/complexity", "complexity", False),
            ("adcc/increase", "increase in confidence", True),
        ),
        "Outputs with a probability only. The centred disc does not look at the image: its coherency is 1 by construction.",
    ),
    Layout(
        "Deletion, insertion, Sensitivity-n",
        (
            ("deletion/area_deletion", "deletion", False),
            ("deletion/area_insertion", "insertion", True),
            ("sensitivity_n/mean", "Sensitivity-n", True),
        ),
        "Deletion and insertion: area of the probability (raw output of a regression) over the share of cells.",
    ),
    Layout(
        "Localisation against the consensus",
        (
            ("localisation/positive_mass", "positive mass", True),
            ("localisation/absolute_mass", "absolute mass", True),
            ("localisation/rank_accuracy", "rank accuracy", True),
            ("localisation/iou", "IoU", True),
            ("localisation/auprc", "AUPRC", True),
            ("localisation/pointing", "pointing", True),
            ("localisation/pointing_2mm", "pointing, 2 mm", True),
        ),
        "Agreement with the readers' contours; it does not prove that a map is faithful.",
    ),
    Layout(
        "Localisation against single readers",
        (
            ("readers/positive_mass", "positive mass", True),
            ("readers/rank_accuracy", "rank accuracy", True),
            ("readers/iou", "IoU", True),
            ("readers/auprc", "AUPRC", True),
        ),
        "Mean over the readers who marked the plane.",
    ),
    Layout(
        "Known causes",
        (
            ("causes/positive_mass", "positive mass", True),
            ("causes/absolute_mass", "absolute mass", True),
            ("causes/rank_accuracy", "rank accuracy", True),
            ("causes/auprc", "AUPRC", True),
            ("causes/pointing_2mm", "pointing, 2 mm", True),
        ),
        "Simulated CT: the voxels that carry the rating are known. Maps are read with the sign of the cause.",
    ),
    Layout(
        "Radial zones",
        (("radial/body", "body", None), ("radial/edge", "edge", None), ("radial/outside", "outside", None)),
        "Mean relevance, scaled by the case's largest, inside the nodule, at its boundary and around it.",
    ),
    Layout(
        "Sanity",
        (
            ("randomisation/spearman", "random weights: ρ", False),
            ("randomisation/spearman_abs", "random weights: ρ of |S|", False),
            ("randomisation/ssim", "random weights: SSIM", False),
            ("noise/spearman", "input noise: ρ", True),
            ("runs/spearman", "other seed: ρ", True),
        ),
        "Similarity with the original map: low is right with random weights, high with noise or another seed.",
    ),
)


def figures(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case, method, output and metric: value (mean over planes), defined planes, planes, note."""
    scalars = rows[rows["x"].isna()]
    keys = [scalars[name].astype(str) for name in KEYS]
    noted = scalars["note"].astype(str)
    table = scalars.assign(defined=np.isfinite(scalars["value"]), noted=noted.where(noted != "", None))
    grouped = table.groupby(keys, sort=False)
    found = grouped.agg(value=("value", "mean"), defined=("defined", "sum"), planes=("value", "size"))
    return found.assign(note=grouped["noted"].first().fillna("")).reset_index()


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
        per_case = per_case[per_case["output"].isin(list(outputs))]
    several = per_case.groupby("metric")["output"].transform("nunique") > 1
    joined = (
        per_case[several]
        .groupby([k for k in KEYS if k != "output"], sort=False, as_index=False)
        .agg(value=("value", "mean"), note=("note", "first"))
    )
    parts = pd.concat([per_case, joined.assign(output=ALL_OUTPUTS)], ignore_index=True)
    keys = ["metric", "method", "output", *(["group"] if by_group else [])]
    rows = []
    for names, own in parts.groupby(keys, sort=False):
        found = bootstrap_mean(own["value"], _clusters(own), resamples=resamples, seed=seed)
        told = own.loc[own["note"] != "", "note"]
        note = "; ".join(text for text in (found.note, told.mode().iloc[0] if len(told) else "") if text)
        values = (found.mean, found.low, found.high, found.n, found.clusters, found.undefined, note)
        rows.append((*names, *values))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n", "clusters", "undefined", "note"])


def comparisons(
    per_case: pd.DataFrame, metric: str, output: str = ALL_OUTPUTS, *, reference: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Paired differences between methods on ``metric`` (all pairs, or against ``reference``), Holm-corrected.

    Cases where either is undefined are left out of that pair and counted.
    """
    own = per_case[per_case["metric"] == metric]
    if output != ALL_OUTPUTS:
        own = own[own["output"] == output]
    wide = own.pivot_table(index=["case", "cluster"], columns="method", values="value", aggfunc="mean", sort=False)
    clusters = _labels(wide.index.get_level_values("case"), wide.index.get_level_values("cluster"))
    return compare_methods(wide, clusters, reference=reference, seed=seed)


def metric_correlations(per_case: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spearman correlation between metrics over methods × cases × outputs, and the counts behind it.

    Each case's mean over methods is taken off first: whether metrics agree on which method is better, not on which
    image is easy.
    """
    own = per_case[per_case["metric"].isin(list(metrics)) & ~per_case["method"].str.endswith(RANDOM_WEIGHTS)]
    own = own[~own["method"].isin([DISC, READERS])]
    centred = own.assign(value=own["value"] - own.groupby(["case", "output", "metric"])["value"].transform("mean"))
    wide = centred.pivot_table(index=["case", "output", "method"], columns="metric", values="value", aggfunc="mean")
    return rank_correlations(wide.reindex(columns=list(metrics)))


def curves(rows: pd.DataFrame, metric: str, *, outputs: Iterable[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean curve with a 95 % band per method and output: method, output, x, mean, low, high, n."""
    own = rows[(rows["metric"] == metric) & rows["x"].notna()]
    if outputs is not None:
        own = own[own["output"].isin(list(outputs))]
    parts = []
    for (method, output), some in own.groupby(["method", "output"], observed=True, sort=False):
        wide = some.pivot_table(
            index=["case", "cluster"], columns="x", values="value", aggfunc="mean", observed=True, dropna=False
        ).dropna(how="all")
        if wide.empty:
            continue
        clusters = _labels(wide.index.get_level_values("case"), wide.index.get_level_values("cluster"))
        table = bootstrap_curve(wide.to_numpy(), clusters, seed=seed)
        table.insert(0, "x", wide.columns.to_numpy(dtype=np.float64))
        parts.append(table.assign(method=method, output=output))
    if not parts:
        return pd.DataFrame(columns=["method", "output", "x", "mean", "low", "high", "n"])
    return pd.concat(parts, ignore_index=True)[["method", "output", "x", "mean", "low", "high", "n"]]


def _clusters(own: pd.DataFrame) -> list[str]:
    return _labels(own["case"], own["cluster"])


def _labels(cases: Iterable[object], clusters: Iterable[object]) -> list[str]:
    """A case without a cluster is one of its own."""
    return [str(cluster) or f"case {case}" for case, cluster in zip(cases, clusters, strict=True)]
