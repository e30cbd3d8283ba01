"""The ViT-ReciproCAM study (arXiv 2310.02588): ADCC against relevance propagation, its ablations, and its speed.

Average drop, coherency, complexity and ADCC of ReciproCAM on DeiT tiny, small and base beside relevance propagation and
a random map; with the 3×3 kernel and without, with the class token and without; at the last blocks, at the normalised
tokens and at what enters the block; with layer scale folded into the weights; and the time per image by batch and
device. On real photographs DINOv2 stands for DeiT, and the maps are held against the masks of the objects.

    python pipelines/study_reciprocam.py --config configs/study_reciprocam.yaml --photographs photos \\
        --weights weights --out runs/reciprocam
    python pipelines/study_reciprocam.py --config configs/study_reciprocam.yaml --out runs/reciprocam \\
        --images imagenet/val --weights weights/                # DeiT's files under their publisher's names
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from studies.photo_arms import CNN, VIT
from studies.study import Maker, Study, StudyConfig, main
from studies.study_arms import Arm, StudyImage
from studies.study_measures import (
    AUPRC,
    OWN_OTHER,
    draw_examples,
    labels_of,
    object_classes,
    on_objects,
    tidy,
)
from studies.study_table import Row
from torch import Tensor

from lidc_xai.evaluation import adcc
from lidc_xai.evaluation.geometry import centred_disc
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.explain import explain
from lidc_xai.explain.networks.families import as_vit

SOURCE = "arXiv 2310.02588"
RIVAL = "relevance_propagation"
DISC = "centred disc"
FIGURES = ("adcc", "average_drop", "coherency", "complexity", "increase")


class Reciprocam(StudyConfig):
    """Options of the study; the defaults are the paper's."""

    vits: list[str] = Field(["deit_tiny", "deit_small", "deit_base"], description="The paper's models.")
    beside: list[str] = Field([RIVAL, "attention", "cdam", "random"], description="Methods beside ReciproCAM.")
    target: Literal["predicted", "label"] = Field("predicted", description="The class that is explained.")
    layers: int = Field(12, ge=0, description="So many last blocks, and what enters them instead of their tokens.")
    adcc_images: int = Field(50000, ge=1, description="Images that ADCC is measured on.")
    masked_images: int = Field(50000, ge=1, description="Masked photographs that the maps are held against.")
    batches: list[int] = Field([1, 8, 32], description="Batch sizes that are timed.")
    repeats: int = Field(5, ge=1, description="Timed calls, of which the fastest counts.")
    examples: int = Field(3, ge=0, description="Sheets of maps per data set and model.")


def work(study: Study[Reciprocam]) -> None:
    """ADCC and ablations on every arm, then times, then the table."""
    timed_models: set[str] = set()
    makers: list[Maker] = [
        ((VIT,), lambda arms: arms.masked(VIT)),
        ((VIT,), lambda arms: arms.superclasses(VIT)),
        ((VIT, CNN), lambda arms: arms.distilled(VIT)),
    ]
    for arm in study.each_arm(study.config.vits, makers):
        if arm.masked:
            run_objects(study, replace(arm, images=arm.images[: study.config.masked_images]))
            run_folded(study, arm)
            examples(study, arm)
            continue
        run_adcc(study, replace(arm, images=arm.images[: study.config.adcc_images]))
        if study.config.batches and arm.model not in timed_models and not study.config.share:
            run_times(study, arm)
            timed_models.add(arm.model)
        examples(study, arm)
    panels = {"adcc": "ADCC", "average_drop": "average drop (low is good)", "coherency": "coherency"}
    panels |= {
        "complexity": "complexity (low is good)",
        AUPRC: "X_multi: AUPRC against the masks",
        OWN_OTHER: "X_multi: AUPRC, own − other",
    }
    study.finish("ViT-ReciproCAM", about(study.config), panels)


def about(config: Reciprocam) -> list[str]:
    """What the figures are."""
    return [
        f"ADCC and its parts for the {config.target} class, per image, then averaged; maps are resized bilinearly and "
        "scaled from their lowest to their highest value (negative relevance counts as 0). 'ADCC of means' is the "
        "public code's way: one harmonic mean of the three averages.",
        "Controls: noise that depends on the image (random), and a disc in the middle of every image (centred disc): "
        "a map that ignores the image has coherency 1.",
        "objects/…: against the pixel masks of the two classes, the mean of both; a ReciproCAM map is taken from its "
        "lowest value for the own share.",
    ]


def variants(study: Study[Reciprocam], arm: Arm) -> dict[str, tuple[str, dict[str, Any]]]:
    """label → (method, options): the method, its rivals, its ablations."""
    found: dict[str, tuple[str, dict[str, Any]]] = {"reciprocam": ("reciprocam", {})}
    found |= {name: (name, {}) for name in study.config.beside}
    found |= {
        "reciprocam, dirac": ("reciprocam", {"kernel": "dirac"}),
        "reciprocam, no CLS": ("reciprocam", {"cls": False}),
        "reciprocam, dirac, no CLS": ("reciprocam", {"kernel": "dirac", "cls": False}),
    }
    vit = as_vit(arm.classifier.model)
    assert vit is not None
    for layer in range(1, min(study.config.layers, len(vit.blocks)) + 1):
        number = len(vit.blocks) + 1 - layer
        if layer > 1:
            found[f"reciprocam, block {number}"] = ("reciprocam", {"layer": -layer})
        found[f"reciprocam, input of block {number}"] = ("reciprocam", {"layer": -layer, "tokens": "block_input"})
    return found


