"""One option of a method: its default, its kind, and the check of a value that a user gives."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from lidc_xai.errors import UsageError


@dataclass(frozen=True)
class Option:
    """An option: its default, what it may be ("count", "integer", "number", "flag", "any" or a tuple of words)."""

    default: Any
    kind: str | tuple[str, ...]
    words: str

    def check(self, name: str, value: Any) -> None:
        """``UsageError`` where ``value`` is not one that this option can take."""
        if value is None and self.default is None:
            return
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        fits = {
            "count": whole and value >= 1,
            "integer": whole,
            "number": isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0,
            "flag": isinstance(value, bool),
            "any": True,
        }
        if isinstance(self.kind, tuple):
            if value not in self.kind:
                raise UsageError(f"option {name} is one of {', '.join(map(repr, self.kind))}, not {value!r}")
        elif not fits[self.kind]:
            wanted = {"count": "a whole number from 1", "integer": "a whole number", "number": "a number from 0"}
            raise UsageError(f"option {name} is {wanted.get(self.kind, 'True or False')}, not {value!r}")
