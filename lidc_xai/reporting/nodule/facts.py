"""Everything that a nodule's page says, as plain data: the page draws it, the JSON twin is it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from lidc_xai.files import plain
from lidc_xai.imaging.planes import padding_read
from lidc_xai.nodules import record
from lidc_xai.ratings import BIOMARKERS, CALCIFICATION_ABSENT, INDETERMINATE, OUTPUTS, RESEARCH_USE_ONLY, SCALES, Scale
from lidc_xai.reporting.nodule.fact_types import (
    Independence,
    MapFacts,
    NoduleFacts,
    Output,
    Places,
    Prediction,
    ReaderMask,
    Readings,
    Repeats,
    Strength,
)
from lidc_xai.reporting.nodule.flags import grazing_flags, models_behind, quality_flags
from lidc_xai.reporting.nodule.outlines import dice
from lidc_xai.reporting.nodule.places import map_places
from lidc_xai.reporting.nodule.reason import reason_words
from lidc_xai.reporting.nodule.words import (
    no_nodule_words,
    outline_words,
    reads_words,
    summary_sentences,
    trust_in_map,
    trust_in_rating,
    unseen_words,
)
from lidc_xai.reporting.values import number, spread, truth, words

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps
    from lidc_xai.nodules.strength import Anchor
    from lidc_xai.reporting.parts import NoduleParts

UNITS = {"malignancy": "logit", **dict.fromkeys(BIOMARKERS, "standard deviations")}
"""Unit of a relevance score: the unit of the output that it explains."""
SHORT_UNITS = {name: "logit" if unit == "logit" else "SD" for name, unit in UNITS.items()}
COMPLETE = ("integrated_gradients",)
"""Methods whose scores add up to the output (less that of the baseline): only theirs are contributions."""

_TITLES = {
    "cdam": "CDAM", "smooth_cdam": "Smooth CDAM", "integrated_cdam": "Integrated CDAM", "gradcam": "GradCAM",
    "gradcam_plus_plus": "GradCAM++", "xgradcam": "XGradCAM", "rsi_gradcam": "RSI-GradCAM", "fullgrad": "FullGrad",
    "smoothgrad": "SmoothGrad", "reciprocam": "ViT-ReciproCAM", "partial_lrp": "partial LRP",
    "attn_lrp": "AttnLRP", "libragrad": "LibraGrad", "legrad": "LeGrad", "token_input_x_gradient": "token × gradient",
    "input_x_gradient": "input × gradient", "random_weights": "random weights", "random": "random numbers",
}  # fmt: skip
CALCIFICATION_NOTE = (
    "The map explains the mean of the readers’ codes, which ends at 6 = absent: orange argues against calcium, "
    "blue for it."
)
_SHOWN_ELSEWHERE = (
    record.ANCHORS, record.NOISE, record.ASSOCIATIONS, record.UNSEEN, record.OWN_SIZE, record.NO_NODULE,
)  # fmt: skip
_KINDS = {"malignancy": "probability", "calcification": "any", "diameter": "length"}
_LIDC_IDENTIFIERS = (
    "nodule_id", "patient_id", "series_uid", "scan_index", "cluster_index", "annotation_ids", "is_from_initial",
)  # fmt: skip
_TABLE_FIELDS = (
    "size_mm", "spacing_mm", "slice_thickness_mm", "pixel_spacing_mm", "centre_x_mm", "centre_y_mm", "centre_z_mm",
)  # fmt: skip


def nodule_facts(row: Mapping[str, Any], votes: pd.DataFrame, crop: NoduleCrop, parts: NoduleParts) -> NoduleFacts:
    """Facts of one nodule, ready for JSON.

    ``row``: its row of the manifest; ``votes``: its rows of ``votes.csv``. What is missing is listed in ``missing``.
    """
    votes = votes.sort_values("reader") if "reader" in votes else votes
    prediction = parts.prediction
    outputs = [_output(name, row, votes, parts) for name in OUTPUTS]
    readings = {output["name"]: output["readers"] for output in outputs}
    maps = [_map_facts(name, item, parts.anchors.get(name, {})) for name, item in parts.maps.items()]
    facts: NoduleFacts = {
        "research_use_only": RESEARCH_USE_ONLY,
        "origin": parts.origin,
        "identifiers": _identifiers(row, parts),
        "simulated": bool(truth(row, "simulated")),
        "edited": words(row, "edited"),
        "crop": _known(row, _TABLE_FIELDS),
        "label": number(row, "label"),
        "malignancy_median": number(row, "malignancy_median"),
        "label_words": _label_words(number(row, "malignancy_median")),
        "reads": reads_words(parts.model_info, maps),
        "no_nodule": "" if _is_read(row) else no_nodule_words(prediction, parts.model_info),
        "unseen": "" if prediction is None else unseen_words(parts.model_info),
        "models": models_behind(prediction),
        "outline": outline_words(parts.origin, crop.consensus is not None),
        "independence": independence(row, prediction, parts.model_info, parts.origin),
        "outputs": outputs,
        "readers": _reader_masks(crop) if parts.origin == "lidc" else [],
        "maps": maps,
        "overlap": [one for one in parts.overlap if parts.origin == "lidc" or one["method"] != "readers"],
        "places": _places(crop, parts, outputs[-1]["prediction"]),
        "associations": {name: asdict(one) for name, one in parts.associations.items()},
        "curves": dict(parts.curves),
        "flags": [
            *quality_flags(row, readings, prediction, parts.origin, _padding_read(crop, parts)),
            *grazing_flags(crop, parts.maps),
        ],
        "missing": _missing(row, crop, parts),
        "summary": [],
        "trust": {},
        "similar": [dict(one) for one in parts.similar],
        "turning": dict(parts.turning),
        "model": shown_info(parts.model_info),
        "run": dict(parts.run_info or {}),
    }
    facts["trust"] = {"rating": trust_in_rating(facts), "map": trust_in_map(facts)}
    facts["summary"] = summary_sentences(facts, reason_words(facts))
    return cast("NoduleFacts", plain(facts))


def _places(crop: NoduleCrop, parts: NoduleParts, diameter: Prediction | None) -> Places | None:
    """Where the malignancy map of the first method that explains lies."""
    from lidc_xai.reporting.parts import is_control

    shown = next((item for name, item in parts.maps.items() if not is_control(name)), None)
    return None if shown is None else map_places(crop, shown, "malignancy", diameter["value"] if diameter else None)


def _is_read(row: Mapping[str, Any]) -> bool:
    """Whether a reader marked this crop: else nobody says that there is a nodule in it."""
    return bool(number(row, "n_readers"))


def _padding_read(crop: NoduleCrop, parts: NoduleParts) -> float | None:
    reads = (parts.model_info or {}).get("reads")
    if not isinstance(reads, Mapping):
        return None
    return padding_read(crop, reads["views"], int(reads.get("slices", 1)))


def _identifiers(row: Mapping[str, Any], parts: NoduleParts) -> dict[str, Any]:
    """Of LIDC all; of somebody's own CT the nodule alone, unless its identifiers are to be kept."""
    wanted = _LIDC_IDENTIFIERS if parts.origin == "lidc" or parts.keep_ids else ("nodule_id",)
    return _known(row, wanted)


