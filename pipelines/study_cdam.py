"""The tables and figures of the CDAM paper (arXiv 2312.02364), with the published figure beside ours.

Tables 1 (correctness), 2 (class discrimination), 3 (compactness), S1; Figures 1 and 3 (maps of two classes), 4 to 6
(concept maps from 10 to 30 images), S1 (CDAM against attention), S14 (SWAG). Always on photographs made for the study
with a small ViT that learns them here, whose right answer is known; on ImageNet's X_val and X_multi where --images and
weights are there (the linear classifier of pipelines/linear_probe.py); on --photos without labels.

    python pipelines/study_cdam.py --config configs/study_cdam.yaml --images ILSVRC2012/val \\
        --weights dino_vits8=runs/linear-probe/images-dino_vits8/weights.safetensors --out runs/cdam
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from studies.cdam_figures import attention_agreement
from studies.cdam_pictures import (
    ConceptSet,
    attention_figure,
    class_figures,
    concept_figure,
    concept_measures,
)
from studies.cdam_tables import (
    CDAM,
    OTHERS,
    TABLES,
    benchmark_arm,
    claims_of,
    known_answer_of,
    not_run,
    rows_of,
)
from studies.study import Study, StudyConfig, main
from studies.study_arms import (
    MADE_PAIRS,
    MADE_SINGLES,
    PHOTOS,
    Arm,
    StudyImage,
    describe,
    find_weights,
    made_images,
    photo_images,
    what_to_bring,
)
from studies.study_measures import OWN_SHARE
from studies.study_sets import X_MULTI, X_VAL, StudySets, study_sets
from studies.study_table import Finding, Row
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.evaluation import fidelity, tune_sigma
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.published import CDAM_PAPER
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.evaluation.tuning import SIGMAS
from lidc_xai.imagenet.classifier import Classifier, load_classifier
from lidc_xai.imagenet.photographs import find_photos, read_photo
from lidc_xai.models.backbones import BACKBONES

ON_VAL, ON_MULTI = ("fidelity", "box", "compactness"), ("discrimination",)
NO_IMAGES = "no ImageNet images: give --images FOLDER with ILSVRC2012's validation images (class folders, or flat)"
CONCEPT_FIGURES = ("figure_4.png", "figure_5.png", "figure_6.png")
ABOUT = (
    "Tables 1, 2, 3 and S1 of arXiv 2312.02364 on the paper's images where they are at hand, and on photographs made "
    "for the study, whose objects and their places are known. Published figures stand only where they are known for "
    "certain; the paper's perturbation is not specified fully, so that they give a direction, not a value to be met.",
    "Fidelity: score × percent of pixels removed (blurred); box: Pearson × box side in units of 8 px at 224; "
    "discrimination: own map minus the other class's map on the own score, in both roles of an image's two classes; "
    "f(x) − f(all replaced): how much there is to lose (where it is small, fidelity and boxes measure little); "
    "compactness: share of cells with |S| < 0.05 max S; known answer: agreement of a class's map with its object.",
)


class CdamConfig(StudyConfig):
    """Options of the CDAM study."""

    models: list[str] = Field(["dino_vits8"], description="ViT classifiers for the paper's tables and figures.")
    swag: str = Field("swag_vitb16", description="The model of Figure S14; empty: none.")
    small: list[str] = Field(["made_vit"], description="Small models for the made photographs.")
    ground_truth: Path | None = Field(None, description="Classes of a flat ImageNet folder.")
    real: Path | None = Field(None, description="ReaL labels (none: those that come with timm).")
    multi: Path | None = Field(None, description="List of X_multi (none: selected from the ReaL labels).")
    x_val: int = Field(1000, ge=1, description="Images of X_val.")
    x_multi: int = Field(1000, ge=1, description="Images of X_multi.")
    tune_images: int = Field(200, ge=0, description="Images to choose the noise of the smoothed methods on; 0: 0.15.")
    sigmas: list[float] = Field(list(SIGMAS), min_length=1, description="Noises to choose from.")
    benchmark: BenchmarkOptions = BenchmarkOptions(methods=(*CDAM, *OTHERS, "random"), random_weights=False)
    made_sigma: float = Field(56.0, gt=0, description="Blur on made photographs, px at 224: 14 leaves their objects.")
    concepts: Path | None = Field(None, description="Folder with a folder of pictures for each concept.")
    concept_sizes: list[int] = Field([10, 30], min_length=1, description="Pictures that make a concept.")
    shown: int = Field(4, ge=1, description="Images in a figure.")


@dataclass(frozen=True)
class Scene:
    """Images with a model; what is measured on them; other images, for the noise and for concepts; figures to draw."""

    arm: Arm
    metrics: tuple[str, ...] = ()
    tune: tuple[StudyImage, ...] = ()
    sets: StudySets | None = None
    figures: tuple[str, ...] = ()


def work(study: Study[CdamConfig]) -> None:
    """Every scene, then the table."""
    for scene in scenes(study):
        study.arms.append(describe(scene.arm))
        options = with_noise(study, scene) if scene.metrics else study.config.benchmark
        if scene.metrics:
            table = benchmark_arm(study, scene.arm, scene.metrics, options)
            rows_of(study, scene.arm, table)
            if scene.arm.data != PHOTOS:  # a handful of photographs, whose classes nobody has labelled
                claims_of(study, scene.arm, table)
                known_answer_of(study, scene.arm, table)
        if scene.figures:
            draw(study, scene, options)
    study.rows += not_run(study.rows, study.config.models[:1])
    panels = {metric: f"{metric} ({table})" for metric, table in TABLES.items() if metric != "fidelity/at_stake"}
    study.finish("CDAM: correctness, class discrimination, compactness", ABOUT, panels)


def scenes(study: Study[CdamConfig]) -> Iterator[Scene]:
    """Made photographs with small models, ImageNet's sets and photographs with the paper's; notes what is missing."""
    config = study.config
    for name in config.small:
        classifier, made, limit = study.small(name), study.made_photos(), config.limit
        tune = _made_tuning(study)
        singles = Arm(MADE_SINGLES, classifier, made_images(made, MADE_SINGLES, limit), made=made)
        yield Scene(singles, ON_VAL, tune)
        pairs = Arm(MADE_PAIRS, classifier, made_images(made, MADE_PAIRS, limit), made=made)
        yield Scene(pairs, (*ON_MULTI, "localisation"), tune, figures=("1", "3", "4", "S1"))
    if config.images is None:
        for item in ("Tables 1, 3, S1", "Table 2", "Figures 1, 3 to 6, S1", "Figure S14"):
            study.skip(item, "images", NO_IMAGES)
    loaded = [(name, network) for name in config.models if (network := classifier_of(study, name)) is not None]
    swag = classifier_of(study, config.swag) if config.swag else None
    sets = None
    if config.images is not None and (loaded or swag):
        sets = _sets(study, config.images)
    if sets is not None:
        for _, classifier in loaded:
            paper = not classifier.random
            yield Scene(Arm(X_VAL, classifier, sets.val, paper=paper), ON_VAL, sets.tune)
            multi = Arm(X_MULTI, classifier, sets.multi, paper=paper)
            yield Scene(multi, ON_MULTI, sets.tune, sets, ("1", "3", "4", "S1"))
        if swag is not None:
            yield Scene(Arm(X_MULTI, swag, sets.multi, paper=not swag.random), figures=("S14",))
    if config.photos is None:
        return
    photos = photo_images(config.photos, config.limit)
    shown_to = [network for _, network in loaded] or [study.small(name) for name in config.small]
    for classifier in shown_to:
        tune = () if sets is None else sets.tune
        yield Scene(Arm(PHOTOS, classifier, photos), (*ON_VAL, *ON_MULTI), tune, figures=("1", "3", "4", "S1"))
    if swag is not None:
        yield Scene(Arm(PHOTOS, swag, photos), figures=("S14",))


def classifier_of(study: Study[CdamConfig], name: str) -> Classifier | None:
    """The model with its weights, on the device; None, with a note of what to bring, where they are not given."""
    weights = find_weights(name, study.config.weights)
    if weights is None:
        study.skip(name, "weights", _to_bring(name))
        return None
    classifier = load_classifier(name, weights)
    if classifier.count != 1000:
        raise ModelError(
            f"{weights}: is a classifier of {classifier.count} classes; ImageNet's images need one of 1000"
        )
    classifier.model.to(study.device)
    return classifier


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
    sets = study_sets(
        folder, ground_truth=config.ground_truth, real=config.real, listed=config.multi, val=min(config.x_val, few),
        tune=min(config.tune_images, few), multi=min(config.x_multi, few), seed=config.seed,
    )  # fmt: skip
    study.run.skipped += sets.skipped
    return sets


def _made_tuning(study: Study[CdamConfig]) -> tuple[StudyImage, ...]:
    """Training images of one object: those that the figures are measured on stay unseen."""
    singles = study.made_photos().singles("train")
    order = np.random.default_rng(study.config.seed).permutation(len(singles))
    count = min(study.config.tune_images, study.config.limit or study.config.tune_images)
    chosen = [singles[k] for k in order[:count]]
    return tuple(StudyImage(path.name, path, label, (label,)) for path, label in chosen)


def with_noise(study: Study[CdamConfig], scene: Scene) -> BenchmarkOptions:
    """The benchmark's options with the noise that serves fidelity best on the scene's other images."""
    options = study.config.benchmark
    if scene.arm.made is not None:
        options = options.model_copy(update={"sigma": study.config.made_sigma})
    smoothed = [name for name in ("smooth_cdam", "smoothgrad") if name in options.methods]
    if not scene.tune or not smoothed:
        return options
    arm = scene.arm

    def score(model: nn.Module, images: Tensor, relevance: Tensor, target: Any) -> Any:
        return fidelity(model, images, relevance, target, sigma=options.sigma, points=options.points).area

    def chosen() -> pd.DataFrame:
        images = torch.cat([read_photo(image.path, arm.classifier.spec).tensor for image in scene.tune])
        images = images.to(study.device)
        labels = torch.tensor([[image.label] for image in scene.tune])
        model, among = arm.classifier.model, study.config.sigmas
        sigmas = [tune_sigma(model, images, labels, name, among, score) for name in smoothed]
        return pd.DataFrame({"method": smoothed, "sigma": sigmas})

    told = {"model": arm.classifier.name, "weights": arm.classifier.weights, "sigmas": study.config.sigmas}
    told |= {"blur": options.sigma, "points": options.points, "images": [image.name for image in scene.tune]}
    tuned = study.once("noise", chosen, told)
    given = {name: dict(options_here) for name, options_here in options.method_options.items()}
    for name, sigma in zip(tuned["method"], tuned["sigma"], strict=True):
        given.setdefault(str(name), {}).setdefault("sigma", float(sigma))
    study.arms[-1]["sigma"] = {name: given[name]["sigma"] for name in smoothed}
    return options.model_copy(update={"method_options": given})


def draw(study: Study[CdamConfig], scene: Scene, options: BenchmarkOptions) -> None:
    """The scene's figures, in OUT/figures/<data>-<model>, and what they are in numbers."""
    arm, shown = scene.arm, study.config.shown
    folder = study.out / "figures" / f"{arm.data}-{arm.model}".replace(" ", "_")
    if "S14" in scene.figures:
        class_figures(folder, arm, shown, options, {"classes": "figure_S14.png"})
        return
    class_figures(folder, arm, shown, options, {"classes": "figure_1.png", "methods": "figure_3.png"})
    agreement = attention_agreement(attention_figure(folder / "figure_S1.png", arm))
    mean = bootstrap_mean(agreement["value"], agreement["image"].tolist(), seed=study.config.seed)
    note = "Figure S1: Spearman over the patches, |CDAM| with attention"
    study.rows.append(Row.of(arm.data, arm.model, "cdam", "attention/spearman", mean, paper=arm.paper, note=note))
    if arm.data != PHOTOS:
        claim = "CDAM scales attention: |CDAM| and attention rank the patches alike"
        study.findings.append(Finding.of(claim, arm.data, arm.model, mean, note="Figure S1"))
    sizes = study.config.concept_sizes
    sets = concept_sets(study, scene)
    for concept, name in zip(sets, CONCEPT_FIGURES, strict=False):
        concept_figure(folder / name, arm, concept, sizes, shown)
    if arm.made is not None:
        concept_numbers(study, arm, sizes)


