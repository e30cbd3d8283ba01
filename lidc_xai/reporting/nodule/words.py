"""A nodule in sentences: what the model was shown, what it makes of the nodule, why, and how far to believe it.

Every sentence is put together from facts of this run. What was not measured is said to be not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lidc_xai.nodules.record import SURE as CLEAR
from lidc_xai.nodules.record import recorded_no_nodule, recorded_unseen
from lidc_xai.ratings import EVEN_CHANCE, INDETERMINATE
from lidc_xai.reporting.nodule.flags import WIDE_DISAGREEMENT
from lidc_xai.reporting.values import percent

if TYPE_CHECKING:
    from lidc_xai.reporting.nodule.fact_types import MapFacts, NoduleFacts, Output, Repeats, Said, Trust

PASSED = "The map passed the tests it was put to"
SHAKY_MAP = 0.5
"""Below this expected rank correlation with another such map, a map belongs to its trainings, not to the nodule."""
RANDOM_ORDER = 0.25
"""A random map's two deletion curves lie this far apart at most, as a share of their range (its 95th percentile on
single nodules: .20 and .25 for two models): what lies below it tells nothing of the map's order."""
SURE = (0.2, 0.8)
"""Probabilities between these two say little about which side of 3 the readers' median lies on."""


def outline_words(origin: str, outlined: bool) -> str:
    """What the white line on this nodule's pictures is; empty where there is none."""
    if not outlined:
        return ""
    return "the readers’ consensus" if origin == "lidc" else "the outline of the given mask"


