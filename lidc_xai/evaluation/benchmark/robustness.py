"""What a map should survive, as benchmark metrics: attacks on the output and on the map, and the same nodule as another
scan would have shown it. Each row: similarity with the map of the untouched image; beside it, in the rows of the model
itself, how far its output went (absolute, raw units).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lidc_xai.evaluation.benchmark.batch import Batch, Rows
from lidc_xai.evaluation.benchmark.options import MODEL
from lidc_xai.evaluation.metrics._map_attack import map_attacked
from lidc_xai.evaluation.metrics.robustness import attacked
from lidc_xai.evaluation.metrics.similarity import map_similarity
from lidc_xai.evaluation.statistics import Floats

NO_SCAN = "the case brings no such scan"


def judged(batch: Batch) -> list[int]:
    """The targets that figures are given for: every named output; of a classifier the right class."""
    return list(range(len(batch.outputs))) if batch.named else [0]


def measure_attack(batch: Batch, rows: Rows) -> None:
    """PGD against each output's own score: similarity of that output's map, and how far the score fell."""
    chosen = batch.options
    for t in judged(batch):
        column = batch.asked.targets.columns[:, t]
        moved, change = attacked(
            batch.model, batch.images, column, epsilon=chosen.attack_epsilon, steps=chosen.attack_steps
        )
        maps = batch.explain_all(batch.model, moved, only=t)
        for label in batch.variants:
            _similarity(batch, rows, "attack", label, t, maps[label][:, 0])
        _output_change(batch, rows, "attack", t, change)


def measure_map_attack(batch: Batch, rows: Rows) -> None:
    """The attack on each method's own map with the output kept."""
    chosen = batch.options
    for t in judged(batch):
        column = batch.asked.targets.columns[:, t]
        for label in batch.variants:

            def maps(images: Tensor, label: str = label, t: int = t) -> Tensor:
                return batch.explain_all(batch.model, images, only=t, labels=(label,))[label][:, 0]

            moved, _ = map_attacked(
                batch.model, batch.images, column, maps, epsilon=chosen.attack_epsilon, steps=chosen.map_attack_steps,
                draws=chosen.map_attack_draws, keep=chosen.map_attack_keep, seed=chosen.seed,
            )  # fmt: skip
            _similarity(batch, rows, "map_attack", label, t, maps(moved))


def measure_scan(batch: Batch, rows: Rows) -> None:
    """The images as another scan would have given them (``Case.altered``); cases without such have no rows."""
    for name in dict.fromkeys(name for case in batch.cases for name in case.altered):
        moved = batch.forward.place(torch.cat([case.altered.get(name, case.images) for case in batch.cases]))
        there = [name in case.altered for case in batch.cases for _ in case.images]
        maps = batch.explain_all(batch.model, moved)
        scores = batch.asked.read(batch.forward.outputs(moved)).cpu()
        for t in judged(batch):
            for label in batch.variants:
                _similarity(batch, rows, name, label, t, maps[label][:, t], there)
            _output_change(batch, rows, name, t, scores[:, t] - batch.asked.scores[:, t].cpu(), there)


def _similarity(
    batch: Batch, rows: Rows, family: str, label: str, t: int, maps: Tensor, there: Sequence[bool] | None = None
) -> None:
    similarity = map_similarity(batch.maps[label][:, t], maps)
    for name in similarity.figures:
        _add(rows, f"{family}/{name}", label, batch.outputs[t], getattr(similarity, name), similarity.reasons, there)


def _output_change(
    batch: Batch, rows: Rows, family: str, t: int, change: Tensor, there: Sequence[bool] | None = None
) -> None:
    values = change.detach().double().abs().cpu().numpy()
    _add(rows, f"{family}/output_change", MODEL, batch.outputs[t], values, [""] * len(values), there)


def _add(
    rows: Rows, metric: str, method: str, output: str, values: Floats, reasons: Sequence[str],
    there: Sequence[bool] | None,
) -> None:  # fmt: skip
    if there is not None:
        values = np.where(there, values, np.nan)
        reasons = [reason if known else NO_SCAN for reason, known in zip(reasons, there, strict=True)]
    rows.add(metric, method, output, values, reasons)
