"""Plain values for pages and JSON: numbers out of tables that may lack them, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

MINUS = "−"
ABSENT = "–"


def number(row: Mapping[str, Any] | None, name: str) -> float | None:
    """``row[name]`` as a float; ``None`` where the field or the row is absent, empty, not a number or infinite."""
    if row is None or name not in row:
        return None
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def truth(row: Mapping[str, Any] | None, name: str) -> bool | None:
    """``row[name]`` as a bool; ``None`` where it is absent or empty."""
    value = number(row, name)
    return None if value is None else bool(value)


def words(row: Mapping[str, Any] | None, name: str) -> str:
    """``row[name]`` as text, empty where it is absent or NaN."""
    if row is None or name not in row:
        return ""
    value = row[name]
    return "" if value is None or _absent(value) or (isinstance(value, float) and math.isnan(value)) else str(value)


def made_up(row: Any) -> str:
    """What must stand on all that is drawn from a manifest's row (mapping or Series): SIMULATED, EDITED, or nothing."""
    return "SIMULATED" if truth(row, "simulated") else "EDITED" if words(row, "edited") else ""


def spread(values: list[float]) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation (``None`` below two values) and number."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None, len(values)


def show(value: Any, digits: int = 1, signed: bool = False) -> str:
    """A number for the eye: fixed digits and a true minus sign; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ABSENT
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def show_probability(value: float | None) -> str:
    """A probability with two digits; one that would round to certainty is said to lie beyond .99 or .01.

    >>> show_probability(0.998), show_probability(0.5)
    ('>0.99', '0.50')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    return ">0.99" if value > 0.995 else "<0.01" if value < 0.005 else f"{value:.2f}"


def percent(share: float) -> str:
    """A share as whole percent.

    >>> percent(0.416)
    '42 %'
    """
    return f"{100 * share:.0f} %"


def show_score(value: float | None) -> str:
    """A relevance score with two significant digits and its sign."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return show(value, min(digits, 8), signed=True)


def show_figure(value: float | None) -> str:
    """A figure of any size with about three significant digits."""
    if value is None or not math.isfinite(value):
        return ABSENT
    size = abs(value)
    return show(value, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)


def _absent(value: Any) -> bool:
    """pandas' "not available", which would print as <NA>."""
    import pandas as pd

    return value is pd.NA or value is pd.NaT


def base_names(argv: Iterable[str]) -> list[str]:
    """A command line whose paths are their last part: folders above it are nobody else's business.

    >>> base_names(["lidc-xai", "report", "--store", "/home/ann/CT/store"])
    ['lidc-xai', 'report', '--store', 'store']
    """
    return [text if text.startswith("-") else text.rstrip("/").rsplit("/", 1)[-1] for text in argv]


_LISTED = 8


def summary(value: Any) -> str:
    """A recorded value in one line; long lists (patients, nodules) by their number and first entries."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {summary(item)}" for key, item in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        shown = ", ".join(summary(item) for item in value[:_LISTED])
        return f"{len(value)}: {shown}, …" if len(value) > _LISTED else shown or ABSENT
    if isinstance(value, float):
        return f"{value:.6g}"
    return ABSENT if value is None else str(value)
