"""What a benchmark says in three sentences, before any table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from lidc_xai.reporting.benchmark.tables import BenchmarkTable, Row
from lidc_xai.reporting.nodule.words import capitalised, listed

_MOST_NAMES = 4


def verdict(tables: Sequence[BenchmarkTable], per_case: pd.DataFrame, seen: Collection[str] | None) -> list[str]:
    """What was measured on whom; what beats a centred disc; which method leads and what cannot be told from it."""
    cases = per_case[["case", "cluster"]].drop_duplicates()
    patients = set(cases["cluster"].where(cases["cluster"] != "", cases["case"]))
    methods = {row["method"] for table in tables for row in table["rows"] if not row["control"]}
    known = (
        "whether the model had seen them is not recorded" if seen is None
        else f"{len(patients & set(seen))} of these patients the model had seen in training"
    )  # fmt: skip
    beating = [
        f"{_many(len(methods), 'method')} on {_many(len(cases), 'case')} of {_many(len(patients), 'patient')}; {known}."
    ]
    leading = next((table for table in tables if table["joined"] and table["leading"] is not None), None)
    if leading is None or leading["leading"] is None:
        return [*beating, "No figure that has a better and a worse was measured, so nothing can be ranked."]
    place = leading["leading"]
    title = f"{leading['title'].lower()} ({leading['columns'][place]['title']})"
    ranked = [row for row in leading["rows"] if not row["control"]]
    return [*beating, _against_disc(ranked, title), _leader(ranked, place, title)]


def _against_disc(rows: Sequence[Row], title: str) -> str:
    groups = {word: [row["title"] for row in rows if row["chance"] == word] for word in ("yes", "no", "not told apart")}
    if not any(groups.values()):
        return f"No centred disc was measured, so that {title} has no bar to clear."
    above = groups["yes"]
    who = f"{_names(above)} beat{'s' if len(above) == 1 else ''}" if above else "no method beats"
    parts = [f"{who} a centred disc, which has not seen the image"]
    if groups["not told apart"]:
        parts.append(f"{_names(groups['not told apart'])} cannot be told from it")
    if groups["no"]:
        parts.append(f"{_names(groups['no'])} lie{'s' if len(groups['no']) == 1 else ''} below it")
    return f"By {title}, {'; '.join(parts)}."


def _leader(rows: Sequence[Row], place: int, title: str) -> str:
    best = next((row for row in rows if row["cells"][place]["best"]), None)
    if best is None:
        return f"By {title}, no method leads."
    tied = [row["title"] for row in rows if row["cells"][place]["tied"]]
    among = f"{_names(tied)} cannot be told from it" if tied else "every other is told from it"
    return f"{capitalised(best['title'])} leads; {among} (paired by patient, Holm-corrected)."


def _names(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMES + 1:  # the name is shorter than "and 1 more"
        return listed(list(names))
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
