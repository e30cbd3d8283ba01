"""Concept maps: CDAM of the likeness to what a few images show, without any class of the classifier.

    f = ⟨l(x), c⟩,      c = mean of l over 10 to 30 images of the concept

On made pairs the right answer is known: the map of a concept has to lie on the object of that concept, so that

    own share = Σ_own S⁺ / (Σ_own S⁺ + Σ_other S⁺)      (½: it does not tell the two objects apart)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.explain import ConceptSimilarity, concept_vector, explain
from lidc_xai.imagenet.classifier import Classifier
from lidc_xai.imagenet.photographs import read_photo

OWN_SHARE = "concept/own_share"


def vector_of(classifier: Classifier, paths: Sequence[Path], count: int) -> Tensor:
    """(D,): the concept of the first ``count`` images; ``DataError`` where there are fewer."""
    if len(paths) < count:
        raise DataError(f"{paths[0].parent if paths else 'the concept'}: {len(paths)} images for a concept of {count}")
    device = next(classifier.model.parameters()).device
    images = torch.cat([read_photo(path, classifier.spec).tensor for path in paths[:count]])
    return concept_vector(classifier.model, images.to(device), max_batch=16)


def maps_of(classifier: Classifier, images: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """(B, K, gh, gw) CDAM of (B, 3, H, W) images for K concepts."""
    return explain(classifier.model, images, [ConceptSimilarity(vector) for vector in vectors], "cdam").relevance


def own_shares(maps: Mapping[str, Tensor], masks: np.ndarray, name: str) -> pd.DataFrame:
    """The own share of maps (2, gh, gw), each of the concept of one of two objects with masks (2, H, W).

    Columns image, method, metric, value; NaN where no positive relevance lies on either object.
    """
    size = masks.shape[-2:]
    found = []
    for method, both in maps.items():
        pixels = torch.nn.functional.interpolate(both[None].double(), size=size, mode="nearest")[0].cpu().numpy()
        positive = np.clip(pixels, 0, None)
        shares = []
        for k in (0, 1):
            own, other = ((positive[k] * masks[m]).sum() for m in (k, 1 - k))
            shares.append(own / (own + other) if own + other > 0 else np.nan)
        found.append({"image": name, "method": method, "metric": OWN_SHARE, "value": float(np.mean(shares))})
    return pd.DataFrame(found)
