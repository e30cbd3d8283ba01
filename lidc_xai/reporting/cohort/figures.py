"""What a cohort's report says: flow of nodules, galleries, overlap over the cohort, radial profiles. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd

from lidc_xai.annotations import load_nodules
from lidc_xai.nodules.agreement import FIGURES, evaluated_masks
from lidc_xai.ratings import EVEN_CHANCE
from lidc_xai.reporting.values import number
from lidc_xai.skipped import Skipped, read_skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps

COHORT_STEP = "Nodules of the cohort"
GALLERY = 8
"""Nodules per gallery."""


class FlowStep(TypedDict):
    """``lost``: list of ``reason`` and ``count``, the most frequent first; ``rows``: every nodule with its reason;
    ``gained``: nodules that the step before did not hold.
    """

    title: str
    count: int
    gained: int
    lost: list[dict[str, Any]]
    rows: list[dict[str, str]]


def flow(
    store: CropStore,
    predictions: pd.DataFrame | None,
    exclusions: pd.DataFrame | None,
    shown: Sequence[str],
    *,
    performance: bool = True,
) -> list[FlowStep]:
    """Steps from the annotation database to the figures. What was before, less what was lost, plus what came in
    beside, is what is there: in every step.

    ``exclusions``: as ``cohort_exclusions`` gives them (nodule_id, stage, reason); without, the flow starts at the
    store. ``performance``: whether the figures of performance count the nodules shown, and no others.
    """
    reasons = {item.nodule_id: item.reason for item in reversed(read_skipped(store.path)) if item.nodule_id}
    members = set(store.nodule_ids)
    steps: list[FlowStep] = []
    before: set[str] | None = None

    def step(title: str, now: set[str], why: Mapping[str, str], otherwise: str) -> None:
        """The next step: who was there before and is gone, each with its reason; who came in beside is counted."""
        nonlocal before
        gone = sorted((before or now) - now)
        gained = len(now - before) if before is not None else 0
        lost = [Skipped(name, "", why.get(name, otherwise)) for name in gone]
        steps.append(_step(title, len(now), lost, gained))
        before = now

    if exclusions is not None:
        outside = {str(row.nodule_id): str(row.reason) for row in exclusions.itertuples()}
        every = {nodule.nodule_id for nodule in load_nodules()} | members | set(reasons)
        step("Groups of readings in the annotation database", every, {}, "")
        step(COHORT_STEP, every - set(outside), outside, "")
        members -= set(outside)
    elif set(reasons) - members:
        step("Nodules asked for", members | set(reasons), {}, "")
    step("Nodules in the store, with their CT", members, reasons, "not among the data that the store was made from")
    if set(shown) != members:
        step("Nodules in this report", set(shown), {}, "not chosen for this report")
    if predictions is not None and "nodule_id" in predictions:
        predicted = set(predictions["nodule_id"]) & set(shown)
        step("Predicted", predicted, {}, "no prediction")
        labels = store.manifest.set_index("nodule_id")["label"]
        labelled = {name for name in predicted if not pd.isna(labels[name])}
        reason = "no label: the readers' median malignancy is 3, or there is none"
        figures = "the figures of malignancy" if performance else "the decision curve and in where it fails"
        step(f"Counted in {figures}", labelled, {}, reason)
    return steps


def _step(title: str, count: int, lost: Sequence[Skipped], gained: int) -> FlowStep:
    reasons = Counter(item.reason for item in lost)
    return {
        "title": title,
        "count": count,
        "gained": gained,
        "lost": [{"reason": reason, "count": many} for reason, many in reasons.most_common()],
        "rows": [{"nodule_id": item.nodule_id, "reason": item.reason} for item in sorted(lost)],
    }


def galleries(rows: Sequence[Mapping[str, Any]], size: int = GALLERY) -> list[dict[str, Any]]:
    """Nodules worth opening: surest and right, most wrong, most disagreed on by readers. ``rows``: of ``Pages``."""
    predicted = [row for row in rows if row["outputs"][0]["prediction"] and row["label"] is not None]
    right: list[tuple[float, Mapping[str, Any]]] = []
    wrong: list[tuple[float, Mapping[str, Any]]] = []
    for row in predicted:
        probability = row["outputs"][0]["prediction"]["value"]
        (right if (probability > EVEN_CHANCE) == bool(row["label"]) else wrong).append((abs(probability - 0.5), row))
    disagreed = [(row["outputs"][0]["readers"]["sd"], row) for row in rows if row["outputs"][0]["readers"]["sd"]]
    chosen = (
        ("Surest and right", "The probability furthest from 0.5, on the readers’ side.", right),
        ("Most wrong", "The probability furthest from 0.5, on the other side.", wrong),
        ("Most disagreed on", "The largest standard deviation of the readers’ malignancy ratings.", disagreed),
    )
    return [
        {"title": title, "about": about, "rows": [row for _, row in sorted(items, key=lambda one: -one[0])[:size]]}
        for title, about, items in chosen
        if items
    ]


def cohort_overlap(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Overlap figures averaged over nodules, with 95 % intervals (patients drawn): per method and output."""
    collected: dict[tuple[str, str | None], list[tuple[str, Mapping[str, Any]]]] = {}
    for row in rows:
        for entry in row["overlap"]:
            collected.setdefault((entry["method"], entry["output"]), []).append((str(row["patient_id"]), entry))
    if not collected:
        return []
    from lidc_xai.evaluation.statistics import bootstrap_mean, share_interval

    overlaps = []
    for (method, output), entries in collected.items():
        patients = [patient for patient, _ in entries]
        figures = {}
        for name in FIGURES:
            values = [np.nan if entry[name] is None else entry[name] for _, entry in entries]
            interval = (share_interval if name == "pointing_2mm" else bootstrap_mean)(values, patients)
            figures[name] = {"value": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
        overlaps.append({"method": method, "output": output, **figures})
    return overlaps


def radial_curves(
    store: CropStore, maps: Callable[[str], NoduleMaps | None], shown: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Output -> mean profile of its maps by signed distance from the consensus (mm, negative inside) with a 95 % band.

    Each nodule counts once: its planes are scaled by the nodule's largest absolute score and averaged. Columns:
    distance_mm, mean, low, high, n.
    """
    from lidc_xai.evaluation.metrics._radial_profile import LIMIT_MM, radial_profile
    from lidc_xai.evaluation.statistics import bootstrap_curve

    profiles: dict[str, list[np.ndarray]] = {}
    patients: dict[str, list[str]] = {}
    distance = np.empty(0)
    for nodule_id in shown:
        item, crop = maps(nodule_id), store.load(nodule_id)
        if item is None or crop.consensus is None or max(item.token_mm) > LIMIT_MM:
            continue  # tokens wider than the whole profile say nothing about distance
        planes = evaluated_masks(crop, item)
        for column, output in enumerate(item.output_names):
            largest = float(np.abs(item.relevance[:, column]).max())
            parts = [
                radial_profile(item.relevance[place, column][None], mask[None], spacing, scale=[largest])
                for place, (mask, spacing) in enumerate(planes)
            ]
            stack = np.stack([part.profile[0] for part in parts])
            counted = np.isfinite(stack).sum(axis=0)
            mean = np.where(counted > 0, np.nansum(stack, axis=0) / np.maximum(counted, 1), np.nan)
            if len(distance) not in (0, len(mean)):
                continue  # a crop whose tokens have another size in mm has other bins
            distance = parts[0].distance_mm
            profiles.setdefault(output, []).append(mean)
            patients.setdefault(output, []).append(str(store.row(nodule_id)["patient_id"]))
    curves = {}
    for output, profile in profiles.items():
        table = bootstrap_curve(np.stack(profile), patients[output])
        table.insert(0, "distance_mm", distance)
        curves[output] = table
    return curves


def size_of(metrics: Mapping[str, Any], *path: str) -> dict[str, Any] | None:
    """A figure of nested metrics (``value``, ``low``, ``high``), or ``None`` where it is not there."""
    inner: Any = metrics
    for name in path:
        if not isinstance(inner, Mapping) or name not in inner:
            return None
        inner = inner[name]
    if not isinstance(inner, Mapping) or number(inner, "value") is None:
        return None
    return {"value": number(inner, "value"), "low": number(inner, "low"), "high": number(inner, "high")}
