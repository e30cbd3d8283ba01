"""Which predicted biomarkers go with a high predicted malignancy rating, over a cohort: association, never cause.

Both are outputs of one model, so that this says how its answers hang together; whether one drove the other is not in
it. Kept in ``model.json``, because a single nodule of one's own has no cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.nodules.known import by_method_and_output
from lidc_xai.nodules.strength import FEWEST
from lidc_xai.ratings import BIOMARKERS

if TYPE_CHECKING:
    import pandas as pd

RECORD = "associations"
"""Field of a model's ``training_info``: "malignancy" -> biomarker -> ``Association``."""


@dataclass(frozen=True)
class Association:
    """Spearman's ``rho`` of a predicted biomarker with the predicted malignancy probability over ``nodules`` nodules,
    and the lower and upper quartile of the predicted biomarker (``low``, ``high``).
    """

    rho: float
    low: float
    high: float
    nodules: int


def associations(predictions: pd.DataFrame | None) -> dict[str, Association]:
    """Biomarker -> its association with malignancy in a table of predictions; empty below ``FEWEST`` nodules.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"malignancy_probability": np.linspace(0, 1, 40), "diameter": np.linspace(4, 30, 40)})
    >>> associations(table)["diameter"].rho
    1.0
    """
    from scipy.stats import spearmanr

    by_output: dict[str, Association] = {}
    if predictions is None or "malignancy_probability" not in predictions:
        return by_output
    for name in BIOMARKERS:
        column = "p_calcified" if name == "calcification" else name
        if column not in predictions:
            continue
        both = predictions[["malignancy_probability", column]].astype("float64").dropna().to_numpy()
        if len(both) < FEWEST or np.ptp(both, axis=0).min() == 0:
            continue
        low, high = np.percentile(both[:, 1], [25, 75])
        rho = float(spearmanr(both[:, 0], both[:, 1]).statistic)
        by_output[name] = Association(round(rho, 4), float(low), float(high), len(both))
    return by_output


def recorded_associations(training_info: Mapping[str, Any] | None) -> dict[str, Association]:
    """What a model's record holds; empty where it holds none. ``ModelError`` for a damaged record."""
    return by_method_and_output(training_info or {}, RECORD, Association).get("malignancy", {})
