"""The benchmark's metrics against masks: localisation, radial profiles and known causes, with their controls.

Beside the methods stand the centred disc, the same methods on a model with random weights ("cdam@random_weights"), and,
for localisation, the readers against each other ("readers").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lidc_xai.evaluation.benchmark.batch import Batch, Rows
from lidc_xai.evaluation.benchmark.options import MODEL, RANDOM_WEIGHTS, READERS
from lidc_xai.evaluation.benchmark.robustness import judged
from lidc_xai.evaluation.cases import Case
from lidc_xai.evaluation.geometry import in_plane
from lidc_xai.evaluation.metrics._localisation import (
    LocalisationResult,
    against_readers,
    localisation,
    reader_agreement,
)
from lidc_xai.evaluation.metrics._parameter_randomisation import randomised
from lidc_xai.evaluation.metrics._radial_profile import RadialProfile, radial_profile
from lidc_xai.evaluation.metrics.causes import CARRIERS, cause_localisation, cause_sign
from lidc_xai.evaluation.results import Result
from lidc_xai.evaluation.statistics import Floats

NO_MASK_GIVEN = "the case has no mask"
NO_CAUSE_GIVEN = "the case has no known cause of this output"


def maps_and_controls(batch: Batch) -> dict[str, Tensor]:
    """Label → maps (B,T,h,w) on the CPU: the methods, the disc, and the methods on random weights."""
    by_label = {label: maps.cpu() for label, maps in batch.maps.items()}
    if batch.options.random_weights:
        other = batch.explain_all(randomised(batch.model, batch.options.seed), batch.images)
        by_label |= {f"{label}{RANDOM_WEIGHTS}": maps.cpu() for label, maps in other.items()}
    return by_label


def measure_localisation(batch: Batch, rows: Rows, maps: dict[str, Tensor]) -> None:
    """Figures against the consensus and against each reader, and the readers against each other."""
    for label, by_output in maps.items():
        for t in judged(batch):
            results = [_localise(case, part[:, t], batch.options.seed) for case, part in batch.by_case(by_output)]
            rows.add_result("localisation", label, batch.outputs[t], LocalisationResult.join(results))
    if any(case.readers is not None for case in batch.cases):
        for label, by_output in maps.items():
            for t in judged(batch):
                results = [_readers(case, part[:, t], batch.options.seed) for case, part in batch.by_case(by_output)]
                rows.add_result("readers", label, batch.outputs[t], LocalisationResult.join(results))
        ceiling = LocalisationResult.join([_agreement(case, batch.options.seed) for case in batch.cases])
        rows.add_result("localisation", READERS, "", ceiling)


def _localise(case: Case, maps: Tensor, seed: int) -> LocalisationResult:
    if case.masks is None:
        return _nothing(len(maps), NO_MASK_GIVEN)
    return localisation(maps, case.masks, case.spacing_mm, seed=seed)


def _readers(case: Case, maps: Tensor, seed: int) -> LocalisationResult:
    if case.readers is None:
        return _nothing(len(maps), "the case has no readers' masks")
    return against_readers(maps, case.readers, case.spacing_mm, seed=seed)


def _agreement(case: Case, seed: int) -> LocalisationResult:
    if case.readers is None:
        return _nothing(len(case.images), "the case has no readers' masks")
    return reader_agreement(case.readers, case.spacing_mm, seed=seed)


def _nothing(count: int, reason: str) -> LocalisationResult:
    values = {name: np.full(count, np.nan) for name in (*LocalisationResult.figures, "area_mm2")}
    return LocalisationResult(**values, reasons=(reason,) * count)


def measure_radial(batch: Batch, rows: Rows, maps: dict[str, Tensor]) -> None:
    """Mean relevance by distance from the consensus boundary, scaled by the case's largest |S| over its planes."""
    token_mm = _token_mm(batch)
    for label, by_output in maps.items():
        for t in judged(batch):
            parts = []
            for case, part in batch.by_case(by_output):
                if case.masks is None:
                    continue
                top = float(part[:, t].abs().max())
                scale = np.full(len(part), top if np.isfinite(top) else 0.0)
                parts.append(radial_profile(part[:, t], case.masks, case.spacing_mm, token_mm=token_mm, scale=scale))
            if len(parts) < len(batch.cases):
                reasons = [NO_MASK_GIVEN] * len(batch.images)
                for name in RadialProfile.figures:
                    rows.add(f"radial/{name}", label, batch.outputs[t], np.full(len(reasons), np.nan), reasons)
                continue
            profile = RadialProfile.join(parts)
            rows.add_result("radial", label, batch.outputs[t], profile)
            if batch.options.curves:
                rows.add_curve("radial/profile", label, batch.outputs[t], profile.distance_mm, profile.profile)


def _token_mm(batch: Batch) -> float | None:
    """The widest cell of any method's map: profiles of all methods share its bins."""
    coarsest = min(batch.maps.values(), key=lambda relevance: relevance.shape[-1] * relevance.shape[-2])
    widths = [
        in_plane(coarsest[: len(case.images), 0].cpu(), case.masks, case.spacing_mm).token_mm
        for case in batch.cases
        if case.masks is not None
    ]
    return max(widths, default=None)


def measure_causes(batch: Batch, rows: Rows, maps: dict[str, Tensor]) -> None:
    """Figures of each biomarker's map against the voxels that carry it, read with the sign of what they do."""
    for t in judged(batch):
        name = batch.outputs[t]
        if not batch.named or name not in CARRIERS:
            continue
        moved = _moved(batch, name, t)
        change = [values for _, values in batch.by_case(torch.from_numpy(moved))]
        reasons = ["" if np.isfinite(value) else "no pair with and without the cause" for value in moved]
        rows.add("causes/moved", MODEL, name, moved, reasons)
        for label, by_output in maps.items():
            results: list[Result] = []
            for (case, part), effect in zip(batch.by_case(by_output), change, strict=True):
                results.append(_against_cause(case, part[:, t], name, _signs(batch, case, effect.numpy(), t), batch))
            rows.add_result("causes", label, name, LocalisationResult.join(results))  # type: ignore[arg-type]


def _against_cause(case: Case, maps: Tensor, name: str, moved: Floats, batch: Batch) -> LocalisationResult:
    if name not in case.causes:
        return _nothing(len(maps), NO_CAUSE_GIVEN)
    sign = cause_sign(name, moved)
    return cause_localisation(maps, case.causes[name], case.spacing_mm, sign, seed=batch.options.seed)


def _moved(batch: Batch, name: str, t: int) -> Floats:
    """(B,) f(x) − f(x without the cause) of its own output; NaN where there is no such pair."""
    changes = []
    for case, scores in batch.by_case(batch.asked.scores):
        if name not in case.without:
            changes.append(np.full(len(scores), np.nan))
            continue
        images = batch.forward.place(case.without[name])
        column = int(batch.asked.targets.columns[0, t])
        after = batch.forward.outputs(images).values[:, column].cpu().numpy()
        change = scores[:, t].cpu().numpy() - after
        same = (images == batch.forward.place(case.images)).flatten(1).all(1).cpu().numpy()
        changes.append(np.where(same, np.nan, change))
    return np.concatenate(changes)


def _signs(batch: Batch, case: Case, moved: Floats, t: int) -> Floats:
    """What decides the sign of a cause: its measured effect, else the standardised output itself."""
    if np.isfinite(moved).all():
        return moved
    scores: Iterator[Floats] = (
        case_scores.cpu().numpy()[:, t] for other, case_scores in batch.by_case(batch.asked.scores) if other is case
    )
    return np.where(np.isfinite(moved), moved, next(scores))
