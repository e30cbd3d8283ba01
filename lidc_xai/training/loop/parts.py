"""The parts of a run: patients apart, every class and every rating present where it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from lidc_xai.data.dataset import PlaneDataset
from lidc_xai.errors import DataError, UsageError
from lidc_xai.training.options import FitOptions


def split_off_validation(
    manifest: pd.DataFrame, nodule_ids: Sequence[str], options: FitOptions
) -> tuple[list[str], list[str]]:
    """Training and validation ids: about ``validation_share`` of the patients aside, stratified by label."""
    table = manifest[manifest["nodule_id"].isin(set(nodule_ids))]
    patients = table["patient_id"].nunique()
    if patients < 2:
        raise DataError(f"{patients} patient(s) only: training needs at least 2, one of them for validation")
    folds = min(max(round(1 / options.validation_share), 2), patients)
    labels = pd.to_numeric(table["label"]).astype("float64").fillna(-1).to_numpy(int)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=options.seed)
    _, aside = next(splitter.split(np.zeros(len(table)), labels, table["patient_id"]))
    validation = set(table["nodule_id"].iloc[aside])
    order = list(nodule_ids)
    return [name for name in order if name not in validation], [name for name in order if name in validation]


def check_parts(
    data: PlaneDataset, train: Tensor, validation: Tensor, outputs: Sequence[str], patients_apart: bool = True
) -> None:
    """Refuse parts that cannot teach or choose, naming what is missing."""
    if not len(train) or not len(validation):
        raise DataError(f"{len(train)} nodules to learn from and {len(validation)} to validate on: both must have some")
    patients = data.patient_ids
    shared = {patients[row] for row in train.tolist()} & {patients[row] for row in validation.tolist()}
    if shared and patients_apart:
        raise UsageError(
            f"{len(shared)} patient(s) in both training and validation, first {sorted(shared)[0]!r}; "
            "split by patient, or ask for the paper's split by name"
        )
    if len({patients[row] for row in train.tolist()}) < 2:
        raise DataError("one patient only in the training part; at least 2 are needed")
    for column, name in enumerate(outputs):
        values = data.targets[train, column]
        values = values[torch.isfinite(values)]
        if not len(values):
            raise DataError(f"no nodule of the training part has a rating of {name!r}; leave it out of model.outputs")
        if name == "malignancy":
            for label, words in ((0, "below"), (1, "above")):
                if not (values == label).any():
                    raise DataError(f"the training part has no nodule rated {words} 3 (label {label}); add cases")
        elif float(values.std(correction=0)) < 1e-9:
            raise DataError(f"all {len(values)} training ratings of {name!r} are {float(values[0]):g}; leave it out")
        if not torch.isfinite(data.targets[validation, column]).any():
            raise DataError(f"no nodule of the validation part has a rating of {name!r}; enlarge validation_share")
