"""Whom a model has seen, by its own record. No torch: pages ask this too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def known_patients(training_info: Mapping[str, Any] | None) -> set[str]:
    """Patients that a model learned from or that chose its epoch and calibration; none where it has no such record.

    >>> sorted(known_patients({"train_patients": ["P2"], "validation_patients": ["P1"]}))
    ['P1', 'P2']
    """
    info = training_info or {}
    return {str(patient) for part in ("train_patients", "validation_patients") for patient in info.get(part) or ()}
