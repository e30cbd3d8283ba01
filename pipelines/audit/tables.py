"""The audit's tables: dose–response, selectivity, maps on the edited voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from audit.measure import FIGURES, PLAIN, SHAM, doses_of
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.simulate import EDITS


def dose_response(rows: pd.DataFrame) -> pd.DataFrame:
    """Per model and edit with an output of its own: mean Spearman of dose and output, and the share of nodules whose
    output goes the expected way from the lowest to the highest dose; intervals by patient."""
    found = []
    for (model, name), own in _by_edit(rows):
        if name not in EDITS or not EDITS[name].sign or name not in own:
            continue
        rho, right, patients = [], [], []
        for _, curve in own.groupby("nodule_id"):
            curve = curve.sort_values("dose")
            if len(curve) < len(doses_of(name)) + 1 or curve[name].isna().any():
                continue
            rho.append(EDITS[name].sign * float(spearman(curve["dose"], curve[name])))
            right.append(float(EDITS[name].sign * (curve[name].iloc[-1] - curve[name].iloc[0]) > 0))
            patients.append(curve["patient_id"].iloc[0])
        found.append({"model": model, "edit": name, "nodules": len(rho)} | _interval("rho", rho, patients)
                     | _interval("expected", right, patients))  # fmt: skip
    return pd.DataFrame(found)


def selectivity(rows: pd.DataFrame, outputs: Sequence[str]) -> pd.DataFrame:
    """Per model and edit, the mean change of every output from dose 0 to 1 in SDs of that output over the untouched
    nodules; the sham's beside them."""
    found = []
    for (model, name), own in _by_edit(rows):
        plain = rows[(rows["model"] == model) & (rows["edit"] == PLAIN)].set_index("nodule_id")
        after = own[(own["dose"] == 1) & (own["edit"] != PLAIN)].set_index("nodule_id")
        known = [output for output in outputs if output in plain and plain[output].notna().all()]
        change = (after[known] - plain.loc[after.index, known]) / plain[known].std()
        found.append({"model": model, "edit": name, "nodules": len(after)} | change.mean().round(3).to_dict())
    return pd.DataFrame(found)


def sham_noise(rows: pd.DataFrame, outputs: Sequence[str]) -> pd.DataFrame:
    """Mean absolute change of every output by the sham, in SDs of the output: less by an edit means nothing."""
    found = []
    for model, own in rows.groupby("model"):
        plain = own[own["edit"] == PLAIN].set_index("nodule_id")
        after = own[own["edit"] == SHAM].set_index("nodule_id")
        known = [output for output in outputs if output in plain and plain[output].notna().all()]
        found.append({"model": model} | ((after[known] - plain[known]).abs() / plain[known].std()).mean().to_dict())
    return pd.DataFrame(found)


def own_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether each edit did what its name says: its own measure at dose 1, beside dose 0 where it has one there."""
    one = rows[rows["model"] == rows["model"].iloc[0]]
    found = []
    for name in EDITS:
        own = one[(one["edit"] == name) & (one["dose"] != 0)]
        rho = [float(spearman(c["dose"], c["own"])) for _, c in own.groupby("nodule_id") if len(c) > 2]
        found.append({"edit": name, "nodules": own["nodule_id"].nunique(), "rho_of_dose_and_measure": np.nanmean(rho)
                      if np.isfinite(rho).any() else np.nan})  # fmt: skip
    return pd.DataFrame(found)


def map_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Per model, edit, method, and S or ΔS: AUPRC, positive mass and pointing on the edited pixels, by patient."""
    found = []
    for (model, name, method, of), own in rows.groupby(["model", "edit", "method", "of"], sort=False):
        row = {"model": model, "edit": name, "method": method, "of": of, "nodules": len(own)}
        row["area"] = round(float(own["area"].mean()), 4)
        for figure in FIGURES:
            row |= _interval(figure, own[figure].tolist(), own["patient_id"].tolist())
        found.append(row)
    return pd.DataFrame(found)


def _by_edit(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Rows of each model and edit with the untouched nodules as dose 0."""
    found = []
    for model, own in rows.groupby("model", sort=False):
        plain = own[own["edit"] == PLAIN]
        for name in [*EDITS, SHAM]:
            edited = own[own["edit"] == name]
            zero = plain[plain["nodule_id"].isin(edited["nodule_id"])]
            found.append(((str(model), name), pd.concat([zero, edited])))
    return found


def _interval(name: str, values: Sequence[float], clusters: Sequence[str]) -> dict[str, float]:
    mean = bootstrap_mean(values, list(clusters))
    return {name: round(mean.mean, 3), f"{name}_low": round(mean.low, 3), f"{name}_high": round(mean.high, 3)}
