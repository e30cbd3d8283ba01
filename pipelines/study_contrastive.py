"""The contrastive study (arXiv 2501.11096): does a map against the other classes say more than a class's own logit?

Two tests, on the models of the paper and on a small model whose images have a known answer. ε-perturbation: which
gradient's sign raises the class? Blur/mask: on images with two probable classes, do the pixels that a map calls
positive (negative) carry the class (the other one)? And the paper's open questions: maps scaled or rectified before
they are contrasted, confident misclassifications, a sweep over a ViT's layers, ResNet-50 and EfficientNet.

    python pipelines/study_contrastive.py --config configs/study_contrastive.yaml --out runs/contrastive --limit 40
    python pipelines/study_contrastive.py --config configs/study_contrastive.yaml --out runs/contrastive \\
        --images imagenet/val --weights weights/           # the paper's models, weights under their publishers' names
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from studies.contrasts import check_contrasts, contrast_maps
from studies.photo_arms import CNN, VIT
from studies.study import Maker, Study, StudyConfig, main
from studies.study_arms import Arm, StudyImage
from studies.study_measures import (
    OWN_OTHER,
    OWN_SHARE,
    draw_examples,
    joined,
    labels_of,
    object_classes,
    on_objects,
    tidy,
)
from torch import Tensor

from lidc_xai.evaluation import blur_mask_test, epsilon_perturbation, map_similarity, two_probable
from lidc_xai.explain.networks.families import as_vit

SOURCE = "arXiv 2501.11096"
TITLE = "Contrastive explanations"
EPSILON_NAMES = {"plain": "logit", "mean": "mean", "max": "max", "weighted": "weighted"}
SELECTED, WRONG = "share with two probable classes", "share misclassified"
SURE = "share misclassified with confidence"
ALIKE, NEGATIVE = "dominance/Spearman of weighted and plain map", "dominance/share of maps wholly negative"
DOMINATED, DOMINANCE_IMAGES = 0.01, 64


class Contrastive(StudyConfig):
    """Options of the study; the defaults are the paper's."""

    cnns: list[str] = Field(["torchvision:vgg16", "torchvision:alexnet"], description="The paper's CNNs.")
    further_cnns: list[str] = Field(
        ["torchvision:resnet50", "torchvision:efficientnet_b0"], description="Open question: other CNNs."
    )
    vits: list[str] = Field(["torchvision:vit_b_16"], description="ViTs for gradient-weighted rollout.")
    epsilon_images: int = Field(50000, ge=1, description="Images with two probable classes that are perturbed.")
    epsilon: float = Field(3e-3, gt=0, description="Of the perturbation, in [0, 1] pixels.")
    steps: list[int] = Field([1, 2, 10], description="Steps of the perturbation.")
    methods: list[str] = Field(
        ["gradcam", "xgradcam", "fullgrad", "linear_approximation"], description="Maps of the CNNs."
    )
    contrasts: list[str] = Field(["plain", "mean", "max", "weighted"], description="Targets of the maps.")
    of_maps: list[str] = Field(
        ["weighted ReLU", "weighted scaled"], description="Open questions: contrasts of maps; empty: none."
    )
    others: int = Field(10, ge=2, description="Most probable classes in a contrast of maps.")
    threshold: float = Field(0.1, gt=0, lt=0.5, description="Second probability from which an image is taken.")
    confident: float = Field(0.9, gt=0, le=1, description="First probability of a confident misclassification.")
    probable_images: int = Field(50000, ge=1, description="Images with two probable classes whose maps are measured.")
    modes: list[Literal["positive", "negative"]] = Field(["positive", "negative"], description="Pixels that are kept.")
    baselines: list[Literal["blur", "zero", "mean"]] = Field(["blur", "zero", "mean"], description="Of masked pixels.")
    layer_sweep: bool = Field(True, description="GradCAM at every block of the ViTs.")
    examples: int = Field(3, ge=0, description="Sheets of maps per data set and model.")


def work(study: Study[Contrastive]) -> None:
    """Both tests on every arm, then the table."""
    config = study.config
    check_contrasts([*config.contrasts, *config.of_maps])
    makers: list[Maker] = [
        ((CNN,), lambda arms: arms.thousand()),
        ((VIT,), lambda arms: arms.superclasses(VIT)),
        ((VIT, CNN), lambda arms: arms.distilled(VIT)),
        ((VIT,), lambda arms: arms.masked(VIT)),
    ]
    for arm in study.each_arm(models(config), makers):
        chosen = arm if arm.masked else probable(study, arm)
        run_epsilon(study, replace(chosen, images=chosen.images[: config.epsilon_images]))
        run_maps(study, chosen)
        if not arm.masked:
            run_dominance(study, arm)
        examples(study, chosen)
    panels = {f"epsilon n={n}/Δ probability": f"ε-perturbation, n = {n}: Δ probability" for n in config.steps}
    panels |= {f"{mode}/blur": f"{mode} pixels, blurred: gain of the own class" for mode in config.modes}
    panels |= {OWN_SHARE: "X_multi: share on the own object", OWN_OTHER: "X_multi: AUPRC, own − other class's map"}
    study.finish(TITLE, about(config), panels)


