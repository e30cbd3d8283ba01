"""The pre- or post-softmax study (arXiv 2306.13197): what to differentiate, the logit, the probability or its log?

Maps of GradCAM, GradCAM++ and RSI-GradCAM for each of the three; two models with the same probabilities, of which one
has a function of the image added to all its logits, and what each target makes of them; what is left of the gradient
when the probability saturates; maps of the same network trained again from other seeds; and ∂L/∂x = −∂log p_c/∂x as a
check. What does the input that a map keeps tell of the prediction (mutual information)? On photographs with masks, how
much of the map lies on the own object, for the softmax of a multi-label head and for its own sigmoid.

    python pipelines/study_softmax.py --config configs/study_softmax.yaml --photographs photos --weights weights \\
        --out runs/softmax
    python pipelines/study_softmax.py --config configs/study_softmax.yaml --out runs/softmax \\
        --images imagenet/val --weights torchvision:vgg19=vgg19-dcbb9e9d.pth
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from studies.equivalents import Sharpened, Shifted, shifted
from studies.photo_arms import CNN, VIT
from studies.study import Maker, Study, StudyConfig, main
from studies.study_arms import IMAGES, Arm, StudyImage
from studies.study_measures import (
    OWN_OTHER,
    OWN_SHARE,
    draw_examples,
    joined,
    labels_of,
    object_classes,
    on_objects,
    picture,
    readable,
    tidy,
)
from torch import Tensor, nn

from lidc_xai.evaluation import deletion_insertion, map_similarity, seed_agreement
from lidc_xai.evaluation.replacement import SIGMA_AT_224, gaussian_blur
from lidc_xai.explain import Explanation, Logit, LogProbability, Probability, explain
from lidc_xai.explain.networks.families import as_vit
from lidc_xai.explain.targets import Target
from lidc_xai.imagenet.classifier import load_classifier

SOURCE = "arXiv 2306.13197"
TARGETS = {"logit": Logit, "probability": Probability, "log-probability": LogProbability}
CORNER, SAME = "shifted/share in the corner", "shifted/Spearman with the original"
KEPT = "information/nats that the kept input tells"
CHECK = "check/largest relative difference from −∂L/∂x"
_SMALLEST = 1e-45  # of float32: stands for a gradient of 0 in a logarithm


class Softmax(StudyConfig):
    """Options of the study; the defaults are the paper's."""

    cnns: list[str] = Field(["torchvision:vgg19"], description="The paper's model.")
    methods: list[str] = Field(["gradcam", "gradcam_plus_plus", "rsi_gradcam"], description="Maps.")
    relu: bool = Field(False, description="Keep the positive part of the maps only.")
    steps: int = Field(50, ge=1, description="Of RSI-GradCAM's path.")
    shift: float = Field(2.0, gt=0, description="Size of the added function, in units of the largest logit.")
    factors: list[float] = Field([1, 2, 4, 8, 16], description="Logits are multiplied by these: saturation.")
    vit_methods: list[str] = Field(["gradcam", "cdam", "attn_lrp"], description="Maps of a ViT.")
    kept: float = Field(0.3, gt=0, lt=1, description="Share of the pixels that a map keeps (mutual information).")
    cell: int = Field(32, ge=1, description="Side of a deleted cell, in px at 224.")
    retrained: list[Path] = Field([], description="Weights of further trainings of the first of cnns.")
    examples: int = Field(3, ge=0, description="Sheets of maps per data set and model.")


def work(study: Study[Softmax]) -> None:
    """Every part on every arm, then the table."""
    config = study.config
    makers: list[Maker] = [
        ((CNN,), lambda arms: arms.thousand()),
        ((VIT,), lambda arms: arms.superclasses(VIT)),
        ((VIT, CNN), lambda arms: arms.distilled(VIT)),
        ((VIT,), lambda arms: arms.masked(VIT)),
    ]
    for arm in study.each_arm(config.cnns, makers):
        if arm.masked:
            run_objects(study, arm)
            examples(study, arm)
            continue
        run_maps(study, arm)
        run_information(study, arm)
        run_saturation(study, arm)
        if as_vit(arm.classifier.model) is None:
            run_shift(study, arm)
            run_check(study, arm)
        run_seeds(study, arm)
        examples(study, arm)
    panels = {"deletion": "deletion area (low is good)", "insertion": "insertion area (high is good)"}
    panels |= {OWN_SHARE: "X_multi: share on the own object", SAME: "same probabilities, logits shifted: Spearman"}
    panels |= {CORNER: "share of relevance where the shift is read", KEPT: "nats that the kept input tells"}
    panels |= {f"saturation ×{config.factors[-1]:g}/log10 gradient": f"logits × {config.factors[-1]:g}: log10 gradient"}
    study.finish("Before or behind the softmax", about(config), panels)


