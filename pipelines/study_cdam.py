"""The tables and figures of the CDAM paper (arXiv 2312.02364), with the published figure beside ours.

On real photographs (--photographs): X_multi from MSRC with DINOv2 and a head of 21 classes, X_val from ImageNet's
validation images with heads of WordNet superclasses. Tables 1, 2 and 3 (X_multi), S1 (X_val), curves S2 to S7, S1
(attention), concepts (4 to 6), alterations of Smooth CDAM; and, with a right answer, where the maps lie: against the
masks of the objects. On ImageNet's own X_val and X_multi where --images and weights are there (the linear classifier
of pipelines/linear_probe.py).

    python pipelines/study_cdam.py --config configs/study_cdam.yaml --photographs photos --weights weights \\
        --out runs/cdam
    python pipelines/study_cdam.py --config configs/study_cdam.yaml --images ILSVRC2012/val \\
        --weights dino_vits8=runs/linear-probe/images-dino_vits8/weights.safetensors --out runs/cdam
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from studies.cdam_figures import attention_agreement, draw_curves
from studies.cdam_pictures import attention_figure, class_figures
from studies.cdam_tables import CDAM, METRICS, OTHERS, SENSITIVITY, benchmark_arm, claims_of, not_run
from studies.concept_maps import concept_measures, learned_sets
from studies.peaks import run_peaks
from studies.photo_arms import CNN, VIT, PhotoArms
from studies.published import CDAM_PAPER
from studies.study import Study, StudyConfig, main
from studies.study_arms import PHOTOS, Arm, StudyImage, describe, find_weights, photo_images, what_to_bring
from studies.study_measures import (
    AUPRC,
    IOU,
    OWN_OTHER,
    POINTING,
    POSITIVE_OWN,
    POSITIVE_REST,
    QUIET_REST,
    joined,
    object_classes,
    on_objects,
    sign_shares,
    tidy,
)
from studies.study_sets import X_MULTI, X_VAL, StudySets, study_sets
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.evaluation import fidelity, tune_sigma
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.geometry import centred_disc
from lidc_xai.evaluation.tuning import SIGMAS
from lidc_xai.explain import explain, list_methods
from lidc_xai.imagenet.classifier import Classifier, load_classifier
from lidc_xai.models.backbones import BACKBONES

ON_VAL, ON_MULTI = ("fidelity", "box", "compactness"), ("fidelity", "box", "compactness", "discrimination")
NO_IMAGES = "no ImageNet images: give --images FOLDER with ILSVRC2012's validation images (class folders, or flat)"
SWIN = "timm:swin_tiny_patch4_window7_224"
CAMS = ("gradcam", "gradcam_plus_plus", "xgradcam", "linear_approximation", "fullgrad")
ABOUT = (
    "Tables 1, 2, 3 and S1 of arXiv 2312.02364. A published figure stands beside ours wherever the same thing is "
    "measured; the column 'differs' says what is not as the paper has it. The paper's perturbation is not specified "
    "fully, so that its figures give a direction, not a value to be met.",
    "Fidelity: score × percent of pixels removed (blurred); box: Pearson × box side in units of 8 px at 224; "
    "discrimination: own map minus the other class's map on the own score; f(x) − f(all replaced): how much there is "
    "to lose; compactness: share of cells with |S| < 0.05 max S. objects/…: against the pixel masks of the two "
    "classes, the mean of both; own − other: AUPRC of the own class's map minus that of the other class's.",
)


class CdamConfig(StudyConfig):
    """Options of the CDAM study."""

    models: list[str] = Field(["dino_vits8"], description="ViT classifiers for the paper's tables and figures.")
    swag: str = Field("swag_vitb16", description="The model of Figure S14; empty: none.")
    ground_truth: Path | None = Field(None, description="Classes of a flat ImageNet folder.")
    real: Path | None = Field(None, description="ReaL labels (none: those that come with timm).")
    multi: Path | None = Field(None, description="List of X_multi (none: selected from the ReaL labels).")
    x_val: int = Field(1000, ge=1, description="Images of X_val to perturb.")
    x_multi: int = Field(1000, ge=1, description="Images of X_multi to perturb.")
    roles: int = Field(2, ge=1, le=2, description="2: an image of two classes is perturbed in both roles.")
    attention_images: int = Field(200, ge=1, description="Images of X_val for Figure S1.")
    tune_images: int = Field(200, ge=0, description="Images to choose the noise of the smoothed methods on; 0: 0.15.")
    tuned: list[str] = Field(["smooth_cdam", "smoothgrad"], description="Methods whose noise is chosen.")
    sigmas: list[float] = Field(list(SIGMAS), min_length=1, description="Noises to choose from.")
    sensitivity_images: int = Field(100, ge=0, description="Images of X_multi for sensitivity-n; 0: none.")
    sensitivity_sets: int = Field(100, ge=3, description="Random pixel sets per share (sensitivity-n).")
    benchmark: BenchmarkOptions = BenchmarkOptions(methods=(*CDAM, *OTHERS, "random"), random_weights=False)
    localised: list[str] = Field(
        [*CDAM, "attention", "relevance_propagation", "partial_lrp", "gradcam", "reciprocam", "attn_lrp", "libragrad",
         "input_x_gradient", "random"],
        description="Methods that are held against the masks.",
    )  # fmt: skip
    concept_sizes: list[int] = Field([10, 30], min_length=1, description="Pictures that make a concept.")
    concept_images: int = Field(40, ge=0, description="Images that concept maps are measured on.")
    alterations: dict[str, list[float]] = Field(
        {"gaussian": [0.15, 0.5], "mask": [0.1, 0.5], "feature": [0.15, 0.5]},
        description="Alterations of Smooth CDAM's tokens with their strengths.",
    )
    peaks_size: int = Field(224, ge=56, multiple_of=14, description="Side of the photographs for lone peaks.")
    peaks_images: int = Field(60, ge=0, description="Photographs on which lone peaks are counted.")
    shown: int = Field(4, ge=1, description="Images in a figure.")


@dataclass(frozen=True)
class Scene:
    """Images with a model; what is measured on them; other images, for the noise; figures to draw."""

    arm: Arm
    metrics: tuple[str, ...] = ()
    perturbed: int = 0
    tune: tuple[StudyImage, ...] = ()
    figures: tuple[str, ...] = ()


def work(study: Study[CdamConfig]) -> None:
    """Every scene, then the table. What is quick comes first, so that a time limit cuts the perturbations."""
    config = study.config
    scenes = [*on_photographs(study), *on_imagenet(study)]
    for scene in scenes:
        if scene.arm.masked:
            localise(study, scene.arm)
        if scene.figures and not config.share:
            draw(study, scene)
    run_peaks(study, config.peaks_size, config.peaks_images)
    for scene in scenes:
        if scene.arm.masked and scene.metrics and config.sensitivity_images:
            sensitivity(study, scene)
    for scene in scenes:
        if scene.metrics:
            perturb(study, scene)
    for place in not_run(study):
        study.skip(place, "published", "the paper prints it and nothing here stands beside it in this run")
    study.finish(
        "CDAM: correctness, class discrimination, compactness, localisation",
        ABOUT,
        METRICS
        | {
            AUPRC: "AUPRC against the masks",
            OWN_OTHER: "AUPRC, own − other class's map",
            IOU: "IoU",
            POINTING: "pointing",
        },
    )


def on_photographs(study: Study[CdamConfig]) -> Iterator[Scene]:
    """X_multi and X_val with DINOv2, X_multi with a CNN; a Swin is named with its file."""
    config = study.config
    makers = [
        ((VIT,), lambda arms: arms.masked(VIT)),
        ((VIT,), lambda arms: arms.superclasses(VIT)),
        ((CNN,), lambda arms: arms.masked(CNN)),
    ]
    for arm in study.on_photographs(makers):
        if arm.classifier.name.endswith(CNN):
            yield Scene(arm)
        elif arm.masked:
            yield Scene(arm, ON_MULTI, config.x_multi, photographs_to_tune(study), ("1", "3", "S1"))
        else:
            yield Scene(arm, ON_VAL, config.x_val, photographs_to_tune(study), ("1", "3", "S1"))
    if config.photographs is not None:
        study.skip(SWIN, "weights", what_to_bring(SWIN))


def photographs_to_tune(study: Study[CdamConfig]) -> tuple[StudyImage, ...]:
    """MSRC's training photographs, with their largest class: those that are measured stay unseen."""
    arms = study.photo_arms
    assert arms is not None
    found = []
    for label in range(len(arms.msrc.names)):
        found += [StudyImage(path.name, path, label, (label,)) for path in arms.learned_from(label)[:1]]
    return tuple(found[: study.config.tune_images])


