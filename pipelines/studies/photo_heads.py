"""Linear classifiers on what a frozen network says of real photographs, and how good they are beside chance.

masked set       one-against-the-rest logistic regressions, fitted on one part, measured on the other (mean AP)
superclasses     multinomial logistic regression, cross-fitted: every photograph by a head that did not learn from it
distilled        1000 classes fitted to another network's probabilities, cross-fitted: agreement with that network

All are fitted on features of mean 0 and variance 1, folded into the layer. A head is (weight (C, D), bias (C,)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lidc_xai.files import atomic_path

Head = tuple[Tensor, Tensor]
Floats = NDArray[np.float64]
Folded = tuple[list[Head], NDArray[np.intp]]
"""A head for every fold, and the fold (n,) of each photograph."""


def split(count: int, train: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places to learn from and places to measure on, drawn by ``seed``."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:train]), np.sort(order[train:])


def multi_label_head(features: Floats, present: NDArray[np.bool_], strength: float = 0.01) -> Head:
    """A logistic regression per class: ``present`` (n, C). ``strength``: scikit-learn's C, the inverse penalty."""
    standard, mean, scale = _standardised(features)
    fits = [LogisticRegression(C=strength, max_iter=2000).fit(standard, own) for own in present.T]
    weight = np.concatenate([fit.coef_ for fit in fits])
    return _folded(weight, np.concatenate([fit.intercept_ for fit in fits]), mean, scale)


def cross_fitted(features: Floats, labels: NDArray[np.intp], folds: int, seed: int, strength: float = 0.01) -> Folded:
    """Multinomial logistic regression, ``folds`` times, each class dealt evenly over the folds."""
    fold = _dealt(labels, folds, seed)
    heads = []
    for k in range(folds):
        standard, mean, scale = _standardised(features[fold != k])
        fit = LogisticRegression(C=strength, max_iter=2000).fit(standard, labels[fold != k])
        weight, bias = fit.coef_, fit.intercept_
        if len(weight) == 1:  # two classes: one score z, whose sigmoid is the softmax of −z/2 and z/2
            weight, bias = (np.concatenate([-part / 2, part / 2]) for part in (weight, bias))
        heads.append(_folded(weight, bias, mean, scale))
    return heads, fold


def distilled(features: Floats, teacher: Floats, folds: int, seed: int, steps: int = 60) -> Folded:
    """Heads fitted to the teacher's probabilities (n, C) by cross-entropy, cross-fitted."""
    fold = _dealt(teacher.argmax(1), folds, seed)
    heads = []
    for k in range(folds):
        standard, mean, scale = _standardised(features[fold != k])
        x, wanted = torch.from_numpy(standard).float(), torch.from_numpy(teacher[fold != k]).float()
        layer = nn.Linear(x.shape[1], wanted.shape[1])
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.01, weight_decay=1e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(x), wanted).backward()
            optimiser.step()
        weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        heads.append(_folded(weight, bias, mean, scale))
    return heads, fold


def scores_of(heads: Sequence[Head], features: Floats, folds: NDArray[np.intp]) -> Floats:
    """(n, C) logits of every row by its own fold's head."""
    scores = np.empty((len(features), len(heads[0][1])))
    for k, (weight, bias) in enumerate(heads):
        scores[folds == k] = features[folds == k] @ weight.double().numpy().T + bias.double().numpy()
    return scores


def kept_heads(path: Path, fit: Callable[[], Folded]) -> Folded:
    """Heads and folds from ``path``, or fitted and written there."""
    if not path.is_file():
        heads, folds = fit()
        tensors = {
            f"{k}.{name}": part.contiguous()
            for k, head in enumerate(heads)
            for name, part in zip("wb", head, strict=True)
        }
        with atomic_path(path) as temporary:
            save_file(tensors | {"folds": torch.from_numpy(folds)}, temporary)
    tensors = load_file(path)
    count = (len(tensors) - 1) // 2
    return [(tensors[f"{k}.w"], tensors[f"{k}.b"]) for k in range(count)], tensors["folds"].numpy()


def mean_precision(scores: Floats, present: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(C,) average precision of each class and what chance has (the class's share); NaN where no row has the class."""
    share = present.mean(0)
    values = [
        average_precision_score(own, s) if own.any() else np.nan for own, s in zip(present.T, scores.T, strict=True)
    ]
    return np.array(values), np.where(share > 0, share, np.nan)


def _dealt(labels: NDArray[np.intp], folds: int, seed: int) -> NDArray[np.intp]:
    """(n,) fold of each row: the rows of a class are dealt out in turn, in an order drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.intp)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _standardised(features: Floats) -> tuple[Floats, Floats, Floats]:
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    return (features - mean) / scale, mean, scale


def _folded(weight: Floats, bias: Floats, mean: Floats, scale: Floats) -> Head:
    """The layer that reads plain features as (weight, bias) reads standardised ones."""
    plain = weight / scale
    return torch.from_numpy(plain).float(), torch.from_numpy(bias - plain @ mean).float()
