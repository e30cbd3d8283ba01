"""The log-odds of a verdict, biomarker by biomarker.

Over a cohort the model's malignancy logit is regressed on its own standardised biomarkers: logit ≈ c + Σ_b β_b y_b. The
map of the logit then has a part for every biomarker, β_b S_b, and a rest, S − Σ_b β_b S_b, so that the parts sum to the
map; a change of the logit has parts β_b Δy_b and a rest in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

REST = "rest"


def fit_parts(
    predictions: pd.DataFrame, scaling: Mapping[str, tuple[float, float]], logit: str = "malignancy_logit"
) -> tuple[dict[str, float], float]:
    """(biomarker -> β in logits per SD, share of the logit's variance explained) by least squares over ``predictions``.

    ``scaling``: biomarker -> (mean, SD) in its unit.
    """
    names = [name for name in scaling if name in predictions]
    table = predictions[[*names, logit]].dropna()
    y = np.stack([(table[name] - scaling[name][0]) / scaling[name][1] for name in names], axis=1)
    design = np.column_stack([np.ones(len(y)), y])
    target = table[logit].to_numpy(dtype=np.float64)
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    explained = 1 - np.square(target - design @ found).sum() / np.square(target - target.mean()).sum()
    return dict(zip(names, found[1:].tolist(), strict=True)), float(explained)


def parts_of(values: Mapping[str, NDArray | float], betas: Mapping[str, float], of: str = "malignancy") -> dict:
    """β_b × ``values[b]`` of every biomarker and the rest; they sum to ``values[of]``. Maps or changes of outputs."""
    parts = {name: beta * values[name] for name, beta in betas.items()}
    return parts | {REST: values[of] - sum(parts.values())}


def share_inside(relevance: NDArray, mask: NDArray[np.bool_]) -> float:
    """Share of the positive relevance (h, w) that lies on ``mask`` (H, W), nearest cells; NaN without any."""
    rows = np.arange(mask.shape[0]) * relevance.shape[0] // mask.shape[0]
    columns = np.arange(mask.shape[1]) * relevance.shape[1] // mask.shape[1]
    speaking = np.maximum(relevance[np.ix_(rows, columns)], 0)
    return float((speaking * mask).sum() / speaking.sum()) if speaking.sum() > 0 else float("nan")


def largest(parts: Mapping[str, float], among: Sequence[str]) -> str:
    """The name of the part that is largest in size."""
    return max(among, key=lambda name: abs(parts[name]))
