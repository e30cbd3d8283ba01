"""Which images meet which models in a study, and what has to be brought for those that cannot run.

A study runs on up to three kinds of images: photographs made for it (the small models learn them here, so that every
study runs without a download), photographs of the caller's without labels, and an ImageNet folder with the paper's own
models. Weights are given as MODEL=FILE, or as a folder that holds the publishers' files under their own names or as
MODEL.pth, MODEL.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from lidc_xai.errors import UsageError
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.classifier import Classifier, find_architecture, load_classifier
from lidc_xai.imagenet.classifier_weights import published_address
from lidc_xai.imagenet.photographs import find_photos
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.skipped import Skipped
from studies.folder import read_image_folder
from studies.image_sets import read_image_set
from studies.made_photos import MadePhotos
from studies.small_models import train_small

MADE_PAIRS, MADE_SINGLES, PHOTOS, IMAGES = "made pairs", "made singles", "photographs", "images"
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class StudyImage:
    """An image by its path, with its label and every class that it shows where these are known."""

    name: str
    path: Path
    label: int | None = None
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Arm:
    """Images and the classifier that they are shown to. ``paper``: as the paper has it."""

    data: str
    classifier: Classifier
    images: tuple[StudyImage, ...]
    paper: bool = False
    made: MadePhotos | None = field(default=None, compare=False)

    @property
    def model(self) -> str:
        """The model's name without its library, with its seed where it was trained here."""
        random = " (random weights)" if self.classifier.random else ""
        return self.classifier.name.partition(":")[2] + str(self.classifier.weights.get("suffix", "")) + random

    @property
    def fingerprint(self) -> str:
        """What a kept result belongs to, beside its images: this model with these weights."""
        told = [self.data, self.classifier.name, self.classifier.weights]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:10]

    def masks(self, image: StudyImage) -> np.ndarray:
        """(classes, H, W) bool of a made pair, in the order of ``image.classes``."""
        assert self.made is not None
        return np.stack([self.made.mask(image.path, label) for label in image.classes])


@dataclass(frozen=True)
class Labelled:
    """The labelled images of a folder. ``data``: how the table calls them; ``names``: their classes."""

    data: str
    images: tuple[StudyImage, ...]
    names: ClassNames

    def fits(self, classifier: Classifier) -> bool:
        """Whether the classifier has as many classes as the images."""
        return classifier.count == len(self.names)

    def misfit(self, classifier: Classifier) -> str:
        """One line that says why not."""
        return (
            f"its weights have {classifier.count} classes, these images {len(self.names)}: give weights that were "
            "trained on them (pipelines/finetune_classifier.py)"
        )


def labelled_images(folder: Path, seed: int, limit: int | None) -> tuple[Labelled, list[Skipped]]:
    """ImageNet's validation images, or the test images of CUB-200-2011, Food-101 or a folder of train/ and val/.

    ``limit`` of them, drawn by ``seed``; and what the folder lacks.
    """
    examples: Sequence[tuple[Path, int]]
    if any((folder / name).exists() for name in ("train_test_split.txt", "meta", "train")):
        images = read_image_set(folder, seed=seed)
        examples, skipped = images.test, images.skipped
        names, data = ClassNames(images.names), f"{IMAGES} ({images.kind})"
    else:
        listed = read_image_folder(folder)
        examples = [(image.path, image.label) for image in listed.images]
        names, data, skipped = listed.classes, IMAGES, listed.skipped
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()[:limit]
    chosen = tuple(StudyImage(path.name, path, label, (label,)) for path, label in (examples[k] for k in order))
    return Labelled(data, chosen, names), list(skipped)


def made_images(made: MadePhotos, data: str, limit: int | None) -> tuple[StudyImage, ...]:
    """Made pairs, or made single objects (those kept apart from training)."""
    if data == MADE_PAIRS:
        images = [StudyImage(path.name, path, classes[0], classes) for path, classes in made.pairs()]
    else:
        singles = made.singles("val")
        order = np.random.default_rng(0).permutation(len(singles))
        chosen = [singles[k] for k in order]
        images = [StudyImage(path.name, path, label, (label,)) for path, label in chosen]
    return tuple(images[:limit])


def photo_images(folder: Path, limit: int | None) -> tuple[StudyImage, ...]:
    """Photographs without labels."""
    return tuple(StudyImage(path.name, path) for path in find_photos([folder])[:limit])


def small_classifier(name: str, made: MadePhotos, folder: Path, *, epochs: int, seed: int, device: str) -> Classifier:
    """A small model trained here on ``made`` (once: the file is kept in ``folder``)."""
    file = folder / f"{name}-seed{seed}.safetensors"
    accuracy = train_small(name, made, file, epochs=epochs, seed=seed, device=device)
    classifier = load_classifier(name, file, labels=made.classes_file)
    classifier.weights.update({"accuracy": accuracy, "suffix": f"-seed{seed}" if seed else ""})
    classifier.model.to(device)
    return classifier


def find_weights(model: str, given: Sequence[str]) -> str | None:
    """What was given for ``model``: a path, "pretrained" or "random"; None where nothing was.

    Raises ``UsageError`` for a path that is not there.
    """
    first: str | None = None
    for entry in given:
        name, equals, value = entry.partition("=")
        if equals:
            if name != model:
                continue
            if value not in ("pretrained", "random") and not Path(value).is_file():
                raise UsageError(f"--weights {entry}: no such file")
            return value
        folder = Path(entry)
        if not folder.is_dir():
            raise UsageError(f"--weights {entry}: wanted MODEL=FILE, MODEL=pretrained or a folder of weights files")
        inside = [folder / file for file in _file_names(model) if (folder / file).is_file()]
        first = first or (str(inside[0]) if inside else None)
    return first


def check_weights(models: Sequence[str], given: Sequence[str]) -> None:
    """``UsageError`` for weights of a model that the study does not have."""
    for entry in given:
        name, equals, _ = entry.partition("=")
        if equals and name not in models:
            raise UsageError(f"--weights {entry}: this study's models are {', '.join(models) or 'none'}")


def what_to_bring(model: str) -> str:
    """One line: the file with this model's weights, and how to hand it over."""
    address = _address(model)
    files = _file_names(model)
    source = f"download {address}" if address else "bring its publisher's file"
    return (
        f"no weights: {source} and give --weights {model}=FILE, or --weights FOLDER with {' or '.join(files[:2])} in it"
    )


def _address(model: str) -> str | None:
    library, short = find_architecture(model)
    entry = BACKBONES.get(short)
    if library == "timm" and entry is not None and entry.official_url:
        return entry.official_url
    return published_address(library, short)[0]


def _file_names(model: str) -> list[str]:
    """Names under which a model's weights are looked for in a folder."""
    plain = model.rpartition(":")[2]
    address = _address(model)
    official = Path(urlsplit(address).path).name if address else ""
    official_name = [official] if official and official not in ("model.safetensors", "pytorch_model.bin") else []
    return [*official_name, *(f"{plain}{ending}" for ending in _ENDINGS)]


def describe(arm: Arm) -> dict[str, Any]:
    """An arm for run.json."""
    told = {"data": arm.data, "model": arm.model, "images": len(arm.images), "paper": arm.paper}
    return {**told, "weights": dict(arm.classifier.weights)}
