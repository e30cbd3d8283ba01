"""What drove the rating, as far as it was measured: size alone, where the map lies, what goes with such a rating.

The map says where the model looked and which way it pulls; biomarkers are other outputs of the same model, and what
goes together with a rating is told as that and never as its cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lidc_xai.ratings import EVEN_CHANCE, SCALES
from lidc_xai.reporting.nodule.words import explaining, listed
from lidc_xai.reporting.values import percent, show_probability

if TYPE_CHECKING:
    from lidc_xai.reporting.nodule.fact_types import NoduleFacts, Output, Places

AS_MUCH = 0.1
"""Probabilities nearer than this are told as the same."""
TELLING = 0.3
"""Rank correlation with the rating from which on a biomarker is said to go with it."""
_MOST_TOLD = 3
_FILLS = 0.8
"""Share of the plane from which on a nodule leaves no place beside it."""
_DENSER = 1.5
"""How many times as dense as by chance, or as elsewhere, a map is where it is said to lie."""


def reason_words(facts: NoduleFacts) -> str:
    """Size, map and biomarkers in up to four short sentences; empty without a rating by a model."""
    prediction = facts["outputs"][0]["prediction"]
    if prediction is None:
        return ""
    value, alone = prediction["value"], prediction["diameter_only"]
    parts = [size_words(value, alone) if alone is not None else "", _map_words(facts, value), _beside(facts)]
    return " ".join(part for part in parts if part)


def size_words(value: float, diameter_only: float) -> str:
    """Whether the readers' diameter alone gives as much: most of a rating is size.

    >>> size_words(0.98, 0.99)
    'The readers’ diameter alone gives nearly the same (0.99): nothing else is needed.'
    >>> size_words(0.95, 0.6)
    'More than the readers’ diameter: that alone gives 0.60, something else raises it.'
    """
    alone = show_probability(diameter_only)
    if abs(value - diameter_only) < AS_MUCH:
        return f"The readers’ diameter alone gives nearly the same ({alone}): nothing else is needed."
    moves = "raises" if value > diameter_only else "lowers"
    return f"More than the readers’ diameter: that alone gives {alone}, something else {moves} it."


def _map_words(facts: NoduleFacts, value: float) -> str:
    """Which way the map pulls, and where what speaks for the rating lies."""
    shown = explaining(facts)
    if shown is None or "malignancy" not in shown["strength"]:
        return "No map explains it."
    strength, high = shown["strength"]["malignancy"], value > EVEN_CHANCE
    raised, lowered = strength["positive"], -strength["negative"]
    if raised + lowered == 0:
        return "Its map is empty."
    share = raised / (raised + lowered)
    rank = {"strong": " (a strong one)", "usual": " (of usual strength)", "weak": " (a weak one)"}.get(
        strength["rank"], ""
    )
    name = f"{shown['title']} map{rank}"
    doubt = " (not to be relied on, see below)" if facts["trust"]["map"]["level"] == "low" else ""
    text = f"{percent(share)} of the {name} raises the rating, {percent(1 - share)} lowers it{doubt}."
    if not lowered or not raised:
        text = f"The {name} only {'raises' if raised else 'lowers'} the rating{doubt}."
    if (share if high else 1 - share) < 0.5:
        text += f" So it does not show what {'made it high' if high else 'kept it low'}."
    towards = "raises" if share > 0.5 else "lowers"
    where = "" if facts["places"] is None else where_words(facts["places"], towards)
    return f"{text} What {towards} it lies {where}." if where else text


def where_words(places: Places, towards: str) -> str:
    """Where what raises (or lowers) the rating lies, with the share that chance would put there.

    >>> zone = {"inside": (0.6, 0.05), "rim": (0.1, 0.05), "outside": (0.3, 0.9)}
    >>> zones = {name: {"raises": a, "lowers": None, "area": b} for name, (a, b) in zone.items()}
    >>> places = {"around": "outline", "rim_mm": 2.0, "told_apart": True, "zones": zones, "raises_peak": ["middle"]}
    >>> where_words(places, "raises")
    'inside the nodule, strongest in its middle: 70 % of it on the nodule or within 2 mm of the outline, 10 % by chance'
    """
    share, area = {}, {}
    for name, zone in places["zones"].items():
        found = zone["raises"] if towards == "raises" else zone["lowers"]
        if found is None:
            return ""
        share[name], area[name] = found, zone["area"]
    on, chance = share["inside"] + share["rim"], area["inside"] + area["rim"]
    if chance > _FILLS:
        return f"nearly anywhere: the nodule and {places['rim_mm']:g} mm about it are {percent(chance)} of the plane"
    around = "the outline" if places["around"] == "outline" else "a ball of its predicted diameter"
    if places["around"] == "ball":
        extent = f"within {places['rim_mm']:g} mm of {around}"
    else:
        extent = f"on the nodule or within {places['rim_mm']:g} mm of {around}"
    if on <= chance:
        place = "mostly away from the nodule"
    elif on < 0.5 and on < _DENSER * chance:
        place = "scattered over the plane"
    else:
        place = _part_of_nodule(places, share, area) if on >= 0.5 else "partly on the nodule"
    peak = places["raises_peak"] if towards == "raises" else places["lowers_peak"]
    strongest = ""
    if peak:
        strongest = (
            ", strongest in its middle" if peak == ["middle"] else (f", strongest towards the patient’s {listed(peak)}")
        )
    return f"{place}{strongest}: {percent(on)} of it {extent}, {percent(chance)} by chance"


def _part_of_nodule(places: Places, share: dict[str, float], area: dict[str, float]) -> str:
    if not places["told_apart"]:
        return "on the nodule"
    inside, rim = share["inside"] / area["inside"], share["rim"] / area["rim"]
    if inside > _DENSER * rim:
        return "inside the nodule"
    return "at the nodule’s rim" if rim > _DENSER * inside else "over the whole nodule"


def _beside(facts: NoduleFacts) -> str:
    """Predicted biomarkers outside the cohort's middle half that go with high or with low ratings."""
    held = facts["associations"]
    telling = sorted(
        (name for name in held if abs(held[name]["rho"]) >= TELLING), key=lambda one: -abs(held[one]["rho"])
    )
    by_name = {output["name"]: output for output in facts["outputs"]}
    ways: dict[str, list[str]] = {"high": [], "low": []}
    for name in telling:
        away = _away(by_name[name], held[name])
        if away and not (name == "calcification" and away < 0):  # nearly every nodule is hardly likely to be calcified
            ways["high" if away * held[name]["rho"] > 0 else "low"].append(_compared(name, away))
    if not held or not any(ways.values()):
        return "None of its predicted biomarkers stands out." if telling else ""
    first = max(ways, key=lambda way: len(ways[way]))
    said = [
        f"{listed(words[:_MOST_TOLD])} than most, which goes with {way} ratings"
        for way, words in sorted(ways.items(), key=lambda item: item[0] != first)
        if words
    ]
    return f"The model also calls it {'; and '.join(said)} (association, not cause)."


def _away(output: Output, quartiles: dict[str, float]) -> int:
    """1 above the cohort's upper quartile, −1 below its lower one, else 0."""
    if output["prediction"] is None:
        return 0
    value = output["prediction"]["value"]
    return int(value > quartiles["high"]) - int(value < quartiles["low"])


def _compared(name: str, sign: int) -> str:
    return "likelier calcified" if name == "calcification" else SCALES[name].compared(sign)