def about(config: Softmax) -> list[str]:
    """What the figures are."""
    return [
        f"deletion, insertion: area of the predicted class's probability over the share of {config.cell} px cells (at "
        "224), in the order of the map. own share: of the positive relevance on the two masked objects, what lies on "
        "the own one.",
        f"{KEPT}: {config.kept:.0%} of the pixels stay, those that the map calls highest, the others are blurred; "
        "E[log p(c) | kept] − E[log p(c) | all blurred] for the class c that is predicted on the whole image. With the "
        "entropy of the predictions in place of the second term, the same for every map, it bounds the mutual "
        "information of kept input and prediction from below.",
        f"shifted: h(x) is added to all logits, read from the upper left quarter of the last feature maps, about "
        f"{config.shift:g} times the largest logit. The probabilities stay the same; a map that changes explains h.",
        "saturation ×k: logits times k. log10 gradient: of the sum of absolute gradients over the image; gradient "
        "lost: share of images where it is exactly 0 in float32.",
        "seeds: mean rank correlation over pairs of networks that were trained alike from different seeds.",
    ]


def options_of(config: Softmax, method: str) -> dict[str, Any]:
    """Options of a method."""
    own: dict[str, Any] = {} if method in ("cdam", "attn_lrp") else {"relu": config.relu}
    return own | ({"steps": config.steps} if method == "rsi_gradcam" else {})


def maps_of(config: Softmax, model: nn.Module, batch: Tensor, classes: Tensor, method: str) -> Explanation:
    """Maps (n, 3, h, w) of the class (n,) by the three targets."""
    return explain(model, batch, [kind(classes) for kind in TARGETS.values()], method, **options_of(config, method))


def methods_of(config: Softmax, arm: Arm) -> list[str]:
    """The maps that are made of the arm's model."""
    return config.methods if as_vit(arm.classifier.model) is None else config.vit_methods


def predicted(model: nn.Module, batch: Tensor) -> Tensor:
    """(n,) the model's classes."""
    with torch.no_grad():
        found: Tensor = model(batch).argmax(-1).cpu()
    return found


def run_maps(study: Study[Softmax], arm: Arm) -> None:
    """Deletion and insertion, how alike the three maps are, and where they lie on made pairs."""
    config, model = study.config, arm.classifier.model
    methods = {method: method for method in methods_of(config, arm)}

    def measure(images: Sequence[StudyImage], batch: Tensor, label: str, method: str) -> pd.DataFrame:
        classes = predicted(model, batch)
        found = maps_of(config, model, batch, classes, method)
        pixels = found.to_pixels("bilinear")
        parts = []
        for t, name in enumerate(TARGETS):
            curve = deletion_insertion(model, batch, pixels[:, t], classes, cell=config.cell, seed=config.seed)
            values = {"deletion": curve.area_deletion, "insertion": curve.area_insertion}
            if t:
                alike = map_similarity(found.relevance[:, 0], found.relevance[:, t])
                values |= {"Spearman with the logit's map": alike.spearman}
            parts.append(tidy(images, f"{label}, {name}", values))
        return joined(parts)

    table = study.by_variant(arm, "maps", methods, measure)
    study.means(arm, table)
    for method in methods:
        logit, probability = f"{method}, logit", f"{method}, probability"
        claim = f"{method}: the probability's map is more faithful than the logit's ({{}})"
        study.claim(arm, claim.format("insertion"), table, "insertion", probability, logit)
        study.claim(arm, claim.format("deletion"), table, "deletion", logit, probability)
        claim = f"{method}: the log-probability's map is as faithful as the probability's ({{}})"
        for metric in ("insertion", "deletion"):
            log = f"{method}, log-probability"
            study.alike_claim(arm, claim.format(metric), table, metric, log, probability, within=0.01)


