"""What a cohort's figures say in two sentences, before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lidc_xai.reporting.cohort.figures import size_of
from lidc_xai.reporting.values import percent, show

LEVEL = 0.05


def cohort_verdict(metrics: Mapping[str, Any]) -> list[str]:
    """How often the model sides with the readers, and whether that is more than the nodule's size gives; empty without
    figures of malignancy.

    >>> figure = lambda value: {"value": value, "low": value - 0.02, "high": value + 0.02}
    >>> of = {"all": {"nodules": 721, "accuracy": figure(0.888), "auc": figure(0.95)}}
    >>> cohort_verdict({"malignancy": of})[0]
    'On 721 nodules rated low or high, the model was on the readers’ side in 89 % [87, 91], AUC 0.95 [0.93, 0.97].'
    """
    accuracy, auc = (size_of(metrics, "malignancy", "all", name) for name in ("accuracy", "auc"))
    if accuracy is None or auc is None:
        return []
    unseen = " of patients it had not seen" if metrics.get("split") == "patient" else ""
    said = [
        f"On {metrics['malignancy']['all']['nodules']} nodules{unseen} rated low or high, the model was on the "
        f"readers’ side in {percent(accuracy['value'])}{_ends(accuracy, 100, 0)}, AUC "
        f"{show(auc['value'], 2)}{_ends(auc, 1, 2)}."
    ]
    alone = size_of(metrics, "baselines", "diameter_only", "malignancy", "all", "accuracy")
    gains = [text for part in ("all", "8–12 mm") if (text := _gain(metrics, part))]
    if alone is not None and gains:
        said.append(f"The readers’ diameter alone: {percent(alone['value'])}; {', '.join(gains)}.")
    own = size_of(metrics, "baselines", "own_diameter", "malignancy", "all", "accuracy")
    if own is not None:
        said.append(f"The diameter that the model itself predicts, alone: {percent(own['value'])}.")
    return said


def _gain(metrics: Mapping[str, Any], part: str) -> str:
    """Whether the model's AUC lies above that of the readers' diameter on some nodules, before and after Holm."""
    for row in metrics.get("comparisons") or []:
        if (row["part"], row["metric"], row["b"]) != (part, "auc", "diameter_only") or row["low"] is None:
            continue
        where = "on all" if part == "all" else f"at {part}"
        told = "is better" if row["low"] > 0 else "is worse" if row["high"] < 0 else "is not shown to be better"
        if told != "is not shown to be better" and row["p_holm"] >= LEVEL:
            told += " before correction for the number of comparisons, not after"
        figures = f"AUC {show(row['difference'], 2, signed=True)} [{show(row['low'], 2)}, {show(row['high'], 2)}]"
        return f"{where} the model {told} ({figures})"
    return ""


def _ends(figure: Mapping[str, Any], times: int, digits: int) -> str:
    if figure["low"] is None or figure["high"] is None:
        return ""
    return f" [{show(times * figure['low'], digits)}, {show(times * figure['high'], digits)}]"
