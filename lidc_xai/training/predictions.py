"""A part's predictions beside what the readers said of the same nodules: the rows that figures and intervals read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from lidc_xai.models.inference import view_outputs

if TYPE_CHECKING:
    from lidc_xai.data.dataset import PlaneDataset
    from lidc_xai.models.nodule_model import NoduleModel


def fold_predictions(model: NoduleModel, data: PlaneDataset, nodule_ids: Sequence[str]) -> pd.DataFrame:
    """What ``predictions.csv`` holds of these nodules, less the fold and the baselines.

    The columns of :func:`beside_readers`; malignancy_probability is of the validation part's calibration, which
    :func:`cross_validate` replaces by the pooled one where there are several folds.
    """
    rows = data.rows(nodule_ids)
    raw = view_outputs(model, model.preprocess.inputs(data.planes[rows])).mean(1)
    return beside_readers(model, data, rows, raw)


def beside_readers(model: NoduleModel, data: PlaneDataset, rows: Tensor, raw: Tensor) -> pd.DataFrame:
    """Raw outputs (n, outputs) of ``rows`` as a table.

    nodule_id, patient_id, label, n_readers, simulated; malignancy_logit (mean of the views) and
    malignancy_probability; per biomarker the prediction in its own unit; per rating the readers' ``_readers`` mean and
    ``_readers_sd``; p_calcified_readers.
    """
    manifest = data.manifest.iloc[rows.tolist()].reset_index(drop=True)
    raw = raw.double()
    units = model.in_units(raw)
    table = manifest[["nodule_id", "patient_id", "label", "n_readers"]].copy()
    table["simulated"] = manifest.get("simulated", False)
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        if kind == "binary":
            table[f"{name}_logit"], table[f"{name}_probability"] = raw[:, column].numpy(), units[:, column].numpy()
        else:
            table[name] = units[:, column].numpy()
    if "p_calcified" in manifest:
        table["p_calcified_readers"] = manifest["p_calcified"].astype("float64")
    for name in dict.fromkeys([*model.output_names, "diameter"]):
        for rated, said in ((name, f"{name}_readers"), (f"{name}_sd", f"{name}_readers_sd")):
            if rated in manifest:
                table[said] = manifest[rated].astype("float64")
    return table
