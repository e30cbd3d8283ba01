"""Calibration of a binary output on the validation part: probability = sigmoid(slope · logit + intercept).

Platt (1999): both numbers by maximum likelihood on the targets (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), which keep a separable
validation part from giving certainty. Temperature: intercept 0. The slope is kept positive, so that a map that speaks
for a higher logit always speaks for a higher probability.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.optimize import minimize


def calibrate(
    logits: np.ndarray, labels: np.ndarray, kind: Literal["platt", "temperature", "none"]
) -> tuple[float, float] | None:
    """(slope, intercept) for (n,) logits and 0/1 labels; None where the labels hold one class only."""
    if kind == "none":
        return 1.0, 0.0
    positives, negatives = int((labels > 0.5).sum()), int((labels <= 0.5).sum())
    if not positives or not negatives:
        return None
    return platt(
        logits, np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2)), shift=kind == "platt"
    )


def platt(logits: np.ndarray, wanted: np.ndarray, shift: bool = True) -> tuple[float, float]:
    """(slope, intercept) of the sigmoid that is likeliest for (n,) targets between 0 and 1; ``shift=False``: through 0.

    >>> slope, intercept = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.7, 0.9]))
    >>> slope > 0.5, abs(intercept) < 1e-3
    (True, True)
    """
    spread = max(float(np.std(logits)), 1e-6)
    scaled = np.asarray(logits, dtype=np.float64) / spread

    def loss(parameters: np.ndarray) -> float:
        value = np.exp(parameters[0]) * scaled + (parameters[1] if shift else 0.0)
        return float(np.mean(np.logaddexp(0.0, value) - wanted * value))

    start = np.zeros(2 if shift else 1)
    bounds = [(-6.0, 6.0), (-20.0, 20.0)][: len(start)]
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    return math.exp(fitted[0]) / spread, float(fitted[1]) if shift else 0.0
