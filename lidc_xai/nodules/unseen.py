"""How often a model sides with the readers on nodules of patients that it had not seen, for the pages it is shown on.

Measured on a cross-validation's predictions and kept in the model's record, because the page of a single nodule has
no cohort. Of several runs it is the accuracy of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.nodules.known import recorded
from lidc_xai.nodules.strength import FEWEST
from lidc_xai.ratings import EVEN_CHANCE

if TYPE_CHECKING:
    import pandas as pd

RECORD = "unseen"
"""Field of a model's ``training_info`` that holds the figures."""
_COLUMNS = ("nodule_id", "patient_id", "fold", "label", "malignancy_probability")
_SUREST = 1e-12


@dataclass(frozen=True)
class Unseen:
    """Of ``nodules`` of ``patients``, the share on whose malignancy label the model was right, with its 95 % interval
    by patient.
    """

    nodules: int
    patients: int
    right: float
    low: float
    high: float


def unseen_accuracy(tables: Sequence[pd.DataFrame]) -> Unseen | None:
    """Accuracy of the mean (of logits) of several cross-validations' predictions on the nodules that all of them have.

    None where a table is no cross-validation by patient, or where fewer than ``FEWEST`` nodules have a label.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"nodule_id": range(40), "patient_id": range(40), "fold": 0, "label": [0, 1] * 20})
    >>> table["malignancy_probability"] = [0.1, 0.9] * 18 + [0.9, 0.1] * 2
    >>> unseen_accuracy([table]).right
    0.9
    """
    import pandas as pd

    from lidc_xai.evaluation.statistics import share_interval

    if not by_patient(tables, _COLUMNS):
        return None
    logits: list[pd.Series] = []
    for table in tables:
        rated = table.dropna(subset=["label", "malignancy_probability"]).set_index("nodule_id")
        p = rated["malignancy_probability"].astype("float64").clip(_SUREST, 1 - _SUREST)
        logits.append(pd.Series(np.log(p) - np.log1p(-p), name=len(logits)))
    both = pd.concat(logits, axis=1, join="inner")
    if len(both) < FEWEST:
        return None
    known = tables[0].set_index("nodule_id").loc[both.index]
    right = (both.mean(axis=1) > 0) == (known["label"].astype("float64") > EVEN_CHANCE)
    accuracy = share_interval(right.to_numpy(), known["patient_id"].tolist())
    return Unseen(
        len(both), int(accuracy.clusters), round(accuracy.mean, 4), round(accuracy.low, 4), round(accuracy.high, 4)
    )


def by_patient(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> bool:
    """Whether there are tables, and each is a cross-validation by patient that has these columns."""
    return bool(tables) and not any(
        ("split_kind" in table and (table["split_kind"] == "paper").any()) or not set(columns) <= set(table)
        for table in tables
    )


def recorded_unseen(training_info: Mapping[str, Any] | None) -> Unseen | None:
    """What a model's record holds; None where it was not measured. ``ModelError`` for a damaged record."""
    return recorded(training_info, RECORD, Unseen)
