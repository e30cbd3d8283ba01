"""Parameter randomisation (Adebayo et al. 2018): an explanation of the model must change when its weights do.

The weights are re-initialised from the head down, stage by stage (head, final norm, last block, …, embedding), and each
time the map is compared with the original. An estimator whose map stays is explaining the image or the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.evaluation.metrics.similarity import map_similarity
from lidc_xai.evaluation.results import Result
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.api import explain
from lidc_xai.explain.targets import TargetsLike

UNCHANGED = 0.95


@dataclass(frozen=True, eq=False, kw_only=True)
class RandomisationResult(Result):
    """Similarity with the original map after each of L stages; ``stages`` names them, from the head down.

    ``spearman``, ``spearman_abs``, ``ssim``: (B,L). The figures are those after the last stage; ``unchanged`` is 1
    where the ranks of raw and absolute map still agree by more than 0.95 then: the estimator fails on that image.
    """

    stages: tuple[str, ...]
    spearman: Floats
    spearman_abs: Floats
    ssim: Floats

    figures: ClassVar[tuple[str, ...]] = ("final_spearman", "final_spearman_abs", "final_ssim", "unchanged")
    shared: ClassVar[tuple[str, ...]] = ("stages",)

    @property
    def final_spearman(self) -> Floats:
        return self.spearman[:, -1]

    @property
    def final_spearman_abs(self) -> Floats:
        return self.spearman_abs[:, -1]

    @property
    def final_ssim(self) -> Floats:
        return self.ssim[:, -1]

    @property
    def unchanged(self) -> Floats:
        same = (self.final_spearman > UNCHANGED) & (self.final_spearman_abs > UNCHANGED)
        return np.where(np.isfinite(self.final_spearman), same.astype(np.float64), np.nan)


def parameter_randomisation(
    model: nn.Module,
    images: Tensor,
    target: TargetsLike = None,
    method: str = "cdam",
    *,
    seed: int = 0,
    **options: Any,
) -> RandomisationResult:
    """Cascading randomisation of a copy of ``model``; ``options`` are the method's own.

    For the predicted class (``target=None``) the class is that of the trained model throughout.

    >>> found = parameter_randomisation(vit, images, labels)
    >>> found.stages[0], found.spearman.shape == (2, len(found.stages))
    ('head', True)
    """
    first = explain(model, images, target, method, **options)
    if target is None:
        target = first.columns
    original = first.relevance[:, 0]
    stages, similarities = [], []
    for name, changed in cascade(model, seed):
        stages.append(name)
        similarities.append(
            map_similarity(original, explain(changed, images, target, method, **options).relevance[:, 0])
        )
    reasons = tuple(
        next((f"after {stage}: {reason}" for stage, reason in zip(stages, each, strict=True) if reason), "")
        for each in zip(*(one.reasons for one in similarities), strict=True)
    )
    stacked = {name: np.stack([getattr(one, name) for one in similarities], axis=1) for name in similarities[0].figures}
    return RandomisationResult(stages=tuple(stages), **stacked, reasons=reasons)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of ``model`` with random weights everywhere: the control that every map of it should fail.

    >>> other = randomised(vit)
    >>> torch.equal(other.head.weight, vit.head.weight)
    False
    """
    *_, (_, changed) = cascade(model, seed)
    return changed


def cascade(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """(stage, copy of the model with everything from the head down to that stage re-initialised), in turn.

    The copy is the same object throughout. A parameter without an initialiser of its own (class token, positions, layer
    scale) is permuted, which keeps its distribution.
    """
    stages = _stages(model)
    if not stages:
        raise ModelError("the model has no parameters to randomise")
    copied = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    devices = [p.device.index for p in copied.parameters() if p.device.type == "cuda"]
    for number, (stage, names) in enumerate(stages.items()):
        with torch.random.fork_rng(devices=sorted(set(devices))), torch.no_grad():
            torch.manual_seed(seed * 1000 + number)
            for name in names:
                _reinitialise(copied.get_submodule(name), generator)
        yield stage, copied


def _stages(model: nn.Module) -> dict[str, list[str]]:
    """Stage → names of the modules that hold its parameters themselves, from the head down.

    Modules of one numbered block form a stage ("blocks.11", "features.28", "layer4.2"); others stand alone.
    """
    stages: dict[str, list[str]] = {}
    for name, module in reversed(list(model.named_modules())):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        parts = name.split(".")
        numbered = next((k for k, part in enumerate(parts) if re.search(r"(^|_)\d+$", part)), None)
        stage = name if numbered is None else ".".join(parts[: numbered + 1])
        stages.setdefault(stage or "embedding", []).append(name)
    return stages


def _reinitialise(module: nn.Module, generator: torch.Generator) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        flat = parameter.flatten()
        parameter.copy_(flat[torch.randperm(len(flat), generator=generator).to(flat.device)].view_as(parameter))