def run_information(study: Study[Softmax], arm: Arm) -> None:
    """What the kept input tells of the prediction, by target of the map; a random map beside them."""
    config, model = study.config, arm.classifier.model
    methods = {method: method for method in methods_of(config, arm)}

    def measure(images: Sequence[StudyImage], batch: Tensor, label: str, method: str) -> pd.DataFrame:
        classes = predicted(model, batch)
        pixels = maps_of(config, model, batch, classes, method).to_pixels("bilinear")
        maps = dict(zip(TARGETS, pixels.unbind(1), strict=True))
        maps["random"] = explain(model, batch, 0, "random", seed=config.seed).to_pixels("bilinear")[:, 0]
        sigma = SIGMA_AT_224 * batch.shape[-1] / 224
        blurred = gaussian_blur(batch, (sigma, sigma))
        parts = []
        for name, own in maps.items():
            level = own.flatten(1).quantile(1 - config.kept, dim=1)[:, None, None, None]
            with torch.no_grad():
                p = model(torch.where(own[:, None] >= level, batch, blurred)).double().log_softmax(-1).cpu()
                prior = model(blurred).double().log_softmax(-1).cpu()
            own_class, before = (one.gather(1, classes[:, None])[:, 0] for one in (p, prior))
            parts.append(tidy(images, f"{label}, {name}", {KEPT: own_class.numpy() - before.numpy()}))
        return joined(parts)

    table = study.by_variant(arm, "information", methods, measure)
    study.means(arm, table)
    for method in methods:
        claim = f"{method}: what the probability's map keeps tells more of the prediction than what the logit's keeps"
        study.claim(arm, claim, table, KEPT, f"{method}, probability", f"{method}, logit")


def run_objects(study: Study[Softmax], arm: Arm) -> None:
    """Photographs of two classes: logit, softmax of the multi-label logits, and the head's own sigmoid."""
    config, model = study.config, arm.classifier.model
    targets: dict[str, Callable[[Tensor], Target]] = dict(TARGETS)
    targets["sigmoid"] = lambda classes: Probability(classes, activation="sigmoid")

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        parts = []
        for method in config.vit_methods:
            both = [
                explain(
                    model, batch, [make(own) for make in targets.values()], method, **options_of(config, method)
                ).relevance
                for own in object_classes(images).unbind(1)
            ]
            for t, name in enumerate(targets):
                maps = torch.stack([one[:, t] for one in both], 1)
                parts.append(on_objects(arm, images, f"{method}, {name}", maps))
        return joined(parts)

    table = study.by_batch(arm, "objects", measure)
    study.means(arm, table, note="against the masks")
    for method in config.vit_methods:
        for name in ("probability", "sigmoid"):
            claim = f"{method}: the {name}'s map tells the asked class from the other better than the logit's"
            study.claim(arm, claim, table, OWN_OTHER, f"{method}, {name}", f"{method}, logit")


def run_shift(study: Study[Softmax], arm: Arm) -> None:
    """Two models with the same probabilities: which target's maps stay the same?"""
    config, model, spec = study.config, arm.classifier.model, arm.classifier.spec
    first = torch.cat([picture(arm, image).tensor for image in readable(arm, config.batch)]).to(study.device)
    other = shifted(model, first, spec, config.shift)
    methods = {method: method for method in config.methods}

    def measure(images: Sequence[StudyImage], batch: Tensor, label: str, method: str) -> pd.DataFrame:
        return shift_values(config, model, other, images, batch, method)

    try:
        table = study.by_variant(arm, "shift", methods, measure, {"gain": other.gain})
    finally:
        other.remove()
    study.means(arm, table)
    for method in config.methods:
        logit = f"{method}, logit"
        for name in ("probability", "log-probability"):
            claim = f"{method}: with logits shifted, the {name}'s map stays closer to the original than the logit's"
            study.claim(arm, claim, table, SAME, f"{method}, {name}", logit)
        claim = f"{method}: the logit's map moves to where the shift is read"
        study.claim(arm, claim, table, CORNER, logit, f"{logit}, original")


def shift_values(
    config: Softmax, model: nn.Module, other: Shifted, images: Sequence[StudyImage], batch: Tensor, method: str
) -> pd.DataFrame:
    """One batch: rank correlation of each target's two maps, and their shares in the corner that the shift reads."""
    classes = predicted(model, batch)
    before, after = (maps_of(config, one, batch, classes, method).relevance for one in (model, other))
    with torch.no_grad():
        gap = (model(batch).softmax(-1) - other(batch).softmax(-1)).abs().amax(1)
    parts = [tidy(images, "both models", {"shifted/largest change of a probability": gap.cpu().numpy()})]
    for t, name in enumerate(TARGETS):
        alike = map_similarity(before[:, t], after[:, t]).spearman
        label = f"{method}, {name}"
        parts.append(tidy(images, label, {SAME: alike, CORNER: in_corner(after[:, t])}))
        parts.append(tidy(images, f"{label}, original", {CORNER: in_corner(before[:, t])}))
    return joined(parts)


