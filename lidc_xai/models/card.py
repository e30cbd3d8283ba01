"""The model card and the licence notice that travel with a saved model, filled from the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lidc_xai.models.backbones import BACKBONES
from lidc_xai.ratings import RESEARCH_USE_ONLY, SCALES

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel

_LICENCE_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/legalcode",
    "BSD-3-Clause": "https://opensource.org/license/bsd-3-clause",
}


def model_card(model: NoduleModel) -> str:
    """Markdown: what the outputs mean, what the model learned from, how good it was there, and what it is not for."""
    info = model.training_info
    entry = BACKBONES.get(model.recipe["backbone"])
    window = model.preprocess.window
    parts = [
        f"# Nodule model on {model.recipe['backbone']}",
        f"**{RESEARCH_USE_ONLY}**",
        "Every output is agreement with radiologists' ratings of LIDC-IDRI nodules. A high malignancy output says "
        "that radiologists would rate the nodule as suspicious; it is no pathology and says nothing of cancer.",
        "## Outputs\n\n" + "\n".join(_output_lines(model)),
        "## Input\n\n"
        f"{', '.join(model.preprocess.views).capitalize()} planes of CT crops in HU{_box(model)}, "
        f"clamped to [{window[0]:g}, {window[1]:g}], "
        f"standardised with mean {model.preprocess.mean:.1f} and SD {model.preprocess.std:.1f}, resized to "
        f"{model.preprocess.size} px, {_channels_words(model)}. Raw outputs are averaged over "
        f"{_planes_words(model)}.",
        "## Network\n\n"
        f"Backbone {model.recipe['backbone']}"
        + (f" ({entry.citation})" if entry else " (timm)")
        + f", head {model.recipe['head']}, {sum(p.numel() for p in model.parameters()):,} parameters. "
        + _start_words(model),
        "## Training data\n\n" + _training_words(info),
    ]
    if "metrics" in info:
        parts.append("## Measured\n\n" + "\n".join(_metric_lines(info["metrics"])))
    parts.append(
        "## Limits\n\n"
        "Trained for nodules that readers had already found and marked; it detects nothing. Other scanners, doses or "
        "slice thicknesses may shift the outputs. Explanations of this model describe the model, not the disease."
    )
    return "\n\n".join(parts) + "\n"


def _box(model: NoduleModel) -> str:
    box, step = model.preprocess.box_mm, model.preprocess.spacing_mm
    return "" if box is None or step is None else f", {box:g} mm wide at {step:g} mm"


def _planes_words(model: NoduleModel) -> str:
    slices = model.preprocess.slices
    turns = ", and over the four quarter turns of each plane and their mirrors" if model.preprocess.turns == 8 else ""
    return ("the middle plane" if slices == 1 else f"the {slices} planes about the middle") + " of each view" + turns


def _channels_words(model: NoduleModel) -> str:
    if model.preprocess.channels == "neighbours":
        return "with the slices below and above it as the other two channels"
    return "repeated to three channels"


def _output_lines(model: NoduleModel) -> list[str]:
    lines = ["| output | kind | unit | low end | high end |", "|---|---|---|---|---|"]
    for name, kind in zip(model.output_names, model.output_kinds, strict=True):
        scale = SCALES[name]
        unit = "probability that the readers' median rating is above 3" if kind == "binary" else scale.unit
        lines.append(f"| {name} | {kind} | {unit} | {scale.low_words} | {scale.high_words} |")
    return lines


def _start_words(model: NoduleModel) -> str:
    source = model.initial_weights.get("source")
    if source is None:
        return "Started from random weights."
    digest = model.initial_weights.get("sha256")
    return f"Started from {source}" + (f" (SHA-256 {digest})." if digest else ".")


def _training_words(info: dict[str, Any]) -> str:
    if not info:
        return "Untrained: the numbers that this model gives mean nothing."
    counts = {part: len(info.get(f"{part}_patients", [])) for part in ("train", "validation")}
    words = [
        f"{counts['train']} patients to learn from, {counts['validation']} other patients to choose the checkpoint and "
        "calibrate on.",
        f"Seed {info.get('seed')}.",
    ]
    teacher = info.get("options", {}).get("teacher", {})
    if teacher.get("outputs"):
        words.append(f"Distilled: a larger model's outputs count {teacher['weight']:g} beside the readers' ratings.")
    if info.get("simulated"):
        words.insert(0, "**SIMULATED CT**: real annotations in computed images; of no value on real scans.")
    else:
        words.append("LIDC-IDRI: Armato et al. 2015, doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.")
    return " ".join(words)


def _metric_lines(metrics: dict[str, Any]) -> list[str]:
    lines = ["| figure | value |", "|---|---|"]
    for name, value in metrics.items():
        lines.append(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |")
    return lines


def licence_notice(model: NoduleModel) -> str:
    """The licence that binds these weights: the publisher's where they started from published ones, else the
    project's.
    """
    entry = BACKBONES.get(model.recipe["backbone"])
    start = model.initial_weights
    if start.get("source") is None:
        return _notice("Apache-2.0", "Trained from random weights with the package lidc-xai, whose licence applies.")
    licence = str(start.get("licence") or "unknown")
    citation = f" ({entry.citation})" if entry else ""
    return _notice(licence, f"Derived from published weights of {model.recipe['backbone']}{citation}.")


def _notice(licence: str, origin: str) -> str:
    where = _LICENCE_TEXTS.get(licence, "see the publisher of the weights")
    return f"SPDX-License-Identifier: {licence}\n\n{origin}\nLicence text: {where}\n\n{RESEARCH_USE_ONLY}\n"
