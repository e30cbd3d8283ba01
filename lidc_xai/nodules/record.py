"""What a model's own record (``training_info`` in ``model.json``) says of it: whom it has seen, how often it was right,
what goes with a high rating, what its own diameter alone gives, what it says of crops without a nodule.

A single nodule of one's own has no cohort: what its page has to say of the model is measured once and kept there. No
torch: pages ask this too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lidc_xai.errors import ModelError
from lidc_xai.ratings import BIOMARKERS, EVEN_CHANCE

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

ANCHORS, NOISE, ASSOCIATIONS = "map_anchors", "map_noise", "associations"
"""Fields by method and output, of associations by "malignancy" and biomarker."""
UNSEEN, OWN_SIZE, NO_NODULE = "unseen", "own_size", "no_nodule"
FEWEST = 20
"""Nodules below which a percentile, a share or a correlation says nothing."""
SURE = 0.3
"""A probability this far from one half is a clear verdict."""
_COLUMNS = ("nodule_id", "patient_id", "fold", "label", "malignancy_probability")


def known_patients(training_info: Mapping[str, Any] | None) -> set[str]:
    """Patients that a model learned from or that chose its epoch and calibration; none where it has no such record.

    >>> sorted(known_patients({"train_patients": ["P2"], "validation_patients": ["P1"]}))
    ['P1', 'P2']
    """
    info = training_info or {}
    return {str(patient) for part in ("train_patients", "validation_patients") for patient in info.get(part) or ()}


def recorded(training_info: Mapping[str, Any] | None, field: str, kind: Callable[..., T]) -> T | None:
    """``training_info[field]``, which holds the fields of a ``kind``; None where it is absent.

    Raises ``ModelError`` for a damaged record.

    >>> recorded({"size": {"real": 1.0}}, "size", complex), recorded({}, "size", complex)
    ((1+0j), None)
    """
    held = (training_info or {}).get(field)
    try:
        return None if held is None else kind(**held)
    except TypeError as error:
        raise ModelError(f"model.json: training_info.{field} is damaged ({error}); delete that field") from error


def by_method_and_output(
    training_info: Mapping[str, Any], field: str, kind: Callable[..., T]
) -> dict[str, dict[str, T]]:
    """``training_info[field]``, which holds the fields of a ``kind`` by method and output; empty where it is absent.

    Raises ``ModelError`` for a damaged record.

    >>> by_method_and_output({"sizes": {"cdam": {"margin": {"real": 1.0}}}}, "sizes", complex)
    {'cdam': {'margin': (1+0j)}}
    """
    try:
        return {
            str(method): {str(output): kind(**values) for output, values in outputs.items()}
            for method, outputs in (training_info.get(field) or {}).items()
        }
    except (AttributeError, TypeError) as error:
        raise ModelError(f"model.json: training_info.{field} is damaged ({error}); delete that field") from error


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
        p = rated["malignancy_probability"].astype("float64").clip(1e-12, 1 - 1e-12)
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
    return recorded(training_info, UNSEEN, Unseen)


@dataclass(frozen=True)
class OwnSize:
    """Log odds of a readers' median above 3 by the predicted diameter: ``intercept`` + ``slope`` (per mm), over
    ``nodules`` nodules that their models had not seen. Fitted as the baseline of the readers' diameter is.
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

    if not by_patient(tables, ("nodule_id", "fold", "label", "diameter")):
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
    return recorded(training_info, OWN_SIZE, OwnSize)


@dataclass(frozen=True)
class Association:
    """Association, never cause: both are outputs of one model.

    Spearman's ``rho`` of a predicted biomarker with the predicted malignancy probability over ``nodules`` nodules,
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
    return by_method_and_output(training_info or {}, ASSOCIATIONS, Association).get("malignancy", {})


@dataclass(frozen=True)
class NoNodule:
    """Of ``crops`` without a nodule of ``patients`` that the model never saw, the share with a clear verdict, with its
    95 % interval by patient. A model of nodules answers whatever it is shown: it was never taught that there may be
    none.
    """

    crops: int
    patients: int
    clear: float
    low: float
    high: float


def recorded_no_nodule(training_info: Mapping[str, Any] | None) -> NoNodule | None:
    """What a model's record holds; None where it was not measured. ``ModelError`` for a damaged record.

    >>> info = {"no_nodule": {"crops": 200, "patients": 90, "clear": 0.67, "low": 0.59, "high": 0.74}}
    >>> recorded_no_nodule(info).clear, recorded_no_nodule({})
    (0.67, None)
    """
    return recorded(training_info, NO_NODULE, NoNodule)
