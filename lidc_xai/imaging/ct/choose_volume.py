"""Which slices of a series are one CT volume: a series may also hold scouts, sheets, and a second acquisition."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.dicom_headers import TRAITS, SliceHeader

SAME_PLACE_MM = 1e-3
CONTEST = 0.75
"""Two volumes contest a place where their slices lie closer than this many steps of the larger one."""
MOST_INTERLEAVED = 4.5
"""So many acquisitions (and a half) are told apart by a field where their slices lie between each other."""
_DIRECTION = 1e-3
_SCOUTS = ("LOCALIZER", "SCOUT", "TOPOGRAM")
_SHEETS = ("SCREEN", "DOSE", "REPORT", "PROTOCOL")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def choose_volume(slices: Sequence[SliceHeader], name: str, issues: list[str]) -> list[SliceHeader]:
    """The slices of the CT volume in a series; what was left is said in ``issues``.

    Left out: localizers, sheets and screen captures; slices of another size, spacing or orientation than most; and,
    where slices with different values of a field (:data:`~lidc_xai.imaging.ct.dicom_headers.TRAITS`) contest the same
    places or lie between each other, all but the largest such volume (of equal ones the lowest acquisition number).
    A field that differs from slice to slice without contest divides nothing. DataError (its text starts with
    ``name``) where no size or direction has the most slices, or where two volumes cannot be told apart.
    """
    slices = _without_pictures(slices, issues)
    for words, same, show in _SHAPES:
        slices = _most_alike(slices, words, same, show, name, issues)
    if len(slices) > 2:
        normal = slices[0].normal
        for field, words in TRAITS.items():
            slices = _uncontested(slices, normal, words, [one.traits[field] for one in slices], issues)
        runs = _instance_runs(slices, normal)
        if runs is not None:
            slices = _uncontested(slices, normal, "run of instance numbers", runs, issues)
        _check_instances(slices, normal, name)
    return list(slices)


def _without_pictures(slices: Sequence[SliceHeader], issues: list[str]) -> list[SliceHeader]:
    """Without localizers, sheets and screen captures; a series of secondary captures alone is left as it is."""
    scouts = [one for one in slices if _has_word(one, _SCOUTS)]
    sheets = [one for one in slices if not _has_word(one, _SCOUTS) and _has_word(one, _SHEETS)]
    lost = {id(one) for one in (*scouts, *sheets)}
    kept = [one for one in slices if id(one) not in lost]
    captures = [one for one in kept if one.sop_class.startswith(_SECONDARY_CAPTURE)]
    if len(captures) < len(kept):
        sheets += captures
        kept = [one for one in kept if not one.sop_class.startswith(_SECONDARY_CAPTURE)]
    if kept and scouts:
        issues.append(f"{len(scouts)} localizer image(s) left out")
    if kept and sheets:
        issues.append(f"{len(sheets)} sheet(s) or screen capture(s) left out")
    return kept


def _has_word(one: SliceHeader, words: Sequence[str]) -> bool:
    return any(word in one.traits["ImageType"].upper() for word in words)


_Same = Callable[[SliceHeader, SliceHeader], bool]
_SHAPES: list[tuple[str, _Same, Callable[[SliceHeader], str]]] = [
    ("size", lambda a, b: (a.rows, a.columns) == (b.rows, b.columns), lambda one: f"{one.rows}x{one.columns}"),
    (
        "pixel spacing",
        lambda a, b: bool(np.abs(np.subtract(a.pixel_spacing_mm, b.pixel_spacing_mm)).max() <= SAME_PLACE_MM),
        lambda one: f"{one.pixel_spacing_mm[0]:g} x {one.pixel_spacing_mm[1]:g} mm",
    ),
    (
        "orientation",
        lambda a, b: bool(
            np.abs([a.along_row - b.along_row, a.along_column - b.along_column]).max() <= _DIRECTION
        ),
        lambda one: f"as {one.path.name}",
    ),
]  # fmt: skip


def _most_alike(
    slices: list[SliceHeader],
    words: str,
    same: _Same,
    show: Callable[[SliceHeader], str],
    name: str,
    issues: list[str],
) -> list[SliceHeader]:
    if all(same(slices[0], one) for one in slices[1:]):
        return slices
    groups: list[list[SliceHeader]] = []
    for one in slices:
        for group in groups:
            if same(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    groups.sort(key=len, reverse=True)
    if len(groups[0]) == len(groups[1]):
        values = ", ".join(sorted(show(group[0]) for group in groups[:3]))
        raise DataError(f"{name}: slices differ in {words} ({values}); they are not one volume")
    left = ", ".join(show(group[0]) for group in groups[1:4])
    count = len(slices) - len(groups[0])
    issues.append(f"{count} slice(s) of another {words} ({left}; most: {show(groups[0][0])}) left out")
    return groups[0]


def _uncontested(
    slices: list[SliceHeader], normal: NDArray[np.float64], words: str, values: Sequence[str], issues: list[str]
) -> list[SliceHeader]:
    """The largest part by ``values``, and all other parts that lie beside it and not in its place."""
    if len(set(values)) < 2:
        return slices
    parts: dict[str, list[SliceHeader]] = defaultdict(list)
    for one, value in zip(slices, values, strict=True):
        parts[value].append(one)
    largest = max(map(len, parts.values()))
    order = sorted(parts, key=lambda value: _rank(value, len(parts[value]), largest))
    step, usual = _step(parts[order[0]], normal), _step(slices, normal)
    if not 0 < step <= MOST_INTERLEAVED * usual:  # single slices far from each other: no volume of their own
        return slices
    kept: list[SliceHeader] = []
    chosen, lost = order[0], []
    for value in order:
        contested = _contested(kept, parts[value], normal, step)
        if np.count_nonzero(contested) * 2 >= len(contested):
            lost.append(value)
            continue
        kept += [one for one, taken in zip(parts[value], contested, strict=True) if not taken]
    if len(kept) < len(slices):
        left = ", ".join(value or "none" for value in lost[:3]) or "others"
        issues.append(
            f"{len(slices) - len(kept)} slice(s) of another {words} at the same places left out "
            f"(kept: {chosen or 'none'}; left: {left}{', …' if len(lost) > 3 else ''})"
        )
    return kept if len(kept) >= 2 else slices


def _rank(value: str, count: int, largest: int) -> tuple[Any, ...]:
    """Original images before derived ones, then larger parts before smaller, then lower values before higher."""
    number = float(value) if value.replace(".", "", 1).isdecimal() else math.inf
    return (count * 2 < largest, not value.startswith("ORIGINAL"), -count, number, value)


def _places(slices: Sequence[SliceHeader], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.unique(np.round([float(one.position @ normal) for one in slices], 3))


def _step(slices: Sequence[SliceHeader], normal: NDArray[np.float64]) -> float:
    """The usual distance of two places in mm; 0 where there is one place."""
    places = _places(slices, normal)
    return float(np.median(np.diff(places))) if len(places) > 1 else 0.0


def _contested(
    kept: Sequence[SliceHeader], others: Sequence[SliceHeader], normal: NDArray[np.float64], step: float
) -> NDArray[np.bool_]:
    """Which of ``others`` lie at the places of ``kept``, ``step`` mm apart, or between them."""
    at = np.array([float(one.position @ normal) for one in others])
    places = _places(kept, normal)
    if not len(places):
        return np.zeros(len(at), dtype=bool)
    after = np.searchsorted(places, at)
    below, above = places[np.maximum(after - 1, 0)], places[np.minimum(after, len(places) - 1)]
    return np.minimum(np.abs(at - below), np.abs(at - above)) < CONTEST * step


def _instance_runs(slices: Sequence[SliceHeader], normal: NDArray[np.float64]) -> list[str] | None:
    """In which passage over the scan each slice was numbered; None where the numbers do not follow the places."""
    order = sorted(range(len(slices)), key=lambda place: slices[place].instance_number)
    if len({one.instance_number for one in slices}) < len(slices):
        return None
    steps = np.diff([float(slices[place].position @ normal) for place in order])
    far = np.abs(steps) > 4 * max(float(np.median(np.abs(steps))), SAME_PLACE_MM)
    turned = np.concatenate([[False], np.sign(steps[1:]) != np.sign(steps[:-1])])
    runs = np.concatenate([[0], np.cumsum(far | turned)])
    lengths = sorted(np.bincount(runs))
    if len(lengths) < 2 or lengths[-2] < len(slices) / 4:
        return None
    passages = [""] * len(slices)
    for place, run in zip(order, runs, strict=True):
        passages[place] = str(run + 1)
    return passages


def _check_instances(slices: Sequence[SliceHeader], normal: NDArray[np.float64], name: str) -> None:
    """Refuse two volumes whose instance numbers alone betray them: which slice is whose, nothing says."""
    places = {(one.instance_number, round(float(one.position @ normal), 3)) for one in slices}
    counts = Counter(number for number, _ in places)
    twice = sum(count for count in counts.values() if count > 1)
    if len(counts) > max(2, len(slices) / 10) and twice * 2 >= len(places):
        raise DataError(
            f"{name}: {twice} of {len(places)} slices share their InstanceNumber with another at another place: "
            "several acquisitions that no field tells apart; give one of them in a folder of its own"
        )
