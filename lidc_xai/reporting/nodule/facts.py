"""Everything that a nodule's page says, as plain data: the page draws it, the JSON twin is it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lidc_xai.ratings import BIOMARKERS, INDETERMINATE, OUTPUTS, RESEARCH_USE_ONLY, SCALES, Scale
from lidc_xai.reporting.nodule.flags import quality_flags
from lidc_xai.reporting.nodule.outlines import dice
from lidc_xai.reporting.values import number, plain, spread, truth, words

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps
    from lidc_xai.reporting.parts import NoduleParts

UNITS = {"malignancy": "logit", **dict.fromkeys(BIOMARKERS, "standard deviations")}
"""Unit of a relevance score: the unit of the output that it explains."""

_TITLES = {
    "cdam": "CDAM", "smooth_cdam": "Smooth CDAM", "integrated_cdam": "Integrated CDAM", "gradcam": "GradCAM",
    "gradcam_plus_plus": "GradCAM++", "xgradcam": "XGradCAM", "rsi_gradcam": "RSI-GradCAM", "fullgrad": "FullGrad",
    "smoothgrad": "SmoothGrad", "reciprocam": "ViT-ReciproCAM", "partial_lrp": "partial LRP",
    "input_x_gradient": "input × gradient", "random_weights": "random weights", "random": "random numbers",
}  # fmt: skip
CALCIFICATION_NOTE = "The scale ends at 6 = absent: orange argues against calcium, blue for it."
_IDENTIFIERS = (
    "nodule_id",
    "patient_id",
    "series_uid",
    "scan_index",
    "cluster_index",
    "annotation_ids",
    "is_from_initial",
)
_TABLE_FIELDS = (
    "size_mm",
    "spacing_mm",
    "slice_thickness_mm",
    "pixel_spacing_mm",
    "centre_x_mm",
    "centre_y_mm",
    "centre_z_mm",
)


def nodule_facts(
    row: Mapping[str, Any],
    votes: pd.DataFrame,
    crop: NoduleCrop,
    parts: NoduleParts,
) -> dict[str, Any]:
    """Facts of one nodule, ready for JSON.

    ``row``: its row of the manifest; ``votes``: its rows of ``votes.csv``. What is missing is listed in ``missing``.
    """
    votes = votes.sort_values("reader") if "reader" in votes else votes
    prediction = parts.prediction
    outputs = [_output(name, row, votes, prediction) for name in OUTPUTS]
    for output in outputs:
        if output["prediction"] is not None:
            output["prediction"]["percentile"] = parts.percentiles.get(output["name"])
    readings = {output["name"]: output["readers"] for output in outputs}
    facts = {
        "research_use_only": RESEARCH_USE_ONLY,
        "identifiers": {name: row[name] for name in _IDENTIFIERS if name in row},
        "simulated": bool(truth(row, "simulated")),
        "crop": {name: row[name] for name in _TABLE_FIELDS if name in row},
        "label": number(row, "label"),
        "malignancy_median": number(row, "malignancy_median"),
        "label_words": _label_words(number(row, "malignancy_median")),
        "p_calcified": number(row, "p_calcified"),
        "independence": independence(row, prediction, parts.model_info),
        "outputs": outputs,
        "readers": _reader_masks(crop),
        "maps": [_map_facts(name, item) for name, item in parts.maps.items()],
        "overlap": parts.overlap,
        "map_spread": parts.spread,
        "curves": parts.curves,
        "flags": quality_flags(row, readings, prediction),
        "missing": _missing(row, crop, parts),
        "model": parts.model_info or {},
        "run": parts.run_info or {},
    }
    return plain(facts)


def independence(
    row: Mapping[str, Any], prediction: Mapping[str, Any] | None, model_info: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Whether the model had seen this patient: ``status`` independent, trained_on, unknown or none; a sentence."""
    if prediction is None:
        return {"status": "none", "text": "There is no prediction for this nodule."}
    out_of_fold, fold = truth(prediction, "out_of_fold"), number(prediction, "fold")
    if fold is not None and words(prediction, "split_kind") == "paper":
        text = f"Fold {fold:.0f} of a split by nodule: other nodules of this patient may have been in training."
        return {"status": "trained_on", "text": text}
    if fold is not None and out_of_fold is None:
        out_of_fold = True
    trained = _training_patients(model_info)
    patient = words(row, "patient_id")
    if out_of_fold is False or (out_of_fold is None and patient in trained):
        text = "The model was trained on this patient. Its figures here say nothing about how well it does on new ones."
        return {"status": "trained_on", "text": text}
    if out_of_fold and fold is not None:
        text = f"Out of fold: the model of fold {fold:.0f} was trained without this patient."
        return {"status": "independent", "text": text}
    if trained and patient:
        text = f"Out of fold: this patient is not among the {len(trained)} that the model was trained and chosen on."
        return {"status": "independent", "text": text}
    if out_of_fold:
        return {"status": "independent", "text": "Out of fold: the model was trained without this patient."}
    return {"status": "unknown", "text": "The model does not record which patients it was trained on."}


def _label_words(median: float | None) -> str:
    """What the median of the readers' malignancy ratings makes of a nodule: the label is by the median alone."""
    if median is None:
        return ""
    if median == INDETERMINATE:
        return "indeterminate, no label"
    return "rated high (above 3)" if median > INDETERMINATE else "rated low (below 3)"


