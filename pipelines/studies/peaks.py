"""Artefact tokens of a ViT without registers: how many maps peak in a lone token, and what calming gives back.

On the masked photographs at ``size`` px. A norm far above the others is how Darcet et al. (2024) know such tokens in
large models: the largest norm over the median of the patches that enter the last block stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lidc_xai.explain import explain, list_methods
from studies.photo_arms import VIT, PhotoArms
from studies.study import Study
from studies.study_arms import Arm, StudyImage, describe
from studies.study_measures import AUPRC, joined, object_classes, on_objects, tidy

METHODS = ("attention", "cdam", "integrated_cdam", "gradcam", "reciprocam", "attn_lrp")
ALONE, GAIN, NORM = (
    "peaks/share of maps that peak in a lone token",
    "peaks/AUPRC that calming gains there",
    "tokens/norm",
)
NOTE = "registers: against the masks"


def run_peaks(study: Study[Any], size: int, count: int) -> None:
    """Rows and claims of the first ``count`` photographs."""
    arms = study.photo_arms
    if arms is None or not arms.has(VIT) or not count:
        return
    arm = PhotoArms(arms.folder, arms.given, arms.kept, size=size, seed=arms.seed, device=arms.device).masked(VIT)
    arm = replace(arm, images=arm.images[:count])
    study.arms.append(describe(arm))
    names = [name for name in METHODS if name in list_methods(arm.classifier.model)]

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        parts = [tidy(images, "patch tokens", {NORM: norm_ratio(arm, batch)})]
        for name, explained in explain(arm.classifier.model, batch, object_classes(images), names).items():
            alone = explained.lone_peaks.double().mean(1).cpu()
            raw = on_objects(arm, images, name, explained.relevance)
            calm = on_objects(arm, images, f"{name}, calmed", explained.calmed().relevance)
            gains = [table.loc[table["metric"] == AUPRC, "value"].to_numpy() for table in (raw, calm)]
            spoiled = [k for k, share in enumerate(alone) if share > 0]
            gain = tidy([images[k] for k in spoiled], name, {GAIN: (gains[1] - gains[0])[spoiled]})
            parts += [tidy(images, name, {ALONE: alone.numpy()}), raw, calm, gain]
        return joined(parts)

    table = study.by_batch(arm, "peaks", measure, {"methods": names})
    plain = table["method"].isin(names) & table["metric"].str.startswith("objects/")
    table["method"] = table["method"].where(~plain, table["method"] + ", not calmed")
    study.means(arm, table, note=NOTE)
    for name in names:
        claim = f"medians of 3 × 3 tokens bring {name} nearer to the object"
        study.claim(arm, claim, table, AUPRC, f"{name}, calmed", f"{name}, not calmed")


def norm_ratio(arm: Arm, batch: Tensor) -> Tensor:
    """(B,) largest norm of a patch token that enters the last block, over the patches' median."""
    network: Any = arm.classifier.model
    entering: list[Tensor] = []
    hook = network.blocks[-1].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    try:
        with torch.no_grad():
            network(batch)
    finally:
        hook.remove()
    norms = entering[0][:, network.num_prefix_tokens :].norm(dim=-1)
    return (norms.amax(1) / norms.median(1).values).cpu()
