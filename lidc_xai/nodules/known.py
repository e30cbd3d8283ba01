"""What a model's own record says: whom it has seen, what a cohort said of its maps. No torch: pages ask this too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lidc_xai.errors import ModelError

T = TypeVar("T")


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
