"""Where a model is wrong: the share of nodules on the wrong side of 0.5, by what is known about them."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pandas as pd

from lidc_xai.evaluation.statistics import DIAMETER_STRATA, diameter_stratum
from lidc_xai.ratings import CALCIFICATION_ABSENT, EVEN_CHANCE


class Subgroup(TypedDict):
    """Nodules with something in common: how many, how many on the wrong side of 0.5, and the share of these with a
    95 % interval over patients (bootstrap; Clopper and Pearson's where none or all are wrong).
    """

    property: str
    group: str
    nodules: int
    wrong: int
    share: float
    low: float | None
    high: float | None


def failure_table(predictions: pd.DataFrame, manifest: pd.DataFrame, votes: pd.DataFrame) -> list[Subgroup]:
    """Subgroups of labelled nodules by diameter, texture, margin, spiculation, calcification, readers' agreement, slice
    thickness, padding and box. A property that no nodule or every nodule has is one row.
    """
    from lidc_xai.evaluation.statistics import share_interval

    table = manifest.merge(predictions[["nodule_id", "malignancy_probability"]], on="nodule_id")
    table["label"] = pd.to_numeric(table["label"], errors="coerce")
    table = table.dropna(subset=["label", "malignancy_probability"]).reset_index(drop=True)
    wrong = (table["malignancy_probability"] > EVEN_CHANCE) != (table["label"] > 0.5)
    order = {name: place for place, (_, name) in enumerate(DIAMETER_STRATA)}
    subgroups: list[Subgroup] = []
    for name, groups in _properties(table, votes).items():
        for group in sorted(set(groups.dropna()), key=lambda one: (order.get(one, 0), str(one))):
            here = (groups == group).to_numpy()
            interval = share_interval(wrong[here].astype(float), table.loc[here, "patient_id"].astype(str).tolist())
            subgroups.append(
                {
                    "property": name,
                    "group": str(group),
                    "nodules": int(here.sum()),
                    "wrong": int(wrong[here].sum()),
                    "share": interval.mean,
                    "low": interval.low if np.isfinite(interval.low) else None,
                    "high": interval.high if np.isfinite(interval.high) else None,
                }
            )
    return subgroups


def _properties(table: pd.DataFrame, votes: pd.DataFrame) -> dict[str, pd.Series]:
    """Property -> group of every nodule, in words."""
    by_nodule = votes.groupby("nodule_id")
    spread = by_nodule["malignancy"].std().reindex(table["nodule_id"]).to_numpy()
    calcified = (by_nodule["calcification"].min() < CALCIFICATION_ABSENT).reindex(table["nodule_id"]).to_numpy()
    sides = {
        "texture": (3.0, "ground-glass to part-solid", "more solid"),
        "margin": (3.0, "poorly defined", "sharper"),
        "spiculation": (3.0, "little", "marked"),
    }
    properties: dict[str, pd.Series] = {
        "diameter": pd.Series([diameter_stratum(float(value)) for value in table["diameter"]])
    }
    for name, (middle, low, high) in sides.items():
        properties[name] = _split(table[name], middle, low, high)
    properties["calcification"] = pd.Series(calcified).map({True: "seen by a reader", False: "seen by none"})
    properties["readers"] = _split(pd.Series(spread), 1.0, "agree (SD up to 1)", "disagree (SD above 1)")
    properties["slices"] = _split(table["slice_thickness_mm"], 2.5, "up to 2.5 mm", "thicker")
    properties["box"] = pd.Series(np.where(table["larger_than_box"], "nodule larger than it", "holds the nodule"))
    return properties


def _split(values: pd.Series, middle: float, low: str, high: str) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").reset_index(drop=True)
    return pd.Series(np.where(numbers > middle, high, low)).where(numbers.notna())
