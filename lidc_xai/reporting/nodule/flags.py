"""Quality flags: what a reader of the report should know before believing a number in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.imaging.planes import CUT_AXIS
from lidc_xai.ratings import INDETERMINATE
from lidc_xai.reporting.nodule.fact_types import Flag, Readings
from lidc_xai.reporting.values import number, truth, words

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps

GRAZED = 0.5
"""Share of the largest outline's area below which a plane only grazes the nodule."""
THICK_SLICES_MM = 2.5
WIDE_DISAGREEMENT = 1.0
WIDE_VIEWS = 0.2


def _flag(level: str, title: str, text: str) -> Flag:
    return {"level": level, "title": title, "text": text}


def quality_flags(
    row: Mapping[str, Any],
    readings: Mapping[str, Readings],
    prediction: Mapping[str, Any] | None = None,
    origin: str = "lidc",
    padding_read: float | None = None,
) -> list[Flag]:
    """Flags of one nodule: dicts of ``level`` (``warning`` or ``note``), ``title`` and ``text``.

    ``row`` is its row of the store's manifest; ``readings`` maps a rating to ``mean``, ``sd`` and ``n`` over readers;
    ``prediction`` is its row of the predictions; ``origin`` "own": nobody's readings belong to it. ``padding_read``:
    share of the planes that the model reads which was never scanned (``imaging.planes.padding_read``); None: not known.
    """
    readers = _reader_flags(row, readings) if origin == "lidc" else []
    return [*_image_flags(row, padding_read), *readers, *_model_flags(row, prediction)]


def _image_flags(row: Mapping[str, Any], padding_read: float | None) -> list[Flag]:
    flags = []
    if truth(row, "simulated"):
        flags.append(_flag("warning", "SIMULATED", "The CT is computer-generated; only contours and ratings are real."))
    if words(row, "edited"):
        text = f"A property of the nodule was changed by computer ({words(row, 'edited')}); readers rated the original."
        flags.append(_flag("warning", "EDITED", text))
    issues = [text for text in words(row, "issues").split("; ") if text]
    if truth(row, "hu_calibrated") is False:
        how = _taken(issues, "HU estimated") or "Grey values are not Hounsfield units"
        text = f"{how}: the pictures and what the model saw are approximate."
        flags.append(_flag("warning", "HU not calibrated", text))
    if truth(row, "padded"):
        what = _taken(issues, "of the box lies outside") or "A part of the box lies outside the scan"
        what = what.replace("the box", "the cube cut out about the nodule")
        flags.append(_padding_flag(what, padding_read))
    if truth(row, "larger_than_box"):
        extent = _taken(issues, "larger than the")
        cut = f"A reader drew more than the cube about the nodule holds{f' ({extent})' if extent else ''}"
        flags.append(_flag("warning", "Larger than the cube", f"{cut}; the model may have seen a part of it."))
    thickness = number(row, "slice_thickness_mm")
    if thickness is not None and thickness > THICK_SLICES_MM:
        flags.append(
            _flag("note", f"Thick slices ({thickness:.3g} mm)", "Detail across slices is interpolated.")
        )  # fmt: skip
    if issues:
        flags.append(_flag("detail", "Found while reading the scan", "; ".join(issues)))
    return flags


def _padding_flag(what: str, padding_read: float | None) -> Flag:
    """Padding that the model is not shown is no reason to doubt what it says."""
    if padding_read is None:
        return _flag("warning", "Partly outside the scan", f"{what}; the model saw filling there.")
    if padding_read == 0:
        return _flag("detail", "Partly outside the scan", f"{what}; the planes that the model reads are whole.")
    return _flag(
        "warning",
        "Partly outside the scan",
        f"{what}, {padding_read:.0%} of the planes that the model reads; it saw filling there.",
    )


def _taken(issues: list[str], phrase: str) -> str:
    """What an issue that a flag tells anyway measured; it is taken off the list."""
    for text in issues:
        if phrase in text:
            issues.remove(text)
            return text.partition(":")[0]
    return ""


def _reader_flags(row: Mapping[str, Any], readings: Mapping[str, Readings]) -> list[Flag]:
    flags = []
    n_readers = number(row, "n_readers")
    if not n_readers:
        return [_flag("note", "No readers", "No contours and no ratings belong to this crop.")]
    if n_readers < 3:
        flags.append(
            _flag("note", f"{n_readers:.0f} of 4 readers", "Fewer than three readers marked it; the mean is uncertain.")
        )
    masked = number(row, "n_readers_masked")
    if masked is not None and masked < n_readers:
        flags.append(
            _flag("note", f"{masked:.0f} of {n_readers:.0f} contours", "Some readers' contours are missing here.")
        )
    if truth(row, "ambiguous"):
        flags.append(
            _flag("warning", "Ambiguous cluster", "More than four annotations could not be told apart; two nodules may "
                  "be mixed.")
        )  # fmt: skip
    if number(row, "malignancy_median") == INDETERMINATE:
        flags.append(_flag("note", "Indeterminate", "The readers' median malignancy is 3: it has no label."))
    wide = [
        name for name, reading in readings.items() if name != "diameter" and (reading["sd"] or 0) > WIDE_DISAGREEMENT
    ]
    if wide:
        text = ", ".join(name.replace("_", " ") for name in wide)
        flags.append(_flag("note", "Readers disagree", f"Standard deviation above {WIDE_DISAGREEMENT:g} in {text}."))
    return flags


def models_behind(prediction: Mapping[str, Any] | None) -> int | None:
    """How many models a prediction is a mean of; None where its table does not say."""
    count = number(prediction, "n_models")
    if count is None and number(prediction, "fold") is not None:
        count = 1.0  # a cross-validation predicts each nodule by the fold that never saw it
    return None if count is None else int(count)


def _model_flags(row: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Flag]:
    flags = []
    predicted, side = number(prediction, "diameter"), number(row, "size_mm")
    if predicted is not None and side is not None and predicted > side and not truth(row, "larger_than_box"):
        text = f"The model predicts {predicted:.0f} mm in a picture of {side:g} mm: it saw a part of the nodule."
        flags.append(_flag("warning", "Predicted larger than the picture", text))
    low, high = (number(prediction, f"malignancy_probability_{end}") for end in ("least", "greatest"))
    if low is not None and high is not None and low < 0.5 < high and high - low >= WIDE_VIEWS:
        one = models_behind(prediction) == 1
        who, title = ("planes", "Its planes differ") if one else ("models and planes", "Models disagree")
        text = f"Single {who} give probabilities from {low:.2f} to {high:.2f}, across 0.5."
        flags.append(_flag("warning", title, text))
    return flags


def grazing_flags(crop: NoduleCrop, maps: Mapping[str, NoduleMaps]) -> list[Flag]:
    """Explained planes that meet little of the outline: their maps say little about the nodule."""
    if crop.consensus is None or not crop.consensus.any():
        return []
    flags = {}
    for item in maps.values():
        for view, index in zip(item.views, item.indices, strict=True):
            area = np.moveaxis(crop.consensus, CUT_AXIS[view], 0).sum(axis=(1, 2))
            flags[view] = float(area[int(index)] / area.max())
    low = [f"{view} {share:.0%}" for view, share in flags.items() if share < GRAZED]
    if not low:
        return []
    text = f"The explained plane meets little of the outline (of its largest: {', '.join(low)})."
    return [_flag("warning", "A plane grazes the nodule", text)]