def listed(names: Sequence[str], joint: str = "and") -> str:
    """Words in a row.

    >>> listed(["axial", "coronal", "sagittal"])
    'axial, coronal and sagittal'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {joint} {names[-1]}" if names else ""


def reads_words(model_info: Mapping[str, Any] | None, maps: Sequence[MapFacts] = ()) -> str:
    """Which planes the model reads, from its own preprocessing, else from the planes that its maps explain."""
    reads = (model_info or {}).get("reads")
    if isinstance(reads, Mapping):
        views, slices = [str(view) for view in reads["views"]], int(reads.get("slices", 1))
        if slices > 1:
            return f"the {slices} {listed(views)} planes about the middle of the crop" + (
                " (of each direction)" if len(views) > 1 else ""
            )
        return f"the middle {listed(views)} plane{'s' if len(views) > 1 else ''} of the crop"
    views = list(dict.fromkeys(panel["view"] for item in maps for panel in item["panels"]))
    return f"the middle {listed(views)} plane{'s' if len(views) > 1 else ''} of the crop" if views else ""


def no_nodule_words(prediction: Mapping[str, Any] | None, model_info: Mapping[str, Any] | None) -> str:
    """What the model says where there is no nodule: for a crop that no reader has marked.

    >>> no_nodule_words({}, {})
    'The model does not know whether there is a nodule here; what it says of crops without one was not measured.'
    """
    if prediction is None:
        return ""
    head = "The model does not know whether there is a nodule here"
    measured = recorded_no_nodule(model_info)
    if measured is None:
        return f"{head}; what it says of crops without one was not measured."
    low, high = (f"{0.5 + sign * CLEAR:.1f}" for sign in (-1, 1))
    return (
        f"{head}: of {measured.crops} crops without one (lung, vessel, pleura) it gave {percent(measured.clear)} "
        f"[{100 * measured.low:.0f}, {100 * measured.high:.0f}] a clear verdict (below {low} or above {high})."
    )


def summary_sentences(facts: NoduleFacts, reason: str) -> list[Said]:
    """What it looks like, what drove the rating (``reason``), how far to believe it, as far as it is known."""
    by_name = {output["name"]: output for output in facts["outputs"]}
    answers = (
        ("What it looks like", _looks(by_name, facts)),
        ("What drove the rating", reason),
        ("How far to believe it", _belief(facts)),
    )
    return [{"title": title, "text": text} for title, text in answers if text]


def _looks(outputs: Mapping[str, Output], facts: NoduleFacts) -> str:
    """The biomarkers as a radiologist dictates them, by the model where it was asked, else by the readers."""
    of_model = outputs["margin"]["prediction"] is not None
    words = {name: _word(output, of_model) for name, output in outputs.items()}
    size = _value(outputs["diameter"], of_model)
    adjectives = [words[name] for name in ("texture", "sphericity") if words[name]]
    if not adjectives and size is None:
        return ""
    who = "By the model" if of_model else "By the readers"
    described = f"{f'{size:.0f} mm ' if size is not None else ''}{', '.join(adjectives)} nodule"
    article = "an" if described.startswith(("8", "11 ", "18 ", "e", "o")) else "a"
    head = f"{who}: {article} {described}"
    margin = f"{words['margin']}" if words["margin"] else ""
    margin = margin if not margin or "margin" in margin or "defined" in margin else f"{margin} margin"
    parts = [part for part in (margin, words["lobulation"], words["spiculation"]) if part]
    calcified = _value(outputs["calcification"], of_model)
    parts.append(
        "calcification not measured" if calcified is None
        else f"any calcification {percent(calcified)} likely" if of_model
        else f"calcified for {percent(calcified)} of readers"
    )  # fmt: skip
    return f"{head}, {', '.join(parts)}."


def _word(output: Output, of_model: bool) -> str:
    if output["kind"] != "rating":
        return ""
    held = output["prediction"] if of_model else output["readers"]
    return held["words"] if held else ""


def _value(output: Output, of_model: bool) -> float | None:
    if of_model:
        return output["prediction"]["value"] if output["prediction"] else None
    return output["readers"]["mean"]


def strength_inside(facts: NoduleFacts) -> tuple[float | None, float | None]:
    """Share of the malignancy map's absolute strength inside the outline, and of the explained planes' area."""
    shown = explaining(facts)
    for row in facts["overlap"]:
        if shown is not None and row["method"] == shown["method"] and row["output"] == "malignancy":
            return row["absolute_mass"], row["area"]
    return None, None


def _belief(facts: NoduleFacts) -> str:
    """The rating at 90 % confidence, the model's accuracy, whether the map would be drawn again, and the removal test,
    measured or not."""
    malignancy = facts["outputs"][0]["prediction"]
    if malignancy is None:
        return ""
    excluded = {"low": "excludes high", "high": "excludes low"}.get(malignancy["set"], "excludes neither low nor high")
    parts = [f"At 90 % confidence the model {excluded}." if malignancy["set"] else ""]
    parts.append(facts["unseen"])
    if explaining(facts) is not None:
        parts.append(f"{capitalised(repeats_words(repeats_of(facts, 'malignancy')))}.")
        tested = removal_words(facts["curves"].get("malignancy"))
        parts.append(f"{tested}." if tested else "The map was not put to the removal test.")
    return " ".join(part for part in parts if part)


def unseen_words(model_info: Mapping[str, Any] | None) -> str:
    """How often the model sided with the readers on patients that it had not seen; empty where it was not measured.

    >>> info = {"unseen": {"nodules": 721, "patients": 442, "right": 0.888, "low": 0.862, "high": 0.911}}
    >>> unseen_words(info)
    'On 721 nodules of patients it had not seen, the model was on the readers’ side in 89 % [86, 91].'
    """
    measured = recorded_unseen(model_info)
    if measured is None:
        return ""
    return (
        f"On {measured.nodules} nodules of patients it had not seen, the model was on the readers’ side in "
        f"{percent(measured.right)} [{100 * measured.low:.0f}, {100 * measured.high:.0f}]."
    )


def capitalised(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]


def repeats_of(facts: NoduleFacts, output: str) -> Repeats | None:
    """What is known of the repeatability of the map that is shown in full; None for a map by one model."""
    shown = explaining(facts)
    return None if shown is None else shown["repeatability"].get(output)


def repeats_words(repeats: Repeats | None) -> str:
    """What other trainings would draw again of a map.

    >>> repeats_words(None)
    'one model drew the map: whether another training would draw it again is unknown'
    >>> repeats_words({"models": 5, "agreement": 0.1, "expected": 0.36, "stable_share": 0.4, "note": ""})
    'other trainings would draw a smaller part of the map again (expected rank correlation 0.36)'
    """
    if repeats is None:
        return "one model drew the map: whether another training would draw it again is unknown"
    if repeats["expected"] is None:
        return f"the maps of the {repeats['models']} models are constant: whether they agree is undefined"
    share = next(words for least, words in _DRAWN_AGAIN if repeats["expected"] >= least)
    return f"other trainings would draw {share} of the map again (expected rank correlation {repeats['expected']:.2f})"


_DRAWN_AGAIN = ((0.75, "most"), (0.5, "the larger part"), (0.25, "a smaller part"), (-1.0, "little"))
"""From an expected rank correlation on, how much of a map is drawn again."""


def removal_words(curve: Mapping[str, Any] | None) -> str:
    """Whether the score falls sooner when pixels go in the map's order than in its reverse, beside what chance does.

    >>> removal_words({"percent": [0, 20, 100], "mif": [2.0, 0.0, 0.0], "lif": [2.0, 2.0, 0.0]})
    'Removal test passed: the score falls sooner if what the map says raises it goes first than if it goes last (gap 33 %; random maps: up to 25 %)'
    """  # noqa: E501
    if not curve:
        return ""
    figures = f"(gap {percent(abs(_gap(curve)))}; random maps: up to {percent(RANDOM_ORDER)})"
    order = deletion_order(curve)
    if order == "untold":
        return (
            "Removal test not passed: what the map says raises the score matters no more than in a random map "
            f"{figures}"
        )
    verb, moves = ("passed", "sooner") if order == "follows" else ("failed", "later")
    return (
        f"Removal test {verb}: the score falls {moves} if what the map says raises it goes first than if it goes last "
        f"{figures}"
    )


def _gap(curve: Mapping[str, Any]) -> float:
    """How much lower the score lies all in all when the most relevant pixels go first, as a share of its range."""
    scores = [*curve["mif"], *curve["lif"]]
    extent = max(scores) - min(scores)
    return (sum(curve["lif"]) - sum(curve["mif"])) / len(curve["mif"]) / extent if extent else 0.0


def deletion_order(curve: Mapping[str, Any]) -> str:
    """ "follows" where the score lies lower all in all when the most relevant pixels go first (positive relevance
    raises it), "contradicts" where it lies higher, "untold" where a random map could do the same.

    >>> deletion_order({"mif": [2.0, 0.0, 0.0], "lif": [2.0, 2.0, 0.0]})
    'follows'
    >>> deletion_order({"mif": [1.3, -0.9, -0.8], "lif": [1.3, -0.8, -0.8]})
    'untold'
    """
    apart = _gap(curve)
    if abs(apart) <= RANDOM_ORDER:
        return "untold"
    return "follows" if apart > 0 else "contradicts"


def explaining(facts: NoduleFacts) -> MapFacts | None:
    """The first method that explains: no control."""
    from lidc_xai.reporting.parts import is_control

    return next((item for item in facts["maps"] if not is_control(item["method"])), None)


def share_for_rating(facts: NoduleFacts) -> float | None:
    """Share of the malignancy map's strength that pulls towards the model's rating, 0 to 1; None without either."""
    shown, prediction = explaining(facts), facts["outputs"][0]["prediction"]
    if shown is None or prediction is None or "malignancy" not in shown["strength"]:
        return None
    strength = shown["strength"]["malignancy"]
    raised, lowered = strength["positive"], -strength["negative"]
    if raised + lowered == 0:
        return None
    return (raised if prediction["value"] > EVEN_CHANCE else lowered) / (raised + lowered)


def trust_in_rating(facts: NoduleFacts) -> Trust:
    """A verdict on the model's rating, from what was measured about it."""
    prediction = facts["outputs"][0]["prediction"]
    if prediction is None:
        return {"level": "none", "text": "There is no rating by a model.", "reasons": [], "unmeasured": []}
    warned = [_within(flag["title"]) for flag in facts["flags"] if flag["level"] == "warning"]
    reasons = []
    unmeasured = [] if prediction["set"] else ["the rating at 90 % confidence"]
    if not any(one["prediction"] and one["prediction"]["low"] is not None for one in facts["outputs"]):
        unmeasured.append("90 % intervals of the biomarkers")
    status = facts["independence"]["status"]
    if status == "trained_on":
        reasons.append("the model was trained on this patient")
        return {"level": "low", "text": "Do not rely on the rating", "reasons": reasons, "unmeasured": unmeasured}
    if status == "unknown":
        reasons.append("it is not known whether the model had seen this patient")
    if prediction["set"] == "low or high":
        reasons.append("low and high are both possible")
    elif not prediction["set"] and SURE[0] < prediction["value"] < SURE[1]:
        reasons.append("the probability is far from 0 and 1")
    if facts["origin"] == "own":
        reasons.append("how well the model does on scans like this one was not measured")
    reasons += [*_contradicted(facts, prediction["value"]), *_split(facts), *warned]
    if reasons:
        return {"level": "limited", "text": "Read the rating with care", "reasons": reasons, "unmeasured": unmeasured}
    text = "The rating may be taken at its measured accuracy"
    return {
        "level": "measured",
        "text": text,
        "reasons": ["this patient was never seen by the model"],
        "unmeasured": unmeasured,
    }