def in_corner(maps: Tensor) -> np.ndarray:
    """(n,) share of the positive relevance of (n, h, w) in the upper left quarter; NaN where there is none."""
    positive = maps.clamp_min(0).double().cpu()
    own = positive[:, : maps.shape[1] // 2, : maps.shape[2] // 2].sum((1, 2))
    return np.asarray((own / positive.sum((1, 2))).numpy())


def run_saturation(study: Study[Softmax], arm: Arm) -> None:
    """The gradient of each target while the same logits are multiplied."""
    config = study.config

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        parts = []
        for factor in config.factors:
            model = Sharpened(arm.classifier.model, factor)
            classes = predicted(model, batch)
            targets = [kind(classes) for kind in TARGETS.values()]
            found = explain(model, batch, targets, "saliency", reduce="abs_sum", max_batch=config.batch)
            sizes = found.relevance.double().sum((-2, -1)).cpu().numpy()
            key = f"saturation ×{factor:g}"
            for t, name in enumerate(TARGETS):
                size = np.log10(np.maximum(sizes[:, t], _SMALLEST))
                parts.append(
                    tidy(images, name, {f"{key}/log10 gradient": size, f"{key}/gradient lost": sizes[:, t] == 0})
                )
            parts.append(tidy(images, "model", {f"{key}/probability": found.values[:, 1].double().cpu().numpy()}))
        return joined(parts)

    table = study.by_batch(arm, "saturation", measure)
    study.means(arm, table)
    key = f"saturation ×{config.factors[-1]:g}/log10 gradient"
    for less in ("probability", "log-probability"):
        claim = f"logits × {config.factors[-1]:g}: the logit keeps more of its gradient than the {less}"
        study.claim(arm, claim, table, key, "logit", less)
    claim = f"logits × {config.factors[-1]:g}: the log-probability keeps more of its gradient than the probability"
    study.claim(arm, claim, table, key, "log-probability", "probability")


def run_seeds(study: Study[Softmax], arm: Arm) -> None:
    """Maps of networks that were trained alike from different seeds."""
    config = study.config
    if not arm.data.startswith(IMAGES):
        return
    further = [load_classifier(config.cnns[0], file).model.to(study.device) for file in config.retrained]
    networks, told = [arm.classifier.model, *further], [str(file) for file in config.retrained]
    if len(networks) < 2:
        reason = "one training only: give weights of further ones as --set retrained=[FILE,FILE]"
        study.skip(f"retrained seeds of {arm.model} on {arm.data}", "weights", reason)
        return

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        classes = labels_of(images, networks[0](batch).detach())
        parts = []
        for method in config.methods:
            for name, kind in TARGETS.items():
                found = seed_agreement(networks, batch, kind(classes), method, **options_of(config, method))
                values = {"seeds/Spearman": found.spearman, "seeds/SSIM": found.ssim}
                parts.append(tidy(images, f"{method}, {name}", values))
        return joined(parts)

    table = study.by_batch(arm, "seeds", measure, {"networks": told})
    study.means(arm, table)
    for method in config.methods:
        claim = f"{method}: retrained networks agree more on the probability's map than on the logit's"
        study.claim(arm, claim, table, "seeds/Spearman", f"{method}, probability", f"{method}, logit")


def run_check(study: Study[Softmax], arm: Arm) -> None:
    """∂L/∂x of the cross-entropy L against −∂log p_c/∂x, in float64."""
    model = deepcopy(arm.classifier.model).double()

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        classes = predicted(model, batch.double())
        x = batch.double().requires_grad_()
        nn.functional.cross_entropy(model(x), classes.to(x.device), reduction="sum").backward()
        found = explain(model, batch.double(), LogProbability(classes), "saliency").relevance[:, 0]
        assert x.grad is not None
        wanted = -x.grad.sum(1)
        gap = (found - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1).clamp_min(1e-300)
        return tidy(
            images, "saliency, log-probability", {"check/largest relative difference from −∂L/∂x": gap.cpu().numpy()}
        )

    study.means(arm, study.by_batch(arm, "check", measure))


def examples(study: Study[Softmax], arm: Arm) -> None:
    """Sheets with every method and target for the first images."""
    if not study.in_time:
        return
    config, model = study.config, arm.classifier.model

    def maps(batch: Tensor, classes: Tensor) -> dict[str, Tensor]:
        shown: dict[str, Tensor] = {}
        for method in methods_of(config, arm):
            found = torch.stack([maps_of(config, model, batch, own, method).relevance[0] for own in classes.unbind(1)])
            shown |= {f"{method}\n{name}": found[:, t] for t, name in enumerate(TARGETS)}
        return shown

    draw_examples(arm, config.examples, study.out / "examples", study.device, maps)


def models(config: Softmax) -> list[str]:
    """Every model that weights may be given for."""
    return config.cnns


if __name__ == "__main__":
    raise SystemExit(main(Softmax, work, name="study_softmax", about=__doc__, source=SOURCE, models=models))
