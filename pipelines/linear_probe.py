"""A linear classifier on frozen backbones, as the CDAM paper trains it (DINO ViT-S/8 on ImageNet: 77.0 %).

Runs on an image set (--images: ImageNet with train/ and val/, CUB-200, Food-101, or class folders) with the backbones
whose weights are there. What was learned is kept in OUT/<data>-<backbone>: weights.safetensors, which the studies
take, classes.txt and training.json. With --set fit.augment=false scikit-learn's logistic regression stands beside.

    python pipelines/linear_probe.py --config configs/linear_probe.yaml --images imagenet \\
        --weights dino_vits8=dino_deitsmall8_pretrain.pth --out runs/linear-probe
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from studies.epochs import EpochOptions
from studies.image_sets import ImageSet, read_image_set
from studies.linear_probe import logistic_regression, predictions, train_probe
from studies.study import Study, StudyConfig, main
from studies.study_arms import IMAGES, find_weights, what_to_bring
from studies.study_table import Finding, Row
from studies.trained_classifier import accuracy_interval

from lidc_xai.evaluation.statistics import bootstrap_mean

METRIC = "accuracy"
PAPERS_MODEL = "dino_vits8"
ALIKE = "at most 1 % below scikit-learn's logistic regression on the same features"
NO_IMAGES = "no images: give --images FOLDER with train/ and val/ (a folder per class in each), CUB-200 or Food-101"


class ProbeConfig(StudyConfig):
    """Options of the linear probe."""

    backbones: list[str] = Field(["dino_vits8"], description="Names of `info backbones`, or timm's.")
    size: int | None = Field(None, ge=16, description="Side of the input (none: the backbone's own).")
    kind: str = Field("auto", description="Of the images: auto, cub200, food101, parts, classes.")
    fit: EpochOptions = EpochOptions()


def work(study: Study[ProbeConfig]) -> None:
    """All backbones on all images, and the table."""
    config = study.config
    if config.images is None:
        study.skip("the paper's images", "images", NO_IMAGES)
    images = None if config.images is None else read_image_set(config.images, config.kind, limit=config.limit)
    study.run.skipped += images.skipped if images else ()
    for name in config.backbones:
        weights = find_weights(name, config.weights)
        if weights is None:
            study.skip(name, "weights", what_to_bring(name))
        elif images is not None:
            _probe(study, name, weights, images, IMAGES, config.fit)
    about = [
        "Share of test images whose most probable class is theirs, by a linear classifier on what a frozen backbone "
        "says of them. Published: top-1 on ImageNet's validation images, with the paper's settings (random resized "
        "crop, flip, Adam 3e-4, batch 128, 10 epochs).",
    ]
    study.finish("Linear classifiers on frozen backbones", about, {METRIC: "accuracy"})


def _probe(study: Study[ProbeConfig], name: str, weights: str, images: ImageSet, data: str, fit: EpochOptions) -> None:
    random = " (random weights)" if weights == "random" else ""
    folder = study.out / f"{data}-{name}{random}".replace(" ", "-").replace("(", "").replace(")", "")
    done = train_probe(name, weights, images, folder, fit, size=study.config.size, device=study.device)
    ours = accuracy_interval(done.accuracy, done.tested, study.config.seed)
    paper = data == IMAGES and len(images.names) == 1000 and not random
    note = f"{len(images.train)} training images, {len(images.names)} classes"
    differs = "" if paper and name == PAPERS_MODEL else f"model: {name + random}; images: {images.kind}"
    like = "ImageNet validation"
    row = Row.of(data, name + random, "linear probe", METRIC, ours, like=like, differs=differs, note=note)
    study.rows.append(row)
    study.arms.append({"data": data, "model": name + random, "images": len(images.train) + done.tested, "paper": paper})
    if fit.augment:
        return
    right = {
        "linear probe": predictions(folder) == images.test_labels,
        "logistic regression": logistic_regression(folder, images, fit) == images.test_labels,
    }
    other = bootstrap_mean(right["logistic regression"].astype(float), seed=study.config.seed)
    study.rows.append(Row.of(data, name + random, "logistic regression", METRIC, other, note=note))
    gap = right["linear probe"].astype(float) - right["logistic regression"].astype(float)
    found = bootstrap_mean(gap + 0.01, seed=study.config.seed)
    told = f"accuracy {ours.mean:.3f} against {other.mean:.3f}; the effect is the difference plus 0.01"
    study.findings.append(Finding.of(ALIKE, data, name + random, found, note=told))


def run(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return main(
        ProbeConfig, work, name=Path(__file__).stem, about=__doc__ or "", source="arXiv 2312.02364",
        models=lambda config: config.backbones, arguments=arguments,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run())
