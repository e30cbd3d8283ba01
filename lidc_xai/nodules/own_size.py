"""What the diameter that a model predicts would alone make of its malignancy rating, for the pages it is shown on.

The line is fitted on a cross-validation's predictions, as the baseline of the readers' diameter is, and kept in the
model's record, because the page of a single nodule has no cohort. Of several runs it is that of their mean diameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.nodules.known import recorded
from lidc_xai.nodules.strength import FEWEST
from lidc_xai.nodules.unseen import by_patient

if TYPE_CHECKING:
    import pandas as pd

RECORD = "own_size"
"""Field of a model's ``training_info`` that holds the line."""
_COLUMNS = ("nodule_id", "fold", "label", "diameter")


@dataclass(frozen=True)
class OwnSize:
    """Log odds of a readers' median above 3 by the predicted diameter: ``intercept`` + ``slope`` (per mm), over
    ``nodules`` nodules that their models had not seen.
    """

    intercept: float
    slope: float
    nodules: int

    def probability(self, diameter_mm: float) -> float:
        """What a predicted diameter alone gives.

        >>> OwnSize(intercept=-5.0, slope=0.5, nodules=700).probability(10.0)
        0.5
        """
        return 0.5 * (1 + math.tanh((self.intercept + self.slope * diameter_mm) / 2))


def own_size(tables: Sequence[pd.DataFrame]) -> OwnSize | None:
    """The line of the mean of several cross-validations' diameters on the labelled nodules that all of them have.

    None where a table is no cross-validation by patient, below ``FEWEST`` nodules, and where one label is absent.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"nodule_id": range(40), "fold": 0, "diameter": range(40), "label": [0] * 20 + [1] * 20})
    >>> round(own_size([table]).probability(19.5), 3)
    0.5
    """
    import pandas as pd

    from lidc_xai.training.baselines import diameter_line

    if not by_patient(tables, _COLUMNS):
        return None
    diameters: list[pd.Series] = []
    for number, table in enumerate(tables):
        rated = table.dropna(subset=["label", "diameter"]).set_index("nodule_id")
        diameters.append(rated["diameter"].astype("float64").rename(number))
    both = pd.concat(diameters, axis=1, join="inner")
    label = tables[0].set_index("nodule_id").loc[both.index, "label"].astype("float64").to_numpy()
    if len(both) < FEWEST or len(np.unique(label)) < 2:
        return None
    intercept, slope = diameter_line(both.mean(axis=1).to_numpy(), label)
    return OwnSize(round(intercept, 4), round(slope, 4), len(both))


def recorded_own_size(training_info: Mapping[str, Any] | None) -> OwnSize | None:
    """What a model's record holds; None where it holds none. ``ModelError`` for a damaged record."""
    return recorded(training_info, RECORD, OwnSize)
