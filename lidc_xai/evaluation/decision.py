"""Decision curve: whether acting on a probability does more good than acting on all, or on none.

Net benefit at a threshold t (Vickers and Elkin, Medical Decision Making 2006): TP/n − FP/n · t / (1 − t), where a case
counts as positive from a probability of t on. Acting on all has the net benefit of calling every case positive; acting
on none has 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

THRESHOLDS = tuple(np.round(np.arange(0.05, 0.96, 0.05), 2).tolist())


def decision_curve(label: ArrayLike, probability: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """Columns threshold, model, all: net benefit per threshold. Cases without a label or probability are left out.

    >>> float(decision_curve([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], [0.5])["model"].iloc[0])
    0.5
    """
    labels, chances = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    known = np.isfinite(labels) & np.isfinite(chances)
    positive, chances = labels[known] > 0.5, chances[known]
    rows = []
    for threshold in thresholds:
        odds = threshold / (1 - threshold)
        called = chances > threshold
        model = float((called & positive).sum() - (called & ~positive).sum() * odds) / max(len(positive), 1)
        everyone = float(positive.sum() - (~positive).sum() * odds) / max(len(positive), 1)
        rows.append({"threshold": float(threshold), "model": model, "all": everyone})
    return pd.DataFrame(rows, columns=["threshold", "model", "all"])
