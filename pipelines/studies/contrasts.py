"""Maps of a class with and without contrast, as the contrastive study compares them.

With φ_s the map of class s's logit and α the softmax of the logits without the target t:

    plain            φ_t
    mean, max        of y_t − mean_{s≠t} y_s and y_t − max_{s≠t} y_s
    weighted         of y_t − logsumexp_{s≠t} y_s, which for methods linear in the gradient is φ_t − Σ α_s φ_s
    weighted ReLU    φ_t⁺ − Σ α_s φ_s⁺                          the maps are rectified before they are contrasted
    weighted scaled  φ_t/max|φ_t| − Σ α_s φ_s/max|φ_s|          every class counts with a map of the same size

The last two need a map per class; those of the most probable classes stand for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain import Logit, LogOdds, MaxContrast, MeanContrast, explain
from lidc_xai.explain.networks.families import as_vit
from lidc_xai.explain.targets import Target

BY_TARGET: dict[str, type[Target]] = {
    "plain": Logit,
    "mean": MeanContrast,
    "max": MaxContrast,
    "weighted": LogOdds,
}
BY_MAPS = ("weighted ReLU", "weighted scaled")


def check_contrasts(names: Sequence[str]) -> None:
    """``UsageError`` for a name that is none of the above."""
    wrong = [name for name in names if name not in (*BY_TARGET, *BY_MAPS)]
    if wrong:
        raise UsageError(f"contrasts are {', '.join((*BY_TARGET, *BY_MAPS))}, not {wrong[0]!r}")


def contrast_maps(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    method: str,
    contrasts: Sequence[str],
    *,
    others: int = 10,
    **options: Any,
) -> dict[str, Tensor]:
    """contrast → maps (n, K, H, W) on the pixels for ``classes`` (n, K) of ``images``; ``options``: the method's.

    Maps on a CNN's grid are resized bilinearly, as the paper does; a token map by nearest neighbour. ``others``: how
    many of the most probable classes a contrast of maps takes in.
    """
    check_contrasts(contrasts)
    count = classes.shape[1]
    targets: list[Target] = [
        BY_TARGET[name](classes[:, k]) for name in contrasts if name in BY_TARGET for k in range(count)
    ]
    joined = [name for name in contrasts if name in BY_MAPS]
    several = torch.empty(len(images), 0, dtype=torch.long)
    if joined:
        with torch.no_grad():
            logits = model(images).double().cpu()
        several = logits.topk(min(others, logits.shape[1])).indices
        targets += [Logit(classes[:, k]) for k in range(count)]
        targets += [Logit(several[:, s]) for s in range(several.shape[1])]
    explained = explain(model, images, targets, method, **options)
    relevance = explained.relevance
    maps = {
        name: relevance[:, place * count : (place + 1) * count]
        for place, name in enumerate(name for name in contrasts if name in BY_TARGET)
    }
    if joined:
        start = len(maps) * count
        of_targets, rest = relevance[:, start : start + count], relevance[:, start + count :]
        for name in joined:
            maps[name] = _of_maps(of_targets, rest, classes, several, logits, name)
    mode = "nearest" if as_vit(model) is not None else "bilinear"
    return {name: replace(explained, relevance=maps[name]).to_pixels(mode) for name in contrasts}


def _of_maps(target: Tensor, rest: Tensor, classes: Tensor, several: Tensor, logits: Tensor, name: str) -> Tensor:
    """φ_t − Σ α_s φ_s over the classes ``several`` (n, S), each map rectified or scaled first."""
    target, rest = (_prepared(maps, name) for maps in (target, rest))
    near = logits.gather(1, several)
    result = []
    for k in range(classes.shape[1]):
        same = several == classes[:, k : k + 1]
        weights = near.masked_fill(same, -torch.inf).softmax(-1).nan_to_num(0.0).to(rest)
        result.append(target[:, k] - torch.einsum("ns,nshw->nhw", weights, rest))
    return torch.stack(result, 1)


def _prepared(maps: Tensor, name: str) -> Tensor:
    if name == "weighted ReLU":
        return maps.clamp_min(0)
    largest = maps.abs().flatten(-2).amax(-1)[..., None, None]
    return maps / torch.where(largest > 0, largest, 1)
