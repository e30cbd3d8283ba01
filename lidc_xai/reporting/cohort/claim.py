"""Reporting checklists, each topic with what this run can say about it: CLAIM 2024 and TRIPOD+AI.

CLAIM: Checklist for Artificial Intelligence in Medical Imaging, update of 2024 (Radiology: Artificial Intelligence
6(4): e240300), 44 items. TRIPOD+AI: Collins et al., BMJ 2024; 385: e078378, 27 items. Topics are named in our own
words; the checklists have the authoritative text. What a program cannot know is left to the authors and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lidc_xai.reporting.cohort.figures import COHORT_STEP
from lidc_xai.reporting.values import summary

AUTHORS = "For the authors."


class Item(TypedDict):
    """One topic of a checklist; ``open``: it is left to the authors."""

    number: int
    section: str
    topic: str
    answer: str
    open: bool


_CLAIM: tuple[tuple[str, str, str], ...] = (
    ("Title and abstract", "Names the AI method", "title"),
    ("Title and abstract", "Structured summary", ""),
    ("Introduction", "Clinical background and role", ""),
    ("Introduction", "Aims and hypotheses", ""),
    ("Study design", "Prospective or retrospective", "design"),
    ("Study design", "Goal of the study", "goal"),
    ("Data", "Sources of the data", "sources"),
    ("Data", "Inclusion and exclusion", "flow"),
    ("Data", "Preprocessing", "preprocessing"),
    ("Data", "Selection of parts of the data", "crops"),
    ("Data", "De-identification", "identity"),
    ("Data", "Missing data", "missing"),
    ("Data", "Image acquisition", "acquisition"),
    ("Reference standard", "How the reference was obtained", "reference"),
    ("Reference standard", "Why this reference", "reference_why"),
    ("Reference standard", "Who annotated", "annotators"),
    ("Reference standard", "Annotation of the test set", "annotators"),
    ("Reference standard", "Variability between and within annotators", "variability"),
    ("Data partitions", "How data were divided", "split"),
    ("Data partitions", "Level at which parts are disjoint", "disjoint"),
    ("Testing data", "Intended sample size", "size"),
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
    ("Evaluation", "Internal data", "internal"),
    ("Evaluation", "External data", "external"),
    ("Evaluation", "Registration as a clinical trial", ""),
    ("Results", "Flow of cases", "flow"),
    ("Results", "Demographics and clinical characteristics", "demographics"),
    ("Results", "Performance with uncertainty", "performance"),
    ("Results", "Diagnostic performance and its precision", "performance"),
    ("Results", "Analysis of failures", "errors"),
    ("Discussion", "Limitations", "limits"),
    ("Discussion", "Implications for practice", ""),
    ("Other", "Full protocol, technical details", "code"),
    ("Other", "Availability of software, model and data", "code"),
    ("Other", "Funding", ""),
)

_TRIPOD: tuple[tuple[str, str, str], ...] = (
    ("Title", "Development or evaluation, population, outcome", "title"),
    ("Abstract", "Structured summary", ""),
    ("Introduction", "Context, users and known inequalities", ""),
    ("Introduction", "Objectives", "goal"),
    ("Methods", "Data: sources, dates, representativeness", "sources"),
    ("Methods", "Participants: setting, eligibility, treatments", "flow"),
    ("Methods", "Data preparation", "preprocessing"),
    ("Methods", "Outcome: what, how assessed, by whom", "reference"),
    ("Methods", "Predictors", "predictors"),
    ("Methods", "Sample size", "size"),
    ("Methods", "Missing data", "missing"),
    ("Methods", "Analytical methods", "training"),
    ("Methods", "Class imbalance", "imbalance"),
    ("Methods", "Fairness", "fairness"),
    ("Methods", "Output of the model and thresholds", "output"),
    ("Methods", "Differences between training and evaluation data", "internal"),
    ("Methods", "Ethical approval", ""),
    ("Open science", "Funding, conflicts, protocol, registration, data, code", "code"),
    ("Involvement", "Patients and the public", ""),
    ("Results", "Participants: flow and characteristics", "flow"),
    ("Results", "Numbers in development and evaluation", "size"),
    ("Results", "Full model", "model"),
    ("Results", "Performance with intervals, also by subgroup", "performance"),
    ("Results", "Updating of the model", "updating"),
    ("Discussion", "Interpretation, fairness", ""),
    ("Discussion", "Limitations", "limits"),
    ("Discussion", "Use: input quality, skills, next steps", "use"),
)


_TRAINING = ("epochs", "batch_size", "optimiser", "loss", "augment")


def claim_checklist(facts: Mapping[str, Any]) -> list[Item]:
    """The 44 items of CLAIM 2024.

    ``facts``: ``simulated``, ``model`` (training information), ``reads``, ``run``, ``metrics``, ``failures`` and
    ``crop`` of a cohort's report.
    """
    return _filled(_CLAIM, _answers(facts))


def tripod_checklist(facts: Mapping[str, Any]) -> list[Item]:
    """The 27 items of TRIPOD+AI, from the same facts."""
    return _filled(_TRIPOD, _answers(facts))


def _filled(topics: tuple[tuple[str, str, str], ...], answers: Mapping[str, str]) -> list[Item]:
    return [
        {"number": place, "section": section, "topic": topic, "answer": answers.get(key) or AUTHORS,
         "open": not answers.get(key)}
        for place, (section, topic, key) in enumerate(topics, start=1)
    ]  # fmt: skip


def _answers(facts: Mapping[str, Any]) -> dict[str, str]:
    model, metrics, run = facts.get("model") or {}, facts.get("metrics") or {}, facts.get("run") or {}
    options = model.get("options") or {}
    weighted = (options.get("loss") or {}).get("class_weights")
    weighing = "The loss weighs classes" if weighted else "Not re-weighted"
    simulated = "SIMULATED CT around real contours and ratings of LIDC-IDRI. " if facts.get("simulated") else ""
    learned = facts.get("trained_on") or "none"
    paper = metrics.get("split") == "paper"
    return {
        "design": "Retrospective, on a public collection.",
        "goal": "Agreement with radiologists' ratings of lung nodules, and explanation of a model. Not diagnosis.",
        "sources": f"{simulated}LIDC-IDRI (doi 10.7937/K9/TCIA.2015.LO9QL9SX): CT of several centres and scanners.",
        "flow": "See the flow above; every excluded group has its reason.",
        "preprocessing": f"Crops of {facts.get('crop') or 'recorded size'}; HU clamped and standardised.",
        "crops": "Nodules that readers marked, cut around the consensus of at least half of them. Nothing is detected.",
        "acquisition": "As each centre scanned; slice thickness and scanner stand on every nodule's page.",
        "predictors": f"The image alone: {facts['reads']}." if facts.get("reads") else "",
        "imbalance": f"{weighing}; positives stand beside the figures." if options else "",
        "fairness": "By size, texture, margin, readers' agreement and slices; LIDC gives age and sex for few patients.",
        "output": "A calibrated probability and ratings in their own units; no threshold is recommended.",
        "internal": f"Same collection; {learned} of the nodules shown are of patients the model learned from.",
        "updating": "None." if metrics else "",
        "use": "A nodule that somebody has found, on CT like the collection's; pages flag padding, box and HU.",
        "identity": "Pseudonyms of LIDC-IDRI; no name or date of birth is read or written.",
        "missing": "A missing rating is left out of the mean and of the loss; a missing scan excludes the nodule.",
        "reference": "Median malignancy rating of 3 or 4 readers above or below 3; else the mean of their ratings.",
        "reference_why": "The only reference that the collection has for all nodules. It is opinion, not pathology.",
        "annotators": "Up to four thoracic radiologists of LIDC, blinded and then unblinded, with the tools of LIDC.",
        "variability": "Readers' ICC and the error floor it sets stand beside every biomarker; Dice per nodule.",
        "size": _size(metrics, facts.get("flow") or ()),
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
        "ensemble": "One model per fold; views averaged in logit space." if model.get("n_folds") else "",
        "metrics": "Accuracy, AUC, sensitivity, specificity, Brier score, calibration error; MSE, MAE, R², Spearman.",
        "statistics": "95 % intervals by bootstrap over patients; paired differences from baselines, Holm-corrected.",
        "robustness": "By size of the nodule, and against the diameter alone. No other scanner population was tested.",
        "explanation": "Signed maps; their overlap with readers' outlines." if facts.get("overlap") else "",
        "external": "None.",
        "demographics": "LIDC-IDRI gives age and sex for few patients; they are not used.",
        "performance": "See above." if metrics else "",
        "errors": "See where it fails, and the galleries." if facts.get("failures") else "See the galleries.",
        "limits": "Opinion as reference, one collection, readers' crops; see the model card.",
        "code": "lidc-xai, Apache-2.0; annotations and CT public.",
    }  # fmt: skip


def _size(metrics: Mapping[str, Any], flow: Sequence[Mapping[str, Any]]) -> str:
    if not metrics.get("nodules"):
        return ""
    of = next((f" of the {step['count']} that its rule gives" for step in flow if step["title"] == COHORT_STEP), "")
    return f"{metrics['nodules']} nodules of {metrics.get('patients', '?')} patients{of}; not computed beforehand."


def _split(model: Mapping[str, Any]) -> str:
    folds = model.get("n_folds")
    if folds:
        return f"{folds} folds, stratified, grouped by patient; in each, a validation part of the training patients."
    train, validation = (model.get(f"{part}_patients") or () for part in ("train", "validation"))
    if train:
        return f"{len(train)} patients to train on, {len(validation)} to validate; the others held out."
    return ""
