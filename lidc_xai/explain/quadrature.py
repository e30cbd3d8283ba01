"""Nodes and weights for ∫₀¹ g(α) dα ≈ Σ_k w_k g(α_k): the rules of the integrated methods."""

from __future__ import annotations

import numpy as np

from lidc_xai.errors import UsageError

RULES = ("right", "left", "midpoint", "trapezoid", "gauss-legendre")


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """(nodes, weights) of ``rule`` with ``steps`` evaluations on [0, 1]; the weights sum to 1."""
    if rule not in RULES:
        raise UsageError(f"rule is one of {', '.join(RULES)}, not {rule!r}")
    if steps < (2 if rule == "trapezoid" else 1):
        raise UsageError(f"rule {rule!r} needs more steps than {steps}")
    even = np.full(steps, 1 / steps)
    k = np.arange(steps)
    if rule == "right":
        nodes, weights = (k + 1) / steps, even
    elif rule == "left":
        nodes, weights = k / steps, even
    elif rule == "midpoint":
        nodes, weights = (k + 0.5) / steps, even
    elif rule == "trapezoid":
        nodes, weights = k / (steps - 1), np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        x, w = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (x + 1) / 2, w / 2
    return nodes.tolist(), weights.tolist()
