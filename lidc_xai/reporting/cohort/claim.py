"""The topics of CLAIM (Checklist for Artificial Intelligence in Medical Imaging; Mongan, Moy, Kahn, Radiology:
Artificial Intelligence 2020, 2(2):e200029), each with what this run can say about it.

Topics are named in our own words; the checklist itself has the authoritative text. What a program cannot know is left
to the authors and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lidc_xai.reporting.values import summary

AUTHORS = "For the authors."

_TOPICS: tuple[tuple[str, str, str], ...] = (
    ("Title and abstract", "Names the AI method", "title"),
    ("Title and abstract", "Structured summary", ""),
    ("Introduction", "Clinical background and role", ""),
    ("Introduction", "Aims and hypotheses", ""),
    ("Methods", "Prospective or retrospective", "design"),
    ("Methods", "Kind and goal of the study", "goal"),
    ("Methods", "Sources of the data", "sources"),
    ("Methods", "Inclusion and exclusion", "flow"),
    ("Methods", "Preprocessing", "preprocessing"),
    ("Methods", "Selection of parts of the data", "crops"),
    ("Methods", "Definitions of data elements", "elements"),
    ("Methods", "De-identification", "identity"),
    ("Methods", "Missing data", "missing"),
    ("Ground truth", "Definition of the reference", "reference"),
    ("Ground truth", "Why this reference", "reference_why"),
    ("Ground truth", "Who annotated, with what qualification", "annotators"),
    ("Ground truth", "Annotation tools", "annotators"),
    ("Ground truth", "Variability between annotators", "variability"),
    ("Data partitions", "Sample size and how it was set", "size"),
    ("Data partitions", "How data were divided", "split"),
    ("Data partitions", "Level at which parts are disjoint", "disjoint"),
    ("Model", "Description of the model", "model"),
    ("Model", "Software and versions", "software"),
    ("Model", "Start of the parameters", "start"),
    ("Training", "Details of training", "training"),
    ("Training", "How the final model was chosen", "choice"),
    ("Training", "Ensembling", "ensemble"),
    ("Evaluation", "Metrics of performance", "metrics"),
    ("Evaluation", "Statistics and uncertainty", "statistics"),
    ("Evaluation", "Robustness and sensitivity", "robustness"),
    ("Evaluation", "Explainability", "explanation"),
    ("Evaluation", "External data", "external"),
    ("Results", "Flow of cases", "flow"),
    ("Results", "Demographics", "demographics"),
    ("Results", "Performance", "performance"),
    ("Results", "Estimates with precision", "statistics"),
    ("Results", "Analysis of errors", "errors"),
    ("Discussion", "Limitations", "limits"),
    ("Discussion", "Implications for practice", ""),
    ("Other", "Registration", ""),
    ("Other", "Protocol, code and data", "code"),
    ("Other", "Funding", ""),
)


_TRAINING = ("epochs", "batch_size", "optimiser", "loss", "augment")


def claim_checklist(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The 42 topics: ``number``, ``section``, ``topic``, ``answer`` and ``open`` (left to the authors).

    ``facts``: ``simulated``, ``model`` (training information), ``run``, ``metrics`` and ``crop`` of a cohort's report.
    """
    answers = _answers(facts)
    rows = []
    for place, (section, topic, key) in enumerate(_TOPICS, start=1):
        answer = answers.get(key, "")
        rows.append(
            {"number": place, "section": section, "topic": topic, "answer": answer or AUTHORS, "open": not answer}
        )
    return rows


def _answers(facts: Mapping[str, Any]) -> dict[str, str]:
    model, metrics, run = facts.get("model") or {}, facts.get("metrics") or {}, facts.get("run") or {}
    options = model.get("options") or {}
    simulated = "SIMULATED CT around real contours and ratings of LIDC-IDRI. " if facts.get("simulated") else ""
    paper = metrics.get("split") == "paper"
    return {
        "design": "Retrospective, on a public collection.",
        "goal": "Agreement with radiologists' ratings of lung nodules, and explanation of a model. Not diagnosis.",
        "sources": f"{simulated}LIDC-IDRI (doi 10.7937/K9/TCIA.2015.LO9QL9SX): CT of several centres and scanners.",
        "flow": "See the flow above; every excluded group has its reason.",
        "preprocessing": f"Crops of {facts.get('crop') or 'recorded size'}; HU clamped and standardised.",
        "crops": "Nodules that readers marked, cut around the consensus of at least half of them. Nothing is detected.",
        "elements": "LIDC's rating scales; diameter: largest distance between two points of one contour.",
        "identity": "Pseudonyms of LIDC-IDRI; no name or date of birth is read or written.",
        "missing": "A missing rating is left out of the mean and of the loss; a missing scan excludes the nodule.",
        "reference": "Median malignancy rating of 3 or 4 readers above or below 3; else the mean of their ratings.",
        "reference_why": "The only reference that the collection has for all nodules. It is opinion, not pathology.",
        "annotators": "Up to four thoracic radiologists of LIDC, blinded and then unblinded, with the tools of LIDC.",
        "variability": "Readers' ICC and the error floor it sets stand beside every biomarker; Dice per nodule.",
        "size": _size(metrics),
        "split": "By nodule, as published: it leaks, and is labelled so." if paper else _split(model),
        "disjoint": "None: nodules of a patient are in several parts." if paper else "Patient.",
        "model": summary({key: value for key, value in (options.get("model") or {}).items() if value is not None})
        if options.get("model")
        else "",
        "software": summary(run.get("versions")) if run.get("versions") else "",
        "start": summary(options["model"].get("weights") or "random") if options.get("model") else "",
        "training": summary({name: options[name] for name in _TRAINING if name in options})
        if options
        else "",
        "choice": "Best epoch on the validation part of the training patients; calibration from the same part.",
        "ensemble": "One model per fold; views averaged in logit space.",
        "metrics": "Accuracy, AUC, sensitivity, specificity, Brier score, calibration error; MSE, MAE, R², Spearman.",
        "statistics": "95 % intervals by bootstrap over patients; paired differences from baselines, Holm-corrected.",
        "robustness": "By size of the nodule, and against the diameter alone. No other scanner population was tested.",
        "explanation": "Signed maps per output with controls, overlap with readers' outlines, deletion curves.",
        "external": "None.",
        "demographics": "LIDC-IDRI gives age and sex for few patients; they are not used.",
        "performance": "See above." if metrics else "",
        "errors": "See the galleries.",
        "limits": "Opinion as reference, one collection, readers' crops; see the model card.",
        "code": "lidc-xai, Apache-2.0; annotations and CT public.",
    }  # fmt: skip


def _size(metrics: Mapping[str, Any]) -> str:
    if not metrics.get("nodules"):
        return ""
    return f"{metrics['nodules']} nodules of {metrics.get('patients', '?')} patients: all that the cohort's rule gives."


def _split(model: Mapping[str, Any]) -> str:
    folds = model.get("n_folds")
    if folds:
        return f"{folds} folds, stratified, grouped by patient; in each, a validation part of the training patients."
    train, validation = (model.get(f"{part}_patients") or () for part in ("train", "validation"))
    if train:
        return f"{len(train)} patients to train on, {len(validation)} to validate; the others held out."
    return ""
