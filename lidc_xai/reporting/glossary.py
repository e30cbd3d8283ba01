"""The words of the reports: one page beside them, the same as docs/glossary.md."""

from __future__ import annotations

from pathlib import Path

from lidc_xai.files import write_text
from lidc_xai.reporting.pages import render

FILE = "glossary.html"
WORDS = {
    "patch": (
        "one square cell of the picture as the model reads it (a token of a vision transformer); a map has one "
        "score a patch, finer detail is interpolation"
    ),
    "map, relevance": (
        "one signed score a patch: what raised (orange) or lowered (blue) one output, in the unit of that output"
    ),
    "strength": (
        "the sums of a plane's positive and of its negative scores, in the output's unit; \"contribution\" only of "
        "methods whose scores add up to the output"
    ),
    "strong, usual, weak": "where a map's largest score stands in the cohort: top quarter, middle half, lowest quarter",
    "full colour": (
        "the strength that 95 % of the cohort's maps of that output stay below (the anchor); without a cohort, "
        "the largest score of this nodule"
    ),
    "logit": "unit of the malignancy output before it becomes a probability",
    "SD": (
        "unit of a biomarker's map: standard deviations of the ratings that the model was trained on; beside "
        "readers' means, the sample standard deviation of their votes"
    ),
    "never seen by this model": (
        "no scan of this patient was among those that the model was trained, chosen or calibrated on (out of fold)"
    ),
    "explained plane": "the plane that the model read and a map belongs to; other slices show the same map and say so",
    "90 % interval": (
        "holds the readers' mean of 90 % of nodules of new patients, as measured; from residuals of nodules the "
        "model never saw"
    ),
    "at 90 % confidence": (
        "of the malignancy rating: low, high, or both, so that the readers' side is among them for 90 % of nodules"
    ),
    "models disagree by": (
        "spread of the prediction over models, planes and slices: says nothing about the distance from the truth"
    ),
    "drawn again": (
        "rank correlation (Spearman) that is expected between the mean map shown and the mean of as many other "
        "trainings"
    ),
    "stable patch": (
        "a patch whose sign other trainings are expected to keep (at most 5 % of those called stable are not); "
        "the others are grey"
    ),
    "P(any calcification)": (
        "probability that a reader sees any calcification; the scale's codes are names, so they are never averaged"
    ),
    "consensus": "voxels that at least half of the readers marked",
    "Dice, IoU, AUPRC": "overlap of two outlines, or of a map and an outline: shares from 0 (none) to 1 (the same)",
    "deletion, removal test": (
        "the score while pixels become lung in the order of the map, most relevant first against least relevant "
        "first; passed where the two lie further apart than those of 95 % of random maps, on the right side"
    ),
    "beats chance": "lies above a centred disc that has not seen the image, with the paired 95 % interval",
    "net benefit": "true positives less false positives weighted by the threshold's odds, a nodule (decision curve)",
    "three in four nodules": "beyond the upper (or lower) quartile of the model's own values over its cohort",
    "size alone": (
        "the probability of a high rating that the readers' diameter gives by itself, fitted on other patients; "
        '"the model\'s own": that the diameter gives which the model predicts'
    ),
    "by chance": (
        "the nodule's share of the explained planes: what a map that is the same everywhere would have there"
    ),
    "goes with": (
        "over a cohort, the model's own predictions of both rise and fall together (rank correlation of .3 or more); "
        "whether one is the cause of the other is not in it"
    ),
    "likeness": "cosine between what the model's head reads of two nodules",
    "automation bias": "how far a reader's rating moves towards an AI that is wrong",
}
"""Word -> what it means."""


def write_glossary(folder: Path) -> Path:
    """Write ``folder/glossary.html``, to which the other pages of a report link."""
    path = folder / FILE
    write_text(path, render("glossary.html.j2", words=WORDS))
    return path