def _training_patients(model_info: Mapping[str, Any] | None) -> set[str]:
    """Patients that a model learned from or was chosen on, as its ``training_info`` records them."""
    info = model_info or {}
    return {str(patient) for part in ("train_patients", "validation_patients") for patient in info.get(part) or ()}


def _output(
    name: str, row: Mapping[str, Any], votes: pd.DataFrame, prediction: Mapping[str, Any] | None
) -> dict[str, Any]:
    scale = SCALES[name]
    column = "diameter_mm" if name == "diameter" else name
    given = [float(vote) for vote in votes[column].dropna()] if column in votes else []
    readers: dict[str, Any] = {**spread(given), "votes": given, "words": ""}
    if not given and number(row, name) is not None:
        readers.update(mean=number(row, name), sd=number(row, f"{name}_sd"), n=int(number(row, "n_readers") or 0))
    if readers["mean"] is not None and name != "diameter":
        readers["words"] = _mean_in_words(scale, readers["mean"])
    return {
        "name": name,
        "title": name.capitalize(),
        "kind": "binary" if name == "malignancy" else "regression",
        "unit": scale.unit,
        "relevance_unit": UNITS[name],
        "ends": ["low", "high"] if name == "malignancy" else [scale.low_words, scale.high_words],
        "positive": scale.towards(1),
        "negative": scale.towards(-1),
        "note": CALCIFICATION_NOTE if name == "calcification" else "",
        "prediction": _prediction(name, prediction),
        "readers": readers,
    }


def _mean_in_words(scale: Scale, mean: float) -> str:
    """A mean rating in words; one that lies midway between two steps is said to."""
    steps = [scale.codes[code] for code in sorted({math.floor(mean), math.ceil(mean)}) if code in scale.codes]
    if mean % 1 == 0.5 and len(steps) > 1:
        return f"{steps[0]} to {steps[1]}"
    return scale.in_words(mean)


def _prediction(name: str, prediction: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if name == "malignancy":
        value = number(prediction, "malignancy_probability")
        low, high = number(prediction, "malignancy_probability_low"), number(prediction, "malignancy_probability_high")
        sd = number(prediction, "malignancy_probability_sd")
        extra: dict[str, Any] = {
            "logit": number(prediction, "malignancy_logit"),
            "diameter_only": number(prediction, "baseline.diameter_only.malignancy_probability"),
        }
        text = words(prediction, "malignancy_words")
    else:
        value, sd = number(prediction, name), number(prediction, f"{name}_sd")
        low = high = None
        extra = {}
        text = words(prediction, f"{name}_words") if name != "diameter" else ""
        if not text and value is not None and name != "diameter":
            text = SCALES[name].in_words(value)
    if value is None:
        return None
    return {"value": value, "sd": sd, "low": low, "high": high, "words": text, **extra}


def _reader_masks(crop: NoduleCrop) -> list[dict[str, Any]]:
    """Per reader with a mask: volume and Dice against the consensus of the others (and of all)."""
    if crop.reader_masks is None:
        return []
    masks = np.asarray(crop.reader_masks, dtype=bool)
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(crop.affine)[:3, :3])))
    found = []
    for index, mask in enumerate(masks):
        others = np.delete(masks, index, axis=0)
        against = others.mean(axis=0) >= 0.5 if len(others) else None
        found.append(
            {
                "reader": index + 1,
                "volume_mm3": int(mask.sum()) * voxel_mm3,
                "dice_consensus": None
                if crop.consensus is None
                else dice(mask, np.asarray(crop.consensus, dtype=bool)),
                "dice_others": None if against is None else dice(mask, against),
            }
        )
    return found


def method_title(method: str) -> str:
    """A method's name as the literature writes it."""
    name, _, variant = method.partition("@")
    title = _TITLES.get(name, name.replace("_", " "))
    return f"{title}, {variant.replace('_', ' ')}" if variant else title


def _map_facts(method: str, maps: NoduleMaps) -> dict[str, Any]:
    relevance = np.asarray(maps.relevance, dtype=np.float64)
    names = [name for name in maps.output_names if name in SCALES]
    columns = {name: maps.output_names.index(name) for name in names}
    limits: dict[str, float] = {}
    for name, column in columns.items():
        limits[UNITS[name]] = max(limits.get(UNITS[name], 0.0), float(np.abs(relevance[:, column]).max()))
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
    return {
        "method": method,
        "title": method_title(method),
        "engine": maps.engine,
        "options": maps.options,
        "grid": list(relevance.shape[-2:]),
        "token_mm": list(maps.token_mm),
        "outputs": names,
        "limits": limits,
        "panels": panels,
    }


def _missing(row: Mapping[str, Any], crop: NoduleCrop, parts: NoduleParts) -> list[str]:
    found = []
    if parts.prediction is None:
        found.append("Predictions: run lidc-xai predict on this store with a model.")
    if not parts.maps:
        found.append("Maps: run lidc-xai explain on this store with a model.")
    if crop.reader_masks is None and number(row, "n_readers"):
        found.append("Readers' contours: this store was written without masks.")
    return found
