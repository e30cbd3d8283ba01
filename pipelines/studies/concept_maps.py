"""Concept maps: CDAM of the likeness to what a few photographs show, without any class of the classifier.

    f = ⟨l(x), c⟩ (also cosine, −L2),      c = mean of l over 10 or 30 photographs (also median; mean of unit vectors)

The right answer is known where the concept is a class of the masked photographs: its map has to lie on that class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lidc_xai.explain import ConceptSimilarity, explain
from studies.features import features_of
from studies.photo_arms import PhotoArms
from studies.study_arms import Arm, StudyImage
from studies.study_measures import joined, object_classes, on_objects

AGGREGATIONS = ("mean", "median", "mean of unit vectors")
MEASURES = ("dot", "cosine", "l2")


def learned_sets(arms: PhotoArms, count: int) -> dict[int, list[Path]]:
    """Class → ``count`` training photographs that show it, for every class that has so many."""
    sets = {label: arms.learned_from(label)[:count] for label in range(len(arms.msrc.names))}
    return {label: paths for label, paths in sets.items() if len(paths) == count}


def joined_vector(vectors: Tensor, how: str) -> Tensor:
    """(D,): the concept of (n, D) vectors.

    >>> joined_vector(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "mean").tolist()
    [1.0, 0.5]
    """
    if how == "median":
        return vectors.median(0).values
    return (F.normalize(vectors, dim=1) if how == "mean of unit vectors" else vectors).mean(0)


def concept_measures(
    arm: Arm, sets: Mapping[int, Sequence[Path]], sizes: Sequence[int], seed: int
) -> Callable[[Sequence[StudyImage], Tensor], pd.DataFrame]:
    """A function of masked images: how far the concept's map and the class's CDAM lie on the right object.

    Every number of pictures with mean and dot product (the paper's), every aggregation and every measure with most.
    """
    most = max(sizes)
    settings = {f"concept, {n} images": (n, "mean", "dot") for n in sizes}
    settings |= {f"concept, {how}": (most, how, "dot") for how in AGGREGATIONS[1:]}
    settings |= {f"concept, {measure}": (most, "mean", measure) for measure in MEASURES[1:]}
    kept: dict[int, Tensor] = {}

    def vectors_of(label: int) -> Tensor:
        if label not in kept:
            shown = [StudyImage(path.name, path) for path in sets[label]]
            device = next(arm.classifier.model.parameters()).device
            images = torch.cat([arm.read(image).tensor for image in shown])
            kept[label] = torch.cat([features_of(arm.classifier.model, some.to(device)) for some in images.split(8)])
        return kept[label]

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        model, classes = arm.classifier.model, object_classes(images)
        maps: dict[str, list[Tensor]] = {name: [] for name in settings}
        for b, own in enumerate(classes.tolist()):
            targets = [
                ConceptSimilarity(joined_vector(vectors_of(label)[:n], how), measure)
                for n, how, measure in settings.values()
                for label in own
            ]
            relevance = explain(model, batch[b : b + 1], targets, "cdam").relevance[0].unflatten(0, (-1, 2))
            for name, both in zip(settings, relevance, strict=True):
                maps[name].append(both)
        parts = [on_objects(arm, images, name, torch.stack(both), seed) for name, both in maps.items()]
        of_class = explain(model, batch, classes, "cdam").relevance
        return joined([*parts, on_objects(arm, images, "cdam of the class", of_class, seed)])

    return measure
