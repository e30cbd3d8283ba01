"""Targets × estimators → Explanation: why a Vision Transformer (or a CNN) gives the score that it gives.

Knows models, knows nothing of lungs. ``list_methods()`` and the table behind it need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.explain.abilities import list_methods, refusals
    from lidc_xai.explain.api import explain
    from lidc_xai.explain.concept import concept_vector
    from lidc_xai.explain.explanation import Explanation
    from lidc_xai.explain.targets import (
        ConceptSimilarity,
        Logit,
        LogOdds,
        LogProbability,
        MaxContrast,
        MeanContrast,
        Probability,
        Target,
    )
    from lidc_xai.explain.tuning import sigma_scores, tune_sigma

_WHERE = {
    "concept_vector": "concept",
    "sigma_scores": "tuning",
    "tune_sigma": "tuning",
    "explain": "api",
    "list_methods": "abilities",
    "refusals": "abilities",
    "Explanation": "explanation",
    "Target": "targets",
    "Logit": "targets",
    "Probability": "targets",
    "LogProbability": "targets",
    "LogOdds": "targets",
    "MeanContrast": "targets",
    "MaxContrast": "targets",
    "ConceptSimilarity": "targets",
}

__all__ = [
    "ConceptSimilarity",
    "Explanation",
    "LogOdds",
    "LogProbability",
    "Logit",
    "MaxContrast",
    "MeanContrast",
    "Probability",
    "Target",
    "concept_vector",
    "explain",
    "list_methods",
    "refusals",
    "sigma_scores",
    "tune_sigma",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