def disc(images: Tensor, target: Any = None) -> Tensor:
    """(n, H, W) 1 in the middle fifth of every image, 0 elsewhere."""
    height, width = images.shape[-2:]
    mask = centred_disc((height, width), height * width // 5, (1.0, 1.0))
    return torch.from_numpy(np.asarray(mask)).to(images).expand(len(images), -1, -1)


def run_adcc(study: Study[Reciprocam], arm: Arm) -> None:
    """ADCC and its parts of every variant."""
    config, model = study.config, arm.classifier.model

    def measure(
        images: Sequence[StudyImage], batch: Tensor, label: str, variant: tuple[str, dict[str, Any]]
    ) -> pd.DataFrame:
        method, options = variant
        with torch.no_grad():
            logits = model(batch)
        classes = labels_of(images, logits) if config.target == "label" else logits.argmax(-1).cpu()
        found = adcc(model, batch, classes, disc if method == DISC else method, **options)
        return tidy(images, label, {figure: getattr(found, figure) for figure in FIGURES})

    table = study.by_variant(arm, "adcc", {**variants(study, arm), DISC: (DISC, {})}, measure)
    study.means(arm, table)
    harmonic(study, arm, table)
    claim = study.claim
    gain(study, arm, table)
    for rival in (*(name for name in config.beside if name != "cdam"), DISC):
        claim(arm, f"ReciproCAM's ADCC is above that of {rival}", table, "adcc", "reciprocam", rival)
    claim(arm, "ADCC: the 3×3 kernel is better than the token alone", table, "adcc", "reciprocam", "reciprocam, dirac")
    claim(arm, "ADCC: keeping the class token is better", table, "adcc", "reciprocam", "reciprocam, no CLS")
    if config.layers > 1:
        depth = len(as_vit(model).blocks)  # type: ignore[union-attr]
        before, entering = f"reciprocam, block {depth - 1}", f"reciprocam, input of block {depth}"
        claim(arm, "ADCC: the last block is better than the one before", table, "adcc", "reciprocam", before)
        claim(arm, "ADCC: normalised tokens are better than the block's input", table, "adcc", "reciprocam", entering)


def gain(study: Study[Reciprocam], arm: Arm, table: pd.DataFrame) -> None:
    """ReciproCAM's ADCC − relevance propagation's, in points of a hundred, as the paper gives it."""
    own = table[table["metric"] == "adcc"].pivot_table(index="image", columns="method", values="value")
    if {"reciprocam", RIVAL} <= set(own.columns):
        difference = bootstrap_mean(100 * (own["reciprocam"] - own[RIVAL]), list(own.index), seed=study.config.seed)
        metric = "ADCC gain over relevance_propagation, points"
        study.rows.append(
            Row.of(
                arm.data, arm.model, "reciprocam", metric, difference, like="ImageNet validation", differs=arm.differs
            )
        )


def folded(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a timm ViT whose layer scales are part of the weights before them: the same function without them."""
    network: Any = deepcopy(model)
    with torch.no_grad():
        for block in network.blocks:
            for scale, linear in (("ls1", block.attn.proj), ("ls2", block.mlp.fc2)):
                gamma = getattr(block, scale).gamma
                linear.weight.mul_(gamma[:, None])
                linear.bias.mul_(gamma)
                setattr(block, scale, torch.nn.Identity())
    return network  # type: ignore[no-any-return]


def run_folded(study: Study[Reciprocam], arm: Arm) -> None:
    """Does layer scale matter to the map? Maps of the same function without it."""
    if not hasattr(as_vit(arm.classifier.model).blocks[0].ls1, "gamma"):  # type: ignore[union-attr]
        return
    other = folded(arm.classifier.model)

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        both = [
            explain(model, batch, object_classes(images), "reciprocam").relevance
            for model in (arm.classifier.model, other)
        ]
        gap = (both[0] - both[1]).abs().amax((1, 2, 3)) / both[0].abs().amax((1, 2, 3))
        return tidy(images, "reciprocam", {"layer scale folded/largest relative difference": gap.cpu().numpy()})

    some = replace(arm, images=arm.images[: study.config.batch])
    study.means(some, study.by_batch(some, "folded", measure))


def harmonic(study: Study[Reciprocam], arm: Arm, table: pd.DataFrame) -> None:
    """The public code's aggregate: averages of the three parts over the images, then one harmonic mean."""
    means = table.pivot_table(index="method", columns="metric", values="value", aggfunc="mean", sort=False)
    counts = table[table["metric"] == "adcc"].groupby("method")["value"].count().to_dict()
    for method, row in means.iterrows():
        parts = np.array([row["coherency"], 1 - row["complexity"], 1 - row["average_drop"]])
        value = float(3 / (1 / parts).sum()) if (parts > 0).all() else 0.0
        study.rows.append(
            Row(
                arm.data,
                arm.model,
                str(method),
                "ADCC of means",
                value,
                n=counts[method],
                like=arm.like,
                differs=arm.differs,
            )
        )


def run_objects(study: Study[Reciprocam], arm: Arm) -> None:
    """Each class's map against the masks of the two objects."""

    def measure(
        images: Sequence[StudyImage], batch: Tensor, label: str, variant: tuple[str, dict[str, Any]]
    ) -> pd.DataFrame:
        method, options = variant
        maps = explain(arm.classifier.model, batch, object_classes(images), method, **options).relevance
        if method == "reciprocam":
            maps = maps - maps.amin((-2, -1), keepdim=True)
        return on_objects(arm, images, label, maps)

    table = study.by_variant(arm, "objects", variants(study, arm), measure)
    study.means(arm, table)
    for rival in study.config.beside:
        study.claim(
            arm, f"ReciproCAM lies more on the asked class's object than {rival}", table, AUPRC, "reciprocam", rival
        )


def run_times(study: Study[Reciprocam], arm: Arm) -> None:
    """Milliseconds per image of a call of ``explain`` for one class, by batch and device, beside a plain forward
    (processor time on a CPU).

    Times of a device that is not here are those of an earlier run on one, where they are kept.
    """
    config, model = study.config, arm.classifier.model

    def measure(device: str) -> pd.DataFrame:
        model.to(device)
        rows = []
        for size in config.batches:
            images = torch.rand((size, 3, *arm.classifier.spec.size), generator=torch.Generator().manual_seed(0))
            images = images.to(device)
            for name, call in calls(model, images).items():
                ms = timed(call, config.repeats, device) / size
                rows.append({"method": name, "device": device, "batch": size, "ms": ms})
        model.to(study.device)
        return pd.DataFrame(rows)

    tables = []
    for device in ("cpu", "cuda"):
        told: dict[str, Any] = {"model": arm.model, "device": device}
        told |= {"clock": "processor"} if device == "cpu" else {}
        here = study.in_time and (device == "cpu" or torch.cuda.is_available())
        if here or study.is_kept("times", told):
            tables.append(study.once("times", partial(measure, device), told))
    if not tables:
        return
    table = pd.concat(tables, ignore_index=True)
    for row in table.to_dict("records"):
        metric = f"ms per image, batch {row['batch']}, {row['device']}"
        study.rows.append(Row(arm.data, arm.model, row["method"], metric, row["ms"], n=config.repeats))
    wide = table.pivot_table(index=["device", "batch"], columns="method", values="ms")
    for place, times in wide.iterrows():
        speed = times[RIVAL] / times["reciprocam"]
        row = Row(
            arm.data, arm.model, "reciprocam", f"speed against {RIVAL}", speed, n=config.repeats, differs=arm.differs,
            note="{}, batch {}".format(*place), like="ImageNet validation",
        )  # fmt: skip
        study.rows.append(row)
        study.rows.append(replace(row, metric="{}, {}, batch {}".format(row.metric, *place)))


def calls(model: torch.nn.Module, images: Tensor) -> Mapping[str, Any]:
    """What is timed."""

    def plain() -> Any:
        with torch.no_grad():
            return model(images)

    return {
        "plain forward": plain,
        "reciprocam": lambda: explain(model, images, 0, "reciprocam"),
        "reciprocam, a copy per token": lambda: explain(model, images, 0, "reciprocam", engine="autograd"),
        RIVAL: lambda: explain(model, images, 0, RIVAL, max_batch=len(images)),
    }


def timed(call: Any, repeats: int, device: str) -> float:
    """The least of ``repeats`` calls after one to warm up, in ms: processor time on a CPU, which other work on the
    machine does not lengthen (use one thread), else time on the clock."""
    clock, found = (time.process_time if device == "cpu" else time.perf_counter), []
    for _ in range(repeats + 1):
        start = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append((clock() - start) * 1000)
    return min(found[1:])


def examples(study: Study[Reciprocam], arm: Arm) -> None:
    """Sheets with the maps of both classes for the first images."""
    if not study.in_time:
        return
    names = ["reciprocam", "reciprocam, dirac", "reciprocam, no CLS", *study.config.beside]

    def maps(batch: Tensor, classes: Tensor) -> dict[str, Tensor]:
        shown = {}
        for label, (method, options) in variants(study, arm).items():
            if label in names:
                found = explain(arm.classifier.model, batch, classes, method, **options)
                shown[label.replace(", ", "\n")] = found.relevance[0]
        return shown

    draw_examples(arm, study.config.examples, study.out / "examples", study.device, maps)


def models(config: Reciprocam) -> list[str]:
    """Every model that weights may be given for."""
    return config.vits


if __name__ == "__main__":
    raise SystemExit(main(Reciprocam, work, name="study_reciprocam", about=__doc__, source=SOURCE, models=models))
