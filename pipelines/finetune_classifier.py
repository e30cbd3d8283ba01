"""Fine-tune any timm or torchvision classifier on an image folder: VGG-16 on CUB-200, ViT-B/16 on Food-101, or others.

What was learned is kept in OUT/<data>-<model>: weights.safetensors, classes.txt (for --labels) and training.json.

    python pipelines/finetune_classifier.py --config configs/finetune_vgg16_cub200.yaml --images CUB_200_2011 \\
        --weights torchvision:vgg16=vgg16-397923af.pth --out runs/vgg16-cub200
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from studies.epochs import EpochOptions
from studies.finetuning import finetune
from studies.image_sets import ImageSet, read_image_set
from studies.study import Study, StudyConfig, main
from studies.study_arms import IMAGES, find_weights, what_to_bring
from studies.study_table import Row
from studies.trained_classifier import accuracy_interval

METRIC = "accuracy"


class FinetuneConfig(StudyConfig):
    """Options of fine-tuning."""

    model: str = Field("torchvision:vgg16", description="A timm or torchvision classifier.")
    kind: str = Field("auto", description="Of the images: auto, cub200, food101, parts, classes.")
    size: int | None = Field(None, ge=16, description="Side of the input (none: the model's own).")
    fit: EpochOptions = EpochOptions(
        epochs=30, batch=32, optimiser="sgd", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine"
    )


def work(study: Study[FinetuneConfig]) -> None:
    """The model on the images, and the table."""
    config = study.config
    if config.images is None:
        reason = "no images: give --images FOLDER with CUB_200_2011, food-101, train/ and val/, or class folders"
        study.skip("the images", "images", reason)
    images = None if config.images is None else read_image_set(config.images, config.kind, limit=config.limit)
    study.run.skipped += images.skipped if images else ()
    weights = find_weights(config.model, config.weights)
    if weights is None:
        study.skip(config.model, "weights", what_to_bring(config.model))
    elif images is not None:
        _finetune(study, config.model, weights, images, IMAGES, config.fit)
    about = ["Share of test images whose most probable class is theirs after the last epoch."]
    study.finish("Fine-tuned classifiers", about, {METRIC: "accuracy"})


def _finetune(
    study: Study[FinetuneConfig], name: str, weights: str, images: ImageSet, data: str, fit: EpochOptions
) -> None:
    folder = study.out / f"{data}-{name}".replace(" ", "-").replace(":", "-")
    done = finetune(name, weights, images, folder, fit, size=study.config.size, device=study.device)
    interval = accuracy_interval(done.accuracy, done.tested, study.config.seed)
    paper = data == IMAGES and images.kind in ("cub200", "food101")
    note = f"{images.kind}: {len(images.train)} training images, {len(images.names)} classes"
    study.rows.append(Row.of(data, name, "fine-tuned", METRIC, interval, note=note))
    study.arms.append({"data": data, "model": name, "images": len(images.train) + done.tested, "paper": paper})


def run(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return main(
        FinetuneConfig, work, name=Path(__file__).stem, about=__doc__ or "", source="arXiv 2501.11096",
        models=lambda config: [config.model], arguments=arguments,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run())
