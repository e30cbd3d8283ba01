"""Do metrics agree on which method is better, and how sure is a mean of more patients?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lidc_xai.errors import DataError
from lidc_xai.evaluation.benchmark.options import DISC, RANDOM_WEIGHTS, READERS
from lidc_xai.evaluation.statistics import RESAMPLES


def metric_correlations(per_case: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spearman correlation between metrics over methods × cases × outputs, and the counts behind it.

    Each case's mean over methods is taken off first: whether metrics agree on which method is better, not on which
    image is easy.
    """
    ranked = per_case[per_case["metric"].isin(list(metrics)) & ~per_case["method"].str.endswith(RANDOM_WEIGHTS)]
    ranked = ranked[~ranked["method"].isin([DISC, READERS])]
    centred = ranked.assign(
        value=ranked["value"] - ranked.groupby(["case", "output", "metric"])["value"].transform("mean")
    )
    wide = centred.pivot_table(index=["case", "output", "method"], columns="metric", values="value", aggfunc="mean")
    return rank_correlations(wide.reindex(columns=list(metrics)))


def rank_correlations(table: pd.DataFrame, minimum: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spearman correlation between the columns of ``table`` over the rows where both are defined, and those counts.

    NaN where fewer than ``minimum`` rows are left or a column is constant there; the diagonal is 1 where defined.
    """
    known = table.astype(np.float64).where(lambda values: np.isfinite(values))
    there = known.notna().astype(int)
    return known.corr(method="spearman", min_periods=minimum), there.T @ there


def precision_by_samples(
    values: ArrayLike, sizes: Sequence[int], clusters: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """How the interval would narrow with more samples: mean interval of ``sizes`` clusters drawn from those at hand.

    Columns: clusters, low, high, half_width. The half-width at the present number is what the tables show.
    """
    table = pd.DataFrame({"value": np.asarray(values, dtype=np.float64), "cluster": list(clusters)}).dropna()
    if table.empty:
        raise DataError("precision by number of samples: every value is undefined")
    sums, counts = table.groupby("cluster")["value"].agg(["sum", "count"]).to_numpy(dtype=np.float64).T
    rows = []
    for size in sizes:
        weights = np.random.default_rng(seed).multinomial(size, np.full(len(sums), 1 / len(sums)), resamples)
        low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
        rows.append({"clusters": size, "low": low, "high": high, "half_width": (high - low) / 2})
    return pd.DataFrame(rows)
