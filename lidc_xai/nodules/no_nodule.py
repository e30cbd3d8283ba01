"""What a model says of crops that hold no nodule, as measured once and kept in its record.

A model of nodules answers whatever it is shown: it was never taught that there may be none. How often its answer is
clear all the same is a figure of the model, which a page of a crop without readers' contours has to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lidc_xai.nodules.known import recorded

RECORD = "no_nodule"
"""Field of a model's ``training_info`` that holds the figures."""
SURE = 0.3
"""A probability this far from one half is a clear verdict."""


@dataclass(frozen=True)
class NoNodule:
    """Of ``crops`` without a nodule of ``patients`` that the model never saw, the share with a clear verdict, with its
    95 % interval by patient.
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
    return recorded(training_info, RECORD, NoNodule)