def on_imagenet(study: Study[CdamConfig]) -> Iterator[Scene]:
    """The paper's sets and models; notes what is missing."""
    config = study.config
    if config.images is None:
        for item in ("Tables 1, 2, 3 on ImageNet's X_multi", "Table S1 on ImageNet's X_val", "Figure S14"):
            study.skip(item, "images", NO_IMAGES)
    loaded = [found for name in config.models if (found := classifier_of(study, name)) is not None]
    swag = classifier_of(study, config.swag) if config.swag else None
    sets = None
    if config.images is not None and (loaded or swag):
        sets = _sets(study, config.images)
    if sets is not None:
        for classifier in loaded:
            differs = "random weights" if classifier.random else ""
            yield _told(
                study, Scene(Arm(X_VAL, classifier, sets.val, X_VAL, differs), ON_VAL, config.x_val, sets.tune, ("S1",))
            )
            arm = Arm(X_MULTI, classifier, sets.multi, X_MULTI, differs)
            yield _told(study, Scene(arm, ON_MULTI, config.x_multi, sets.tune, ("1", "3", "S1")))
        if swag is not None:
            differs = "random weights" if swag.random else ""
            yield _told(study, Scene(Arm(X_MULTI, swag, sets.multi, X_MULTI, differs), figures=("S14",)))
    if config.photos is None:
        return
    photos = photo_images(config.photos, config.limit)
    for classifier in (*loaded, *([swag] if swag else [])):
        yield _told(study, Scene(Arm(PHOTOS, classifier, photos), figures=("1", "3")))


