"""Concept maps: CDAM of the likeness to what a few images show, without any class of the classifier.

    f = ⟨l(x), c⟩,      c = mean of l over 10 to 30 images of the concept

On made pairs the right answer is known: the map of a concept has to lie on the object of that concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.explain import ConceptSimilarity, concept_vector, explain
from lidc_xai.imagenet.classifier import Classifier
from lidc_xai.imagenet.photographs import read_photo


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
