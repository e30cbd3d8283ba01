"""Distillation: a small network learns what a better one says of the training nodules, beside the readers' ratings.

A teacher's file is a CSV table with one row per fold and nodule: ``fold`` (-1: the final model), ``nodule_id``, and
each output (the sigmoid of its raw logit for malignancy, the biomarker's own unit else). A fold's rows are the nodules
of the patients that this fold's teacher learned from, and no others: a student of the same fold learns nothing of its
test patients through its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lidc_xai.csv_files import read_table
from lidc_xai.errors import DataError, UsageError
from lidc_xai.ratings import OUTPUTS

FINAL = -1
"""Stands for the fold of a model that learned from all patients."""


def read_teacher(path: Path | str, fold: int | None, train_ids: Sequence[str], outputs: Sequence[str]) -> Tensor:
    """(n, outputs) what the teacher of ``fold`` says of ``train_ids``, NaN where it has no row.

    Raises ``UsageError`` where the teacher of a fold learned from a nodule that is not among ``train_ids``: its words
    could tell of the student's validation or test part. (A final model is tested on nothing.)
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; make it with pipelines/teacher_outputs.py")
    table = read_table(path, ("fold",), lambda name: name in (*OUTPUTS, "fold"))
    missing = [name for name in ("nodule_id", *outputs) if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; make it with pipelines/teacher_outputs.py")
    place = FINAL if fold is None else fold
    rows = table[table["fold"] == place]
    if not len(rows):
        raise UsageError(f"{path}: has no row of fold {place}; it has {sorted(table['fold'].unique().tolist())}")
    if rows["nodule_id"].duplicated().any():
        twice = rows["nodule_id"][rows["nodule_id"].duplicated()].iloc[0]
        raise DataError(f"{path}: fold {place} has nodule {twice!r} twice")
    if "malignancy" in rows and not rows["malignancy"].dropna().between(0, 1).all():
        raise DataError(f"{path}: malignancy is a probability, fold {place} has values outside 0 to 1")
    beyond = sorted(set(rows["nodule_id"]) - set(train_ids))
    if beyond and fold is not None:
        raise UsageError(
            f"{path}: the teacher of fold {place} learned from {beyond[0]!r} ({len(beyond)} such nodules), which this "
            "training part does not hold; give a teacher of the same folds"
        )
    values = rows.set_index("nodule_id").reindex(list(train_ids))[list(outputs)].astype("float64")
    return torch.from_numpy(values.to_numpy(copy=True))


def blended(targets: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """Readers' targets and the teacher's, both (n, outputs) as outputs learn them (probability, z), NaN where absent.

    (1 - w)·readers + w·teacher where both are there, else the one there is. For squared errors and cross-entropy this
    has the gradient of the weighted sum of both losses (Hinton et al. 2015, arXiv 1503.02531, at temperature 1).

    >>> blended(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, float("nan")]]), 0.5)
    tensor([[0.7500, 2.0000]])
    """
    both = (1 - weight) * targets + weight * teacher.to(targets)
    both = torch.where(torch.isnan(targets), teacher.to(targets), both)
    return torch.where(torch.isnan(teacher.to(targets)), targets, both)