def about(config: Contrastive) -> list[str]:
    """What the figures are."""
    return [
        f"ε-perturbation: ε = {config.epsilon:g} in [0, 1] pixels, along the sign of the gradient of the logit (plain) "
        "or of a contrast, towards the image's label (the predicted class where it has none).",
        f"positive/blur …: images whose second probability is above {config.threshold:g}; the pixels that a class's "
        "map calls positive are kept (negative: those that it calls negative), equally many removed by every "
        "contrast of a method; the figure is the change of the own class's probability relative to the other's, the "
        "mean of both classes, turned so that high is good. /first and /second are those relative probabilities.",
        "own share: of the positive relevance on the two masked objects, what lies on the own one (½ is chance). "
        "The head of the masked photographs is multi-label: its contrasts take the softmax of its logits.",
    ]


def probable(study: Study[Contrastive], arm: Arm) -> Arm:
    """The arm's images with two probable classes, and the confident misclassifications; both are counted.

    Images whose annotators saw no class (no ReaL label) are no misclassifications and are left out of those.
    """
    config = study.config

    def look(images: Sequence[StudyImage], logits: Tensor) -> pd.DataFrame:
        two = logits.softmax(-1).topk(2).values[:, 1] > config.threshold
        wrong = (logits.argmax(1) != labels_of(images, logits)).numpy() & np.array([one.real != 0 for one in images])
        sure = np.zeros(len(images), bool)
        sure[confident_errors(images, logits, config.confident)[0].numpy()] = True
        return tidy(images, "model", {SELECTED: two.numpy(), WRONG: wrong, SURE: sure})

    def of_batch(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        with torch.no_grad():
            return look(images, arm.classifier.model(batch).float().cpu())

    if arm.logits:
        table = look(arm.images, torch.from_numpy(np.stack([arm.logits[image.name] for image in arm.images])))
    else:
        table = study.by_batch(arm, "probable", of_batch)
    study.means(arm, table, note=f"p₂ > {config.threshold:g}; confident: p₁ ≥ {config.confident:g}")
    rows = table[table["metric"].isin([SELECTED, SURE]) & (table["value"] > 0)]
    names = set(rows["image"])
    chosen = [image for image in arm.images if image.name in names]
    return replace(arm, images=tuple(chosen[: config.probable_images]))


def run_epsilon(study: Study[Contrastive], arm: Arm) -> None:
    """ε-perturbation towards the label, by contrast and number of steps."""
    config, spec = study.config, arm.classifier.spec
    names = [name for name in config.contrasts if name in EPSILON_NAMES]

    def perturb(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        with torch.no_grad():
            labels = labels_of(images, arm.classifier.model(batch))
        found = epsilon_perturbation(
            arm.classifier.model, batch, labels, mean=spec.mean, std=spec.std, epsilon=config.epsilon,
            steps=config.steps, contrasts=[EPSILON_NAMES[name] for name in names], max_batch=config.batch,
        )  # fmt: skip
        figures = {
            "Δ logit": found.delta_logit,
            "Δ probability": found.delta_probability,
            "accuracy": found.correct,
        }
        return joined(
            [
                tidy(images, name, {f"epsilon n={n}/{key}": own[:, c, s] for key, own in figures.items()})
                for c, name in enumerate(names)
                for s, n in enumerate(config.steps)
            ]
        )

    table = study.by_batch(arm, "epsilon", perturb)
    study.means(arm, table)
    for n in config.steps if {"plain", "weighted"} <= set(names) else ():
        for figure in ("Δ probability", "accuracy"):
            claim = f"ε-perturbation, n = {n}: the weighted contrast changes the {figure.removeprefix('Δ ')} more"
            study.claim(arm, claim, table, f"epsilon n={n}/{figure}", "weighted", "plain")
        claim = f"ε-perturbation, n = {n}: the plain logit changes the logit more"
        study.claim(arm, claim, table, f"epsilon n={n}/Δ logit", "plain", "weighted")


def settings(study: Study[Contrastive], arm: Arm) -> dict[str, tuple[str, dict[str, Any], list[str]]]:
    """label → (method, options, contrasts) of the maps that the arm's model is tested with."""
    config = study.config
    every = [*config.contrasts, *config.of_maps]
    common = {"max_batch": config.batch}
    vit = as_vit(arm.classifier.model)
    if vit is None:
        return {name: (name, common, every) for name in config.methods}
    options: dict[str, Any] = {"clamp": False, **common}
    rolled = {"gradient_rollout": ("gradient_rollout", options, every)}
    if not config.layer_sweep:
        return rolled
    few = [name for name in every if name in ("plain", "weighted")]
    depth = len(vit.blocks)
    return rolled | {f"gradcam block {k + 1}": ("gradcam", {"layer": k, **common}, few) for k in range(depth)}


def run_maps(study: Study[Contrastive], arm: Arm) -> None:
    """Blur/mask on images with two probable classes and on confident misclassifications; made objects' own share."""

    def measure(
        images: Sequence[StudyImage], batch: Tensor, label: str, setting: tuple[str, dict[str, Any], list[str]]
    ) -> pd.DataFrame:
        return measured(study, arm, images, batch, label, *setting)

    every, tables = settings(study, arm), []
    for label, setting in every.items():
        tables.append(study.by_variant(arm, "maps", {label: setting}, measure))
        study.means(arm, tables[-1])
        claims(study, arm, tables[-1], label, setting[2])
    table, metric = joined(tables), OWN_OTHER if arm.masked else "positive/blur"
    for label in (label for label in every if label.startswith("gradcam block")):
        claim = f"gradient_rollout tells the two classes apart better than {label} (weighted)"
        study.claim(arm, claim, table, metric, "gradient_rollout, weighted", f"{label}, weighted")


def run_dominance(study: Study[Contrastive], arm: Arm) -> None:
    """Where one class dominates, is the weighted map still another than the plain one? Are maps wholly negative?"""
    config, model = study.config, arm.classifier.model
    vit = as_vit(model) is not None
    methods = ["gradient_rollout"] if vit else [name for name in ("gradcam", "fullgrad") if name in config.methods]
    options: dict[str, Any] = {"max_batch": config.batch} | ({"clamp": False} if vit else {})
    arm = replace(arm, images=arm.images[:DOMINANCE_IMAGES])

    def measure(images: Sequence[StudyImage], batch: Tensor, label: str, method: str) -> pd.DataFrame:
        with torch.no_grad():
            top = model(batch).softmax(-1).topk(2)
        found = contrast_maps(model, batch, top.indices[:, :1].cpu(), method, ["plain", "weighted"], **options)
        plain, weighted = found["plain"][:, 0], found["weighted"][:, 0]
        alike, second = map_similarity(plain, weighted).spearman, top.values[:, 1].cpu().numpy()
        parts = [tidy(images, f"{label}, weighted", {NEGATIVE: (weighted.flatten(1).amax(1) <= 0).cpu().numpy()})]
        for name, chosen in (("one", second <= DOMINATED), ("two", second > config.threshold)):
            rows = np.flatnonzero(chosen)
            parts.append(tidy([images[r] for r in rows], f"{label}, {name} probable", {ALIKE: alike[rows]}))
        return joined(parts)

    table = study.by_variant(arm, "dominance", {name: name for name in methods}, measure)
    study.means(arm, table, note=f"the predicted class; one probable: p₂ ≤ {DOMINATED:g}")
    for name in methods:
        claim = f"{name}: where one class dominates, weighted and plain map rank the pixels alike (Spearman above .9)"
        study.mean_claim(arm, claim, table, ALIKE, f"{name}, one probable", above=0.9)
        claim = f"{name}: a tenth of the weighted maps or more are wholly negative"
        study.mean_claim(arm, claim, table, NEGATIVE, f"{name}, weighted", above=0.1)


def measured(
    study: Study[Contrastive],
    arm: Arm,
    images: Sequence[StudyImage],
    batch: Tensor,
    label: str,
    method: str,
    options: dict[str, Any],
    contrasts: list[str],
) -> pd.DataFrame:
    """One batch with one method: its contrasts are masked together, so that they remove equally many pixels."""
    config, model = study.config, arm.classifier.model
    with torch.no_grad():
        logits = model(batch).float().cpu()
    rows, pairs = two_probable(logits, config.threshold)
    parts: list[pd.DataFrame] = []

    def maps_of(chosen: Tensor, classes: Tensor) -> dict[str, Tensor]:
        own = batch[chosen.to(batch.device)]
        return contrast_maps(model, own, classes, method, contrasts, others=config.others, **options)

    if len(rows) and not arm.masked:
        maps = maps_of(rows, pairs)
        parts.append(
            masked(study, arm, [images[r] for r in rows], batch[rows.to(batch.device)], pairs, label, maps, "")
        )
    wrong, pairs = confident_errors(images, logits, config.confident)
    if len(wrong) and not arm.masked:
        maps, own = maps_of(wrong, pairs), [images[r] for r in wrong]
        parts.append(masked(study, arm, own, batch[wrong.to(batch.device)], pairs, label, maps, "confident error: "))
    if arm.masked:
        maps = maps_of(torch.arange(len(images)), object_classes(images))
        parts += [on_objects(arm, images, f"{label}, {name}", found) for name, found in maps.items()]
    return joined(parts)


def confident_errors(images: Sequence[StudyImage], logits: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Rows of images that are classified wrongly with a probability from ``least``, and (predicted, label) of each."""
    labels = labels_of(images, logits)
    top = logits.softmax(-1).max(-1)
    shown = torch.tensor([int(top.indices[k]) in image.classes or image.real == 0 for k, image in enumerate(images)])
    rows = torch.nonzero((top.values >= least) & (top.indices != labels) & ~shown)[:, 0]
    return rows, torch.stack([top.indices[rows], labels[rows]], 1)


def masked(
    study: Study[Contrastive],
    arm: Arm,
    images: Sequence[StudyImage],
    batch: Tensor,
    classes: Tensor,
    label: str,
    maps: dict[str, Tensor],
    prefix: str,
) -> pd.DataFrame:
    """The blur/mask test in every mode with every baseline."""
    config = study.config
    parts = []
    for mode in config.modes:
        for baseline in config.baselines:
            found = blur_mask_test(
                arm.classifier.model, batch, {name: (m[:, 0], m[:, 1]) for name, m in maps.items()}, classes,
                mode=mode, baseline=baseline, seed=config.seed,
            )  # fmt: skip
            sign = 1 if mode == "positive" else -1
            for m, name in enumerate(found.methods):
                first, second = found.after[:, m, 0], 1 - found.after[:, m, 1]
                gain = sign * ((first - found.before) + (second - (1 - found.before))) / 2
                key = f"{prefix}{mode}/{baseline}"
                values = {key: gain, f"{key}/first": first, f"{key}/second": second}
                parts.append(tidy(images, f"{label}, {name}", values))
        size = maps[found.methods[0]].shape[-2:].numel()
        parts.append(tidy(images, label, {f"{prefix}{mode}/share removed": found.removed.mean(1) / size}))
    return joined(parts)


def claims(study: Study[Contrastive], arm: Arm, table: pd.DataFrame, label: str, contrasts: list[str]) -> None:
    """Paired tests of the weighted contrast against the plain map, and of maps scaled or rectified first."""
    if not {"plain", "weighted"} <= set(contrasts):
        return
    plain, weighted = f"{label}, plain", f"{label}, weighted"
    for mode in study.config.modes if not arm.masked else ():
        claim = f"{label}: weighted separates the two classes better than plain ({mode} pixels, blurred)"
        study.claim(arm, claim, table, f"{mode}/blur", weighted, plain)
    if arm.masked:
        claim = f"{label}: weighted lies more on the own object than plain"
        study.claim(arm, claim, table, OWN_SHARE, weighted, plain)
        claim = f"{label}: weighted tells the two classes apart better than plain"
        study.claim(arm, claim, table, OWN_OTHER, weighted, plain)
        return
    for name in (name for name in study.config.of_maps if name in contrasts):
        claim = f"{label}: {name} separates better than weighted (positive pixels, blurred)"
        study.claim(arm, claim, table, "positive/blur", f"{label}, {name}", weighted)


def examples(study: Study[Contrastive], arm: Arm) -> None:
    """Sheets with the maps of both classes for the first images."""
    if not study.in_time:
        return
    names = [name for name in ("plain", "weighted") if name in study.config.contrasts]
    rows = {label: setting for label, setting in settings(study, arm).items() if not label.startswith("gradcam block")}

    def maps(batch: Tensor, classes: Tensor) -> dict[str, Tensor]:
        shown: dict[str, Tensor] = {}
        for label, (method, options, _) in rows.items():
            found = contrast_maps(arm.classifier.model, batch, classes, method, names, **options)
            shown |= {f"{label}\n{name}": own[0] for name, own in found.items()}
        return shown

    draw_examples(arm, study.config.examples, study.out / "examples", study.device, maps)


def models(config: Contrastive) -> list[str]:
    """Every model that weights may be given for."""
    return [*config.cnns, *config.further_cnns, *config.vits]


if __name__ == "__main__":
    raise SystemExit(main(Contrastive, work, name="study_contrastive", about=__doc__, source=SOURCE, models=models))
