"""Verdicts that are wrong or borderline: which of the audit's edits and doses turns them first."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from audit.measure import PLAIN
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.nodules.turning import wants_turning
from lidc_xai.simulate import EDITS


def smallest_turns(rows: pd.DataFrame, labels: Mapping[str, float]) -> pd.DataFrame:
    """A row for every model and nodule whose verdict is wrong or borderline: ``edit`` and ``dose`` of the smallest
    |dose| that turns it (of several, the one that goes furthest), and the probability ``before`` and ``after``.

    ``rows``: outputs with ``probability``, the calibrated one of a high rating. ``labels``: nodule -> 0, 1 or NaN.
    """
    found = []
    for (model, nodule_id), own in rows.groupby(["model", "nodule_id"], sort=False):
        before = float(own.loc[own["edit"] == PLAIN, "probability"].iloc[0])
        label = labels[str(nodule_id)]
        if not wants_turning({"malignancy_probability": before}, label):
            continue
        about = {"model": model, "nodule_id": nodule_id, "patient_id": own["patient_id"].iloc[0], "before": before}
        about["wrong"] = bool(label == label and (before > 0.5) != bool(label))
        turning = own[own["edit"].isin(set(EDITS) - {"remove"}) & ((own["probability"] > 0.5) != (before > 0.5))]
        if turning.empty:
            found.append(about | {"edit": "", "dose": float("nan"), "after": float("nan")})
            continue
        ranked = turning.assign(size=turning["dose"].abs(), far=-(turning["probability"] - before).abs())
        first = ranked.sort_values(["size", "far"]).iloc[0]
        found.append(about | {"edit": first["edit"], "dose": first["dose"], "after": first["probability"]})
    columns = ["model", "nodule_id", "patient_id", "before", "wrong", "edit", "dose", "after"]
    return pd.DataFrame(found, columns=columns)


def turns_table(turns: pd.DataFrame) -> pd.DataFrame:
    """Of each model's wrong or borderline verdicts, the share that each edit turns first, and its mean |dose|."""
    found = []
    for model, own in turns.groupby("model", sort=False):
        patients = own["patient_id"].astype(str).tolist()
        for edit in ["any", *EDITS]:
            hit = own["edit"] != "" if edit == "any" else own["edit"] == edit
            if not hit.any():
                continue
            mean = bootstrap_mean(hit.astype(float).tolist(), patients)
            row = {"model": model, "edit": edit, "asked": len(own), "wrong": int(own["wrong"].sum())}
            row |= {"turned": int(hit.sum()), "share": round(mean.mean, 3), "low": round(mean.low, 3)}
            found.append(
                row | {"high": round(mean.high, 3), "dose": round(float(own.loc[hit, "dose"].abs().mean()), 2)}
            )
    return pd.DataFrame(found)