def _known(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Fields that the row has; one that is empty is left out."""
    values = {name: plain(row[name]) for name in names if name in row}
    return {name: value for name, value in values.items() if value not in (None, "", [])}


def shown_info(model_info: Mapping[str, Any] | None) -> dict[str, Any]:
    """The model's record as a page shows it; its lists of patients, which stand in the model's folder, are numbers."""
    shown = {key: value for key, value in (model_info or {}).items() if key not in _SHOWN_ELSEWHERE}
    if isinstance(shown.get("intervals"), Mapping):  # how they are computed is nothing to read
        told = ("level", "nodules", "coverage")
        shown["intervals"] = {key: value for key, value in shown["intervals"].items() if key in told}
    return {key: len(value) if key.endswith("_patients") else value for key, value in shown.items()}


def independence(
    row: Mapping[str, Any],
    prediction: Mapping[str, Any] | None,
    model_info: Mapping[str, Any] | None,
    origin: str = "lidc",
) -> Independence:
    """Whether the model had seen this patient: ``status`` independent, trained_on, unknown or none; a sentence."""
    if prediction is None:
        return {"status": "none", "text": "There is no prediction for this nodule."}
    out_of_fold, fold = truth(prediction, "out_of_fold"), number(prediction, "fold")
    if fold is not None and words(prediction, "split_kind") == "paper":
        text = f"Fold {fold:.0f} of a split by nodule: other nodules of this patient may have been in training."
        return {"status": "trained_on", "text": text}
    if fold is not None and out_of_fold is None:
        out_of_fold = True
    trained = record.known_patients(model_info)
    patient = words(row, "patient_id")
    if out_of_fold is False or (out_of_fold is None and patient in trained):
        text = "The model was trained on this patient. Its figures here say nothing about how well it does on new ones."
        return {"status": "trained_on", "text": text}
    if out_of_fold and fold is not None:
        text = f"Never seen by this model: the model of fold {fold:.0f} was trained without this patient."
        return {"status": "independent", "text": text}
    if origin == "own" and (trained or out_of_fold):
        text = "Never seen by this model under this name. Scans of one’s own differ from those it learned from."
        return {"status": "independent", "text": text}
    if trained and patient:
        text = f"Never seen by this model: not among the {len(trained)} patients that it was trained and chosen on."
        return {"status": "independent", "text": text}
    if out_of_fold:
        return {"status": "independent", "text": "Never seen by this model: it was trained without this patient."}
    return {"status": "unknown", "text": "The model does not record which patients it was trained on."}


def _label_words(median: float | None) -> str:
    """What the median of the readers' malignancy ratings makes of a nodule: the label is by the median alone."""
    if median is None:
        return ""
    if median == INDETERMINATE:
        return "indeterminate, no label"
    return "rated high (above 3)" if median > INDETERMINATE else "rated low (below 3)"


def _output(name: str, row: Mapping[str, Any], votes: pd.DataFrame, parts: NoduleParts) -> Output:
    scale = SCALES[name]
    prediction = _prediction(name, parts)
    if prediction is not None:
        prediction["percentile"] = parts.percentiles.get(name)
    return {
        "name": name,
        "title": name.capitalize(),
        "kind": cast("Any", _KINDS.get(name, "rating")),
        "unit": "P(any)" if name == "calcification" else scale.unit,
        "relevance_unit": UNITS[name],
        "ends": _ends(name, scale),
        "positive": scale.towards(1),
        "negative": scale.towards(-1),
        "note": CALCIFICATION_NOTE if name == "calcification" else "",
        "prediction": prediction,
        "readers": _readings(name, row, votes),
    }


def _ends(name: str, scale: Scale) -> list[str]:
    if name == "malignancy":
        return ["low", "high"]
    return ["none", "any"] if name == "calcification" else [scale.low_words, scale.high_words]


def _readings(name: str, row: Mapping[str, Any], votes: pd.DataFrame) -> Readings:
    scale = SCALES[name]
    column = "diameter_mm" if name == "diameter" else name
    given = [float(vote) for vote in votes[column].dropna()] if column in votes else []
    if name == "calcification":
        return _calcification_readings(row, given)
    mean, sd, n = spread(given)
    if not given and number(row, name) is not None:
        mean, sd, n = number(row, name), number(row, f"{name}_sd"), int(number(row, "n_readers") or 0)
    text = "" if mean is None or name == "diameter" else _mean_in_words(scale, mean)
    median = number(row, "malignancy_median")
    if name == "malignancy" and median is not None:
        text = f"median {median:g}: {_label_words(median)}"  # one word for one nodule: the label's
    return {"mean": mean, "sd": sd, "n": n, "votes": given, "words": text, "tally": ""}


def _calcification_readings(row: Mapping[str, Any], codes: list[float]) -> Readings:
    """The share of readers who saw any calcification, and each code with its number: codes have no mean."""
    names = SCALES["calcification"].codes
    tally = ", ".join(f"{count} × {names.get(int(code), code)}" for code, count in Counter(codes).most_common())
    share = sum(code < CALCIFICATION_ABSENT for code in codes) / len(codes) if codes else number(row, "p_calcified")
    n = len(codes) or (int(number(row, "n_readers") or 0) if share is not None else 0)
    return {"mean": share, "sd": None, "n": n, "votes": codes, "words": tally, "tally": tally}


def _mean_in_words(scale: Scale, mean: float) -> str:
    """A mean rating in words; one that lies midway between two steps is said to."""
    steps = [scale.codes[code] for code in sorted({math.floor(mean), math.ceil(mean)}) if code in scale.codes]
    if mean % 1 == 0.5 and len(steps) > 1:
        return f"{steps[0]} to {steps[1]}"
    return scale.in_words(mean)


def _prediction(name: str, parts: NoduleParts) -> Prediction | None:
    """What the predictions' row says of an output. Of calcification only P(any): a mean of its codes is no quantity."""
    row = parts.prediction
    column = {"malignancy": "malignancy_probability", "calcification": "p_calcified"}.get(name, name)
    value = number(row, column)
    if value is None:
        return None
    ordered = name not in ("malignancy", "calcification", "diameter")
    if ordered:  # a cross-validation's table holds what the network gives, which may lie beyond the scale
        value = min(max(value, SCALES[name].low), SCALES[name].high)
    prediction: Prediction = {
        "value": value, "low": None, "high": None, "coverage": _coverage(parts.model_info, name),
        "disagree_by": _disagreement(row, column), "least": None, "greatest": None, "set": "",
        "words": SCALES[name].in_words(value) if ordered else "",
        "percentile": None, "logit": None, "diameter_only": None, "own_diameter_only": None,
    }  # fmt: skip
    if name == "malignancy":
        prediction["least"], prediction["greatest"] = (number(row, f"{column}_{end}") for end in ("least", "greatest"))
        prediction["set"] = _set_words(words(row, "malignancy_set"))
        prediction["logit"] = number(row, "malignancy_logit")
        prediction["diameter_only"] = number(row, "baseline.diameter_only.malignancy_probability")
        line, diameter = record.recorded_own_size(parts.model_info), number(row, "diameter")
        if line is not None and diameter is not None:
            prediction["own_diameter_only"] = line.probability(diameter)
    elif name != "calcification":
        prediction["low"], prediction["high"] = number(row, f"{name}_low"), number(row, f"{name}_high")
    return prediction


def _disagreement(row: Mapping[str, Any] | None, column: str) -> float | None:
    """The standard deviation over models, views and slices; one model disagrees with nobody."""
    return None if models_behind(row) == 1 else number(row, f"{column}_models_disagree_by")


def _set_words(text: str) -> str:
    """A conformal set in words; an empty one is shown as both, since it excludes nothing that can be acted on."""
    ends = {end for end in ("low", "high") if end in text.lower()}
    return "" if not text else "low or high" if len(ends) != 1 else ends.pop()


def _coverage(model_info: Mapping[str, Any] | None, name: str) -> float | None:
    """Measured coverage of an output's 90 % intervals, where the model records it."""
    held = (model_info or {}).get("intervals")
    coverage = held.get("coverage") if isinstance(held, Mapping) else None
    return number(coverage, name) if isinstance(coverage, Mapping) else None


def _reader_masks(crop: NoduleCrop) -> list[ReaderMask]:
    """Per reader with a mask: volume and Dice against the consensus of the others (and of all)."""
    if crop.reader_masks is None:
        return []
    masks = np.asarray(crop.reader_masks, dtype=bool)
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(crop.affine)[:3, :3])))
    of_readers: list[ReaderMask] = []
    for index, mask in enumerate(masks):
        others = np.delete(masks, index, axis=0)
        against = others.mean(axis=0) >= 0.5 if len(others) else None
        of_readers.append(
            {
                "reader": index + 1,
                "volume_mm3": int(mask.sum()) * voxel_mm3,
                "dice_consensus": None
                if crop.consensus is None
                else dice(mask, np.asarray(crop.consensus, dtype=bool)),
                "dice_others": None if against is None else dice(mask, against),
            }
        )
    return of_readers