def _told(study: Study[CdamConfig], scene: Scene) -> Scene:
    study.arms.append(describe(scene.arm))
    return scene


def classifier_of(study: Study[CdamConfig], name: str) -> Classifier | None:
    """The model with its weights, on the device; None, with a note of what to bring, where they are not given."""
    weights = find_weights(name, study.config.weights)
    if weights is None:
        study.skip(name, "weights", _to_bring(name))
        return None
    found = load_classifier(name, weights)
    if found.count != 1000:
        raise ModelError(f"{weights}: is a classifier of {found.count} classes; ImageNet's images need one of 1000")
    found.model.to(study.device)
    return found


def _to_bring(name: str) -> str:
    entry = BACKBONES.get(name.rpartition(":")[2])
    if entry is None or entry.official_format not in ("dino", "dinov2"):
        return what_to_bring(name)
    return (
        f"no weights with a classifier: run pipelines/linear_probe.py on ImageNet with {entry.official_url} and give "
        f"--weights {name}=RUN/images-{name}/weights.safetensors"
    )


def _sets(study: Study[CdamConfig], folder: Path) -> StudySets:
    config = study.config
    few = config.limit or max(config.x_val, config.x_multi)
    found = study_sets(
        folder, ground_truth=config.ground_truth, real=config.real, listed=config.multi, val=min(config.x_val, few),
        tune=min(config.tune_images, few), multi=min(config.x_multi, few), seed=config.seed,
    )  # fmt: skip
    study.run.skipped += found.skipped
    return found


