"""What drove the rating, as far as it was measured: size alone, what goes with such a rating, where the map lies.

A place is told of a map alone that no test spoke against; of any other the answer is that it gives none. Biomarkers
are other outputs of the same model: what goes together with a rating is told as that and never as its cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lidc_xai.ratings import EVEN_CHANCE, SCALES
from lidc_xai.reporting.nodule.words import PASSED, explaining, listed, share_for_rating
from lidc_xai.reporting.values import percent, show_probability

if TYPE_CHECKING:
    from lidc_xai.reporting.nodule.fact_types import NoduleFacts, Output, Places

AS_MUCH = 0.1
"""Probabilities nearer than this are told as the same."""
TELLING = 0.3
"""Rank correlation with the rating from which on a biomarker is said to go with it."""
_AS_LARGE = 0.1
"""Share of the readers' diameter within which the model's is told as the same."""
_MOST_TOLD = 3
_FILLS = 0.8
"""Share of the plane from which on a nodule leaves no place beside it."""
_DENSER = 1.5
"""How many times as dense as elsewhere on the nodule a map is where it is said to lie."""
_CLEARLY = 2.0
"""How many times its share of the plane a nodule holds of a map that is said to lie on it more than by chance."""


def reason_words(facts: NoduleFacts) -> str:
    """Size, biomarkers and map in up to five short sentences; empty without a rating by a model."""
    prediction = facts["outputs"][0]["prediction"]
    if prediction is None:
        return ""
    value, readers, own = prediction["value"], prediction["diameter_only"], prediction["own_diameter_only"]
    diameter = facts["outputs"][-1]
    model_mm = diameter["prediction"]["value"] if diameter["prediction"] else None
    readers_mm = None if readers is None else diameter["readers"]["mean"]
    known = own if readers is None else readers
    enough = known is not None and _size_is_enough(value, known) and _same_side(value, own)
    other_size = "" if readers is None or enough else model_size_words(value, readers, readers_mm, model_mm)
    of_model = False
    apart = own is not None and readers is not None and abs(own - readers) >= AS_MUCH
    if not enough and apart and own is not None and model_mm is not None and _size_is_enough(value, own):
        of_model, other_size = True, own_size_words(own, readers_mm, model_mm)
    size = size_words(value, readers, None if of_model else own, explained=bool(other_size))
    beside, ways = _beside(facts, enough or of_model, _way(value, None if enough or of_model else known))
    shown, told = _map_words(facts, value)
    parts = [size, other_size, beside, shown]
    if not enough and not told and not other_size and _way(value, known) not in ways:
        parts.append(f"What {'drove' if known is None else _moves(value, known)} it is not known.")
    return " ".join(part for part in parts if part)


def size_words(value: float, readers: float | None, own: float | None = None, explained: bool = False) -> str:
    """Whether the readers' diameter alone gives as much (most of a rating is size), beside it what the diameter that the
    model predicts would give; of that alone where there are no readers. ``explained``: what moves the rating away from
    it is told in the next sentence.

    >>> size_words(0.98, 0.99)
    'Its size is reason enough: the readers’ diameter alone would give 0.99.'
    >>> size_words(0.22, 0.11, own=0.18)
    'Its size is reason enough: the readers’ diameter alone would give 0.11 (the model’s own 0.18); something else raises it.'
    >>> size_words(0.95, 0.7)
    'Size alone would give high (0.70); something else raises it further.'
    >>> size_words(0.95, 0.58)
    'Not size alone: the readers’ diameter would give 0.58, something else raises it.'
    >>> size_words(0.31, 0.7, own=0.55)
    'Not the readers’ size: their diameter alone would give 0.70 (high; the model’s own 0.55), something else lowers it.'
    >>> size_words(0.31, None, own=0.7)
    'Not its size: the model’s own diameter alone would give 0.70 (high), something else lowers it.'
    """  # noqa: E501
    known = own if readers is None else readers
    if known is None:
        return ""
    who, its = ("the readers’ diameter", "the readers’") if readers is not None else ("the model’s own diameter", "its")
    alone, of_model = show_probability(known), "" if own is None or readers is None else show_probability(own)
    beside = of_model and f" (the model’s own {of_model})"
    moves = f"something else {_moves(value, known)} it"
    if _size_is_enough(value, known) and _same_side(value, own):
        rest = "" if abs(value - known) < AS_MUCH else f"; {moves}"
        return f"Its size is reason enough: {who} alone would give {alone}{beside}{rest}."
    further, apart = ("", "") if explained else (f"; {moves} further", f", {moves}")
    side, even = "high" if known > EVEN_CHANCE else "low", abs(known - EVEN_CHANCE) <= AS_MUCH
    if even:
        return f"Not size alone: {who} would give {alone}{beside}{apart}."
    if _same_side(value, known):
        return f"Size alone would give {side} ({alone}{of_model and f'; the model’s own {of_model}'}){further}."
    who = who if readers is None else "their diameter"
    return (
        f"Not {its} size: {who} alone would give {alone} ({side}{of_model and f'; the model’s own {of_model}'}){apart}."
    )


def own_size_words(own: float, readers_mm: float | None, model_mm: float) -> str:
    """That the size which the model itself reads is reason enough, where the readers' is not.

    >>> own_size_words(0.25, 13.8, 9.3)
    'The model reads it smaller (9.3 against 13.8 mm), which is reason enough: its diameter alone would give 0.25.'
    >>> own_size_words(0.83, 14.0, 14.6)
    'The size that the model reads (14.6 mm) is reason enough: its diameter alone would give 0.83.'
    """
    told = f"its diameter alone would give {show_probability(own)}."
    if readers_mm is None or not _other_size(readers_mm, model_mm):
        return f"The size that the model reads ({model_mm:.1f} mm) is reason enough: {told}"
    size = "larger" if model_mm > readers_mm else "smaller"
    return f"The model reads it {size} ({model_mm:.1f} against {readers_mm:.1f} mm), which is reason enough: {told}"


def model_size_words(value: float, diameter_only: float, readers_mm: float | None, model_mm: float | None) -> str:
    """That the model reads the nodule smaller (or larger) than the readers do, where its rating differs that way, too.

    >>> model_size_words(0.27, 0.69, 13.8, 9.3)
    'The model reads it smaller than the readers (9.3 against 13.8 mm), which goes with a lower rating.'
    >>> model_size_words(0.27, 0.69, 13.8, 13.1)
    ''
    """
    if readers_mm is None or model_mm is None or not _other_size(readers_mm, model_mm):
        return ""
    if (model_mm > readers_mm) != (value > diameter_only):
        return ""
    size, rating = ("larger", "higher") if model_mm > readers_mm else ("smaller", "lower")
    figures = f"{model_mm:.1f} against {readers_mm:.1f} mm"
    return f"The model reads it {size} than the readers ({figures}), which goes with a {rating} rating."


def _other_size(readers_mm: float, model_mm: float) -> bool:
    return abs(model_mm - readers_mm) > _AS_LARGE * readers_mm


def _same_side(value: float, other: float | None) -> bool:
    return other is None or (value > EVEN_CHANCE) == (other > EVEN_CHANCE)


def _size_is_enough(value: float, diameter_only: float) -> bool:
    """Whether the diameter gives the same side, and as much as the model or more surely."""
    away, alone = value - EVEN_CHANCE, diameter_only - EVEN_CHANCE
    return away * alone > 0 and (abs(away - alone) < AS_MUCH or abs(alone) > max(abs(away), AS_MUCH))


def _moves(value: float, diameter_only: float) -> str:
    return "raises" if value > diameter_only else "lowers"


def _way(value: float, diameter_only: float | None) -> str:
    """The kind of ratings that what is asked for goes with: of what size leaves open, else of the rating."""
    return "high" if value > (EVEN_CHANCE if diameter_only is None else diameter_only) else "low"


def _map_words(facts: NoduleFacts, value: float) -> tuple[str, bool]:
    """What the map says of the rating, and whether that is a reason for it."""
    shown, trust = explaining(facts), facts["trust"]["map"]
    if shown is None or "malignancy" not in shown["strength"]:
        return "No map explains it.", False
    share, high = share_for_rating(facts), value > EVEN_CHANCE
    if share is None:
        return "Its map is empty.", False
    tested = trust["text"].startswith(PASSED)
    if not tested and trust["reasons"]:
        return f"The map gives no reliable place: {trust['reasons'][0]}.", False
    name = "The map" if tested else "The map, untested here"
    if share < 0.5:
        made, other = ("made it high", "lowers") if high else ("kept it low", "raises")
        name += "" if tested else ","
        return f"{name} does not show what {made}: {percent(1 - share)} of it {other} the rating.", False
    towards = "raises" if high else "lowers"
    where = "" if facts["places"] is None else where_words(facts["places"], towards)
    return f"{name}: {percent(share)} of it {towards} the rating{f', {where}' if where else ''}.", True


def where_words(places: Places, towards: str) -> str:
    """Where what raises (or lowers) the rating lies, with the nodule's share of the picture, which is chance.

    >>> zone = {"inside": (0.6, 0.05), "rim": (0.1, 0.05), "outside": (0.3, 0.9)}
    >>> zones = {name: {"raises": a, "lowers": None, "area": b} for name, (a, b) in zone.items()}
    >>> places = {"around": "outline", "rim_mm": 2.0, "told_apart": True, "zones": zones, "raises_peak": ["middle"]}
    >>> where_words(places, "raises")
    'mostly from inside the nodule, strongest in its middle (70 % on the nodule and its 2 mm rim; by chance 10 %)'
    """
    share, area = {}, {}
    for name, zone in places["zones"].items():
        found = zone["raises"] if towards == "raises" else zone["lowers"]
        if found is None:
            return ""
        share[name], area[name] = found, zone["area"]
    on, chance = share["inside"] + share["rim"], area["inside"] + area["rim"]
    nodule = "the nodule" if places["around"] == "outline" else "a ball of its predicted diameter"
    extent = f"{nodule} and its {places['rim_mm']:g} mm rim"
    if chance > _FILLS:
        return f"but no place stands out: {extent} are {percent(chance)} of the picture"
    figures = f"({percent(on)} on {extent}; by chance {percent(chance)})"
    if chance < on < min(0.5, _CLEARLY * chance):
        return f"but from no particular place {figures}"
    if on >= 0.5:
        place = f"mostly from {_part_of_nodule(places, share, area)}"
    else:
        place = "from beside the nodule" if on <= chance else "partly from the nodule, mostly from beside it"
    peak = places["raises_peak"] if towards == "raises" else places["lowers_peak"]
    where = "in its middle" if peak == ["middle"] else f"towards the patient’s {listed(peak)}"
    return f"{place}{f', strongest {where}' if peak else ''} {figures}"


def _part_of_nodule(places: Places, share: dict[str, float], area: dict[str, float]) -> str:
    if not places["told_apart"]:
        return "the nodule"
    inside, rim = share["inside"] / area["inside"], share["rim"] / area["rim"]
    if inside > _DENSER * rim:
        return "inside the nodule"
    return "the nodule’s rim" if rim > _DENSER * inside else "the whole nodule"


def _beside(facts: NoduleFacts, size_told: bool, wanted: str) -> tuple[str, set[str]]:
    """Predicted biomarkers outside the cohort's middle half that go with high or with low ratings, in words, and which
    ratings these are. ``size_told``: the diameter was named already. ``wanted``: the ratings that are to be explained.
    """
    held = facts["associations"]
    telling = sorted(
        (name for name in held if abs(held[name]["rho"]) >= TELLING and not (size_told and name == "diameter")),
        key=lambda one: (one != "calcification", -abs(held[one]["rho"])),  # the rarest finding first
    )
    by_name = {output["name"]: output for output in facts["outputs"]}
    ways: dict[str, list[str]] = {"high": [], "low": []}
    for name in telling:
        away = _away(by_name[name], held[name])
        if away:
            ways["high" if away * held[name]["rho"] > 0 else "low"].append(_compared(name, away))
    other = "low" if wanted == "high" else "high"
    found = {way: f"{listed(words[:_MOST_TOLD])} than three in four nodules" for way, words in ways.items() if words}
    goes = {way: f"which goes with {way} ratings" for way in ways}
    if wanted in found:
        against = f"; but also {found[other]}, {goes[other]}" if other in found else ""
        text = f"To the model it is {found[wanted]}, {goes[wanted]}{against} (association, not cause)."
    elif other in found:
        text = f"Its biomarkers point the other way: {found[other]}, {goes[other]}."
    else:
        text = f"No {'other ' if size_told else ''}biomarker stands out." if telling else ""
    return text, set(found)


def _away(output: Output, quartiles: dict[str, float]) -> int:
    """1 above the cohort's upper quartile, −1 below its lower one, else 0: also where the word for the value says the
    opposite (more than most, and yet "nearly no spiculation"), and for little calcification, which nearly all have."""
    if output["prediction"] is None:
        return 0
    value, scale = output["prediction"]["value"], SCALES[output["name"]]
    away = int(value > quartiles["high"]) - int(value < quartiles["low"])
    if output["kind"] == "any":
        return max(away, 0) if value > EVEN_CHANCE else 0
    if output["kind"] == "rating" and away * (round(value) - (scale.low + scale.high) / 2) < 0:
        return 0
    return away


def _compared(name: str, sign: int) -> str:
    return "likelier calcified" if name == "calcification" else SCALES[name].compared(sign)