def method_title(method: str) -> str:
    """A method's name as the literature writes it."""
    name, _, variant = method.partition("@")
    title = _TITLES.get(name, name.replace("_", " "))
    return f"{title}, {variant.replace('_', ' ')}" if variant else title


def strength_word(method: str) -> str:
    """What the sum of a map's scores may be called."""
    return "contribution" if method.partition("@")[0] in COMPLETE else "strength"


def _strength(method: str, scores: np.ndarray, anchor: Anchor | None, models: int) -> Strength:
    """``scores``: (V, h, w) of one output, the mean of ``models``; ranked among means of as many alone."""
    largest = float(np.abs(scores).max())
    return {
        "positive": float(scores.clip(min=0).sum(axis=(1, 2)).mean()),
        "negative": float(scores.clip(max=0).sum(axis=(1, 2)).mean()),
        "largest": largest,
        "rank": "" if anchor is None or anchor.models != models else anchor.rank(largest),
        "word": strength_word(method),
    }


def _map_facts(method: str, maps: NoduleMaps, anchors: Mapping[str, Anchor]) -> MapFacts:
    relevance = np.asarray(maps.relevance, dtype=np.float64)
    names = [name for name in maps.output_names if name in SCALES]
    columns = {name: maps.output_names.index(name) for name in names}
    panels = [
        {
            "output": name,
            "view": view,
            "index": int(maps.indices[place]),
            "score": float(maps.values[place, column]),
            "minimum": float(relevance[place, column].min()),
            "maximum": float(relevance[place, column].max()),
            "positive_sum": float(relevance[place, column].clip(min=0).sum()),
            "negative_sum": float(relevance[place, column].clip(max=0).sum()),
        }
        for name, column in columns.items()
        for place, view in enumerate(maps.views)
    ]
    repeats = maps.repeatability
    models = 1 if repeats is None else len(repeats.models)
    return {
        "method": method,
        "title": method_title(method),
        "engine": maps.engine,
        "options": maps.options,
        "grid": list(relevance.shape[-2:]),
        "token_mm": list(maps.token_mm),
        "outputs": names,
        "limits": colour_limits(maps, anchors),
        "anchored": {name: anchors[name].nodules for name in names if name in anchors},
        "strength": {
            name: _strength(method, relevance[:, k], anchors.get(name), models) for name, k in columns.items()
        },
        "repeatability": {} if repeats is None else {name: cast("Repeats", repeats.of(name)) for name in names},
        "panels": panels,
    }


def colour_limits(maps: NoduleMaps, anchors: Mapping[str, Anchor]) -> dict[str, float]:
    """Output -> the absolute score of full colour: the cohort's anchor, else the largest score of its unit here."""
    largest: dict[str, float] = {}
    for column, name in enumerate(maps.output_names):
        if name in UNITS:
            largest[UNITS[name]] = max(largest.get(UNITS[name], 0.0), float(np.abs(maps.relevance[:, column]).max()))
    return {
        name: anchors[name].full if name in anchors else largest[UNITS[name]]
        for name in maps.output_names
        if name in UNITS
    }


def _missing(row: Mapping[str, Any], crop: NoduleCrop, parts: NoduleParts) -> list[str]:
    missing = []
    if parts.prediction is None:
        missing.append("Predictions: run lidc-xai predict on this store with a model.")
    if not parts.maps:
        missing.append("Maps: run lidc-xai explain on this store with a model.")
    if parts.origin == "lidc" and crop.reader_masks is None and number(row, "n_readers"):
        missing.append("Readers' contours: this store was written without masks.")
    return missing