def localise(study: Study[CdamConfig], arm: Arm) -> None:
    """Every method against the masks; concepts and alterations on some of the images."""
    config, model = study.config, arm.classifier.model
    able = list_methods(model)
    names = [name for name in config.localised if name in able]
    if "cdam" not in able:
        names = [name for name in (*CAMS, "random") if name in able]

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        maps = {
            name: found.to_pixels("nearest" if "cdam" in able else "bilinear")
            for name, found in explain(model, batch, object_classes(images), names).items()
        }
        middle = centred_disc(batch.shape[-2:], batch.shape[-2:].numel() // 4, (1.0, 1.0))
        maps["centred_disc"] = torch.as_tensor(middle).expand(len(images), 2, -1, -1)
        return joined([on_objects(arm, images, name, own, config.seed) for name, own in maps.items()])

    table = study.by_batch(arm, "localisation", measure, {"methods": names})
    study.means(arm, table, note="against the masks")
    for name in (name for name in (*CDAM, "attn_lrp", "reciprocam", "gradcam") if name in names and name in able):
        rival = "attention" if "attention" in names else "random"
        study.claim(arm, f"{name} lies more on the asked class's object than {rival}", table, AUPRC, name, rival)
        claim = f"{name} tells the asked class from the other one (own − other above 0)"
        study.mean_claim(arm, claim, table, OWN_OTHER, name)
    claim = "CDAM tells the classes apart better than relevance propagation (own − other)"
    study.claim(arm, claim, table, OWN_OTHER, "cdam", "relevance_propagation")
    for rival in ("gradcam", "cdam", "relevance_propagation"):
        claim = f"ReciproCAM lies more on the asked class's object than the gradient-based {rival}"
        study.claim(arm, claim, table, AUPRC, "reciprocam", rival)
    if "cdam" not in able:
        return
    some = replace(arm, images=arm.images[: config.concept_images])
    signs(study, arm)
    altered(study, some)
    if study.photo_arms is not None and some.images:
        concepts(study, some, study.photo_arms)


def signs(study: Study[CdamConfig], arm: Arm) -> None:
    """Where CDAM is positive, and what it is worth without the norm: the paper's words about Figures 1 and 3."""

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        both = explain(arm.classifier.model, batch, object_classes(images), "cdam", tokens="block_input").relevance
        found = explain(arm.classifier.model, batch, object_classes(images), "cdam").relevance
        return joined(
            [sign_shares(arm, images, "cdam", found), on_objects(arm, images, "cdam, not normalised", both),
             on_objects(arm, images, "cdam, normalised", found)]
        )  # fmt: skip

    table = study.by_batch(arm, "signs", measure)
    study.means(arm, table, note="Figures 1 and 3: signs; tokens without norm")
    wide = table.assign(method=table["metric"]).assign(metric="share")
    claim = "CDAM is positive on more of the asked object than of the rest"
    study.claim(arm, claim, wide, "share", POSITIVE_OWN, POSITIVE_REST)
    claim = "CDAM is near zero or negative on more than half of what is not the asked object"
    study.mean_claim(arm, claim, table, QUIET_REST, "cdam", above=0.5)
    claim = "CDAM of the normalised tokens lies better than of those that are not"
    study.claim(arm, claim, table, AUPRC, "cdam, normalised", "cdam, not normalised")


def altered(study: Study[CdamConfig], arm: Arm) -> None:
    """Smooth CDAM with each alteration and strength."""
    config = study.config
    settings = [(how, sigma) for how, sigmas in config.alterations.items() for sigma in sigmas]

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        parts = []
        for how, sigma in settings:
            maps = explain(
                arm.classifier.model, batch, object_classes(images), "smooth_cdam", alteration=how, sigma=sigma
            )
            parts.append(on_objects(arm, images, f"smooth_cdam, {how} {sigma:g}", maps.relevance, config.seed))
        return joined(parts)

    study.means(arm, study.by_batch(arm, "alterations", measure), note="alterations of Smooth CDAM's tokens")


def concepts(study: Study[CdamConfig], arm: Arm, arms: PhotoArms) -> None:
    """Concept vectors from training photographs of a class, held against that class's masks (Figures 4 to 6)."""
    config = study.config
    sets = learned_sets(arms, max(config.concept_sizes))
    images = tuple(image for image in arm.images if set(image.classes) <= sets.keys())
    if not images:
        study.skip("concept maps", "images", f"no class has {max(config.concept_sizes)} training photographs")
        return
    some = replace(arm, images=images)
    told = {"sizes": config.concept_sizes, "classes": sorted(sets)}
    table = study.by_batch(some, "concepts", concept_measures(some, sets, config.concept_sizes, config.seed), told)
    study.means(some, table, note="Figures 4 to 6, against the masks")
    for name in (name for name in table["method"].unique() if str(name).endswith(" images")):
        claim = f"CDAM of a {name} distinguishes the concept's parts of an image from the rest"
        study.mean_claim(some, claim, table, OWN_OTHER, name)


def perturb(study: Study[CdamConfig], scene: Scene) -> None:
    """The paper's tables on the first images of the arm, with the curves behind them."""
    config = study.config
    arm = replace(scene.arm, images=scene.arm.images[: scene.perturbed])
    options = with_noise(study, scene)
    table, curves = benchmark_arm(study, arm, scene.metrics, options, config.roles)
    note = (
        f"{options.points} points, {options.boxes} boxes of {len(options.sizes)} sizes, "
        f"{config.roles if len(arm.images[0].classes) > 1 else 1} role, {options.precision}"
    )
    study.means(arm, table, note=note)
    claims_of(study, arm, table)
    if len(curves):
        name = f"{arm.data}-{arm.model}".replace(" ", "_").replace(":", "").replace(",", "")
        draw_curves(study.out / "figures" / f"curves-{name}", curves, f"{arm.data}, {arm.model}: {arm.like}")


def sensitivity(study: Study[CdamConfig], scene: Scene) -> None:
    """Sensitivity-n of every method, of which the paper says that it is very low for all (section 3.4)."""
    arm = replace(scene.arm, images=scene.arm.images[: study.config.sensitivity_images])
    # Scattered pixels move a score less than bfloat16 rounds it.
    told = {"sets": study.config.sensitivity_sets, "precision": "float32"}
    chosen = with_noise(study, scene).model_copy(update=told)
    table, _ = benchmark_arm(study, arm, ("sensitivity_n",), chosen, study.config.roles)
    study.means(arm, table, note=f"{chosen.sets} sets of pixels for each of 7 shares, {chosen.precision}")
    if len(table):
        highest = str(table.astype({"method": str}).groupby("method")["value"].mean().idxmax())
        claim = "Sensitivity-n: the correlation is below .1 even for the method that has the highest"
        study.mean_claim(arm, claim, table, SENSITIVITY, highest, above=0.1, sign=-1, note=highest)


def with_noise(study: Study[CdamConfig], scene: Scene) -> BenchmarkOptions:
    """The benchmark's options with the noise that serves fidelity best on the scene's other images."""
    config, options, arm = study.config, study.config.benchmark, scene.arm
    smoothed = [name for name in config.tuned if name in options.methods]
    if not scene.tune or not smoothed or (arm.heads and not arm.masked):
        return options  # superclasses have no photographs beside those that are measured: the default

    def score(model: nn.Module, images: Tensor, relevance: Tensor, target: Any) -> Any:
        return fidelity(model, images, relevance, target, sigma=options.sigma, points=options.points).area

    def chosen() -> pd.DataFrame:
        images = torch.cat([arm.read(image).tensor for image in scene.tune]).to(study.device)
        labels = torch.tensor([[image.label] for image in scene.tune])
        model, among = arm.classifier.model, config.sigmas
        sigmas = [tune_sigma(model, images, labels, name, among, score) for name in smoothed]
        return pd.DataFrame({"method": smoothed, "sigma": sigmas})

    told = {"model": arm.classifier.name, "weights": arm.classifier.weights, "sigmas": config.sigmas}
    told |= {"blur": options.sigma, "points": options.points, "images": [image.name for image in scene.tune]}
    noise = study.once("noise", chosen, told)
    given = {name: dict(own) for name, own in options.method_options.items()}
    for name, sigma in zip(noise["method"], noise["sigma"], strict=True):
        given.setdefault(str(name), {}).setdefault("sigma", float(sigma))
    study.arms.append({"data": arm.data, "sigma": {name: given[name]["sigma"] for name in smoothed}})
    return options.model_copy(update={"method_options": given})


def draw(study: Study[CdamConfig], scene: Scene) -> None:
    """The scene's figures, in OUT/figures/<data>-<model>, and what they are in numbers; none when the time is over."""
    arm, shown, config = scene.arm, study.config.shown, study.config
    folder = study.out / "figures" / f"{arm.data}-{arm.model}".replace(" ", "_").replace(":", "").replace(",", "")
    if "S14" in scene.figures and study.in_time:
        class_figures(folder, arm, shown, config.benchmark, {"classes": "figure_S14.png"})
        return
    if "1" in scene.figures and study.in_time:
        class_figures(folder, arm, shown, config.benchmark, {"classes": "figure_1.png", "methods": "figure_3.png"})
    figure = folder / "figure_S1.png"
    if "S1" not in scene.figures or not (study.in_time or figure.with_suffix(".parquet").is_file()):
        return
    some = replace(arm, images=arm.images[: config.attention_images])

    values = attention_agreement(attention_figure(figure, some))
    few = [image for image in some.images if image.name in set(values["image"])]
    told = {"attention/spearman": values["spearman"], "attention/share of |S| on the least tenth": values["low"]}
    table = tidy(few, "cdam", told)
    study.means(some, table, note="Figure S1, A.1: |CDAM| and attention over the patches")
    study.mean_claim(
        arm, "CDAM scales attention: |CDAM| and attention rank the patches alike", table, "attention/spearman", "cdam"
    )
    claim = "the tenth of the patches with least attention has less than a tenth of |CDAM|"
    study.mean_claim(arm, claim, table, "attention/share of |S| on the least tenth", "cdam", above=0.1, sign=-1)


def run(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return main(
        CdamConfig, work, name=Path(__file__).stem, about=__doc__ or "", source=CDAM_PAPER,
        models=lambda config: [*config.models, *([config.swag] if config.swag else [])], arguments=arguments,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run())