def concept_numbers(study: Study[CdamConfig], arm: Arm, sizes: Sequence[int]) -> None:
    """On made pairs, where the right object is known: rows and the claim that concept maps find it."""
    assert arm.made is not None
    singles: dict[int, list[Path]] = {}
    for path, label in arm.made.singles("train"):
        singles.setdefault(label, []).append(path)
    told = {"sizes": list(sizes), "pictures": {label: paths[0].name for label, paths in singles.items()}}
    table = study.by_batch(arm, "concepts", concept_measures(arm, singles, sizes), told)
    study.means(arm, table, note="Figures 4 to 6, known answer")
    for n in sizes:
        shares = table[(table["method"] == f"concept_cdam, {n} images") & (table["metric"] == OWN_SHARE)]
        difference = bootstrap_mean(shares["value"] - 0.5, shares["image"].tolist(), seed=study.config.seed)
        claim = f"a concept of {n} images is found where it is"
        study.findings.append(Finding.of(claim, arm.data, arm.model, difference, note=f"{OWN_SHARE} − ½"))


def concept_sets(study: Study[CdamConfig], scene: Scene) -> list[ConceptSet]:
    """Three concepts: the caller's folders, else classes of the images that are shown, made of other images."""
    arm, most = scene.arm, max(study.config.concept_sizes)
    if study.config.concepts is not None and arm.made is None:
        folders = sorted(path for path in study.config.concepts.iterdir() if path.is_dir())
        return [ConceptSet(path.name, tuple(find_photos([path])), None, arm.images) for path in folders[:3]]
    sets = []
    for label in dict.fromkeys(label for image in arm.images for label in image.classes):
        if arm.made is not None:
            paths = [path for path, label_there in arm.made.singles("train") if label_there == label]
        elif scene.sets is not None:
            paths = scene.sets.of_class(label, but=arm.images)
        else:
            return []
        shown = tuple(image for image in arm.images if label in image.classes)
        if len(paths) >= most:
            sets.append(ConceptSet(arm.classifier.label(label), tuple(paths), label, shown))
    return sets[:3]


def run(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return main(
        CdamConfig, work, name=Path(__file__).stem, about=__doc__ or "", source=CDAM_PAPER,
        models=lambda config: [*config.models, *([config.swag] if config.swag else [])], arguments=arguments,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run())
