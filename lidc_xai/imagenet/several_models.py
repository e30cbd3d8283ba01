"""Photographs by several classifiers: their mean map, on the coarsest grid among them, and how far they agree.

Classifiers differ in the size of their scores, so each map counts as a share of its own strength: S / Σ|S|.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.repeatability import group_agreement, on_grid, spearman_brown
from lidc_xai.explain import Explanation
from lidc_xai.imagenet.classifier import RANDOM, Classifier, class_logits
from lidc_xai.imagenet.panel import write_photo_files
from lidc_xai.imagenet.photographs import Photo, read_photo
from lidc_xai.models.digest import check_different, weights_digest

Explain = Callable[[Classifier, Tensor, Sequence[int]], Mapping[str, Explanation]]


def check_alike(classifiers: Sequence[Classifier]) -> None:
    """``UsageError`` where classifiers have other classes, or two of them are one."""
    first = classifiers[0]
    for other in classifiers[1:]:
        if other.count != first.count or (other.classes is None) != (first.classes is None):
            raise UsageError(
                f"{first.name} has {first.count} classes and {other.name} {other.count}: maps of other classes have no "
                "mean; give classifiers of the same classes"
            )
    names = [f"{one.name} (model {k + 1})" for k, one in enumerate(classifiers)]
    check_different([weights_digest(one.model) for one in classifiers], names)


def explain_photo(
    path: Path,
    classifiers: Sequence[Classifier],
    fit: str,
    wanted: Sequence[int],
    top: int,
    device: str,
    explain: Explain,
    folder: Path,
) -> None:
    """Write panel.png, maps.npz and values.json of one photograph into ``folder``.

    ``wanted``: classes; none: the ``top`` of the mean probability. ``DataError`` where it is no picture, or where the
    classifiers see other parts of it.
    """
    photos = [read_photo(path, one.spec, fit) for one in classifiers]
    if any(not np.allclose(photo.box, photos[0].box, atol=1) for photo in photos):
        raise DataError(
            f"{path}: these models see other parts of the photograph; use --fit whole, which shows them all"
        )
    images = [photo.tensor.to(device) for photo in photos]
    logits = [class_logits(one, image, path) for one, image in zip(classifiers, images, strict=True)]
    chances = torch.stack([one.softmax(-1) if len(one) > 1 else one.sigmoid() for one in logits])
    classes = list(wanted) or chances.mean(0).topk(min(top, chances.shape[1])).indices.tolist()
    each = [dict(explain(one, image, classes)) for one, image in zip(classifiers, images, strict=True)]
    maps = {name: _on_one_grid([of_model[name] for of_model in each]) for name in each[0]}
    agreement = {
        name: [_known(group_agreement(scores[:, t].reshape(len(scores), -1))) for t in range(len(classes))]
        for name, scores in maps.items()
    }
    values = {
        "image": path.name,
        "models": [{"model": one.name, "weights": one.weights, "random_weights": one.random} for one in classifiers],
        "unit": "share of a map's own strength, S / sum |S|",
        "fit": fit,
        "targets": [
            {"class": index, "name": classifiers[0].label(index), "probability": chances[:, index].tolist()}
            for index in classes
        ],
        "methods": {
            name: {
                "grid": list(scores.shape[-2:]),
                "agreement": agreement[name],
                "expected": [_expected(rho, len(classifiers)) for rho in agreement[name]],
            }
            for name, scores in maps.items()
        },
    }
    _write(folder, max(photos, key=lambda photo: photo.pixels.size), values, maps, classifiers)


def _on_one_grid(explanations: Sequence[Explanation]) -> NDArray[np.float64]:
    """(R, T, h, w): each model's map as shares of its own strength, on the coarsest grid."""
    shapes = [explanation.relevance.shape[-2:] for explanation in explanations]
    grid = (min(shape[0] for shape in shapes), min(shape[1] for shape in shapes))
    scores = np.stack([on_grid(one.relevance[0].double().cpu().numpy(), grid) for one in explanations]).astype(float)
    strength = np.abs(scores).sum((-1, -2), keepdims=True)
    return scores / np.where(strength > 0, strength, 1)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _expected(agreement: float | None, models: int) -> float | None:
    return None if agreement is None else spearman_brown(max(agreement, 0.0), models)


def _write(
    folder: Path,
    photo: Photo,
    values: Mapping[str, Any],
    maps: Mapping[str, NDArray[np.float64]],
    classifiers: Sequence[Classifier],
) -> None:
    """The three files of one photograph."""
    means = {name: scores.mean(0) for name, scores in maps.items()}
    more = {f"{name}_each": scores for name, scores in maps.items()}
    more |= {f"{name}_standard_error": s.std(0, ddof=1) / np.sqrt(len(s)) for name, s in maps.items()}
    rows = []
    for t, target in enumerate(values["targets"]):
        known = {name: of["agreement"][t] for name, of in values["methods"].items() if of["agreement"][t] is not None}
        words = ", ".join(f"{name} {rho:.2f}" for name, rho in known.items())
        rows.append(f"{target['name']}\nmodels agree: {words or 'undefined'}")
    names = ", ".join(one.name for one in classifiers)
    title = f"{photo.path.name}: mean of {len(classifiers)} models ({names})"
    warning = RANDOM if any(one.random for one in classifiers) else None
    write_photo_files(folder, photo, values, means, rows, title, warning, more)