def _within(title: str) -> str:
    """A title inside a sentence; an abbreviation keeps its capitals.

    >>> _within("A plane grazes the nodule"), _within("HU not calibrated")
    ('a plane grazes the nodule', 'HU not calibrated')
    """
    return title if title[:2].isalpha() and title[:2].isupper() else title[:1].lower() + title[1:]


def _contradicted(facts: NoduleFacts, probability: float) -> list[str]:
    """What the readers say of this very nodule, where it is the opposite."""
    median = facts["malignancy_median"]
    if median is None or median == INDETERMINATE or (median > INDETERMINATE) == (probability > EVEN_CHANCE):
        return []
    return [f"the readers rated this nodule {'high' if median > INDETERMINATE else 'low'} (median {median:g})"]


def _split(facts: NoduleFacts) -> list[str]:
    spread = facts["outputs"][0]["readers"]["sd"]
    if spread is None or spread <= WIDE_DISAGREEMENT:
        return []
    return [f"the readers disagree on it (standard deviation {spread:.1f})"]


def trust_in_map(facts: NoduleFacts) -> Trust:
    """A verdict on the malignancy map, from repeatability, deletion, strength and where it lies."""
    shown = explaining(facts)
    if shown is None:
        return {"level": "none", "text": "There is no map.", "reasons": [], "unmeasured": []}
    repeats, curve = repeats_of(facts, "malignancy"), facts["curves"].get("malignancy")
    agreement = None if repeats is None else repeats["expected"]
    rank = shown["strength"].get("malignancy", {"rank": ""})["rank"]
    strong = "strength beside other nodules’ maps"
    told = {"repeatability": agreement, "removal of its pixels": curve, strong: rank or None}
    unmeasured = [name for name, value in told.items() if value is None]
    against: list[str] = []
    supporting: list[str] = []
    if repeats is not None and repeats["stable_share"] == 0:
        against.append("no patch is sure to keep its sign in another training")
    if agreement is not None:
        shaky = agreement < SHAKY_MAP
        drawn = f"other trainings would draw {'another one' if shaky else 'it again'} ({agreement:.2f} of 1)"
        (against if shaky else supporting).append(drawn)
    if curve:
        order = deletion_order(curve)
        text = {
            "follows": "it passed the removal test",
            "contradicts": "it failed the removal test: it points the wrong way",
        }.get(order, "it did not pass the removal test")
        (supporting if order == "follows" else against).append(text)
    if rank == "weak":
        against.append("it is weak, in the lowest quarter of nodules")
    inside, area = strength_inside(facts)
    if inside is not None and area is not None and inside < area:
        against.append("less of it lies on the nodule than by chance")
    if against:
        if len(against) > 1:
            words = "Do not read the map as the reason"
            return {"level": "low", "text": words, "reasons": against, "unmeasured": unmeasured}
        words = "The map gives no reliable place"
        return {"level": "limited", "text": words, "reasons": against, "unmeasured": unmeasured}
    if not supporting:
        words = "The map is untested here: it shows what the method draws"
        return {"level": "limited", "text": words, "reasons": [], "unmeasured": unmeasured}
    share = share_for_rating(facts)
    if share is not None and share < 0.5:
        words = f"{PASSED}, but does not show the reason"
        return {"level": "limited", "text": words, "reasons": supporting, "unmeasured": unmeasured}
    return {"level": "measured", "text": PASSED, "reasons": supporting, "unmeasured": unmeasured}
