"""Which images meet which models in a study, and what has to be brought for those that cannot run.

A study runs on real photographs with the two models that are at hand (``photo_arms``), on photographs of the caller's
without labels, and on an ImageNet folder with the paper's own models. Weights are given as MODEL=FILE, or as a folder
that holds the publishers' files under their own names or as MODEL.pth, MODEL.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.classifier import Classifier, find_architecture
from lidc_xai.imagenet.classifier_weights import published_address
from lidc_xai.imagenet.photographs import Photo, find_photos, read_photo
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.skipped import Skipped
from studies.folder import read_image_folder
from studies.image_sets import read_image_set
from studies.photo_sets import masks_of

PHOTOS, IMAGES = "photographs", "images"
VIT, CNN = "dinov2_vits14", "tf_efficientnet_lite0"
"""The two real networks that the photographs are shown to."""
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class StudyImage:
    """An image by its path, with its label and every class that it shows where these are known.

    ``mask``: a picture with a class number a pixel, of which ``codes`` are those of ``classes``; ``fold``: of the head
    that did not learn from it; ``real``: how many ReaL labels it has (None: not known).
    """

    name: str
    path: Path
    label: int | None = None
    classes: tuple[int, ...] = ()
    mask: Path | None = None
    codes: tuple[int, ...] = ()
    fold: int = 0
    real: int | None = None


@dataclass(frozen=True)
class Arm:
    """Images and the classifier that they are shown to.

    ``like``: the paper's images that these stand for; ``differs``: what is not as the paper has it (empty: nothing).
    ``heads``: a linear classifier (weight, bias) for every fold of the images, none where the model has one for all:
    ``use`` puts it into the model, which all code here reads as it is at that moment. ``logits``: of each image by its
    name, where they are known from kept features.
    """

    data: str
    classifier: Classifier
    images: tuple[StudyImage, ...]
    like: str = ""
    differs: str = ""
    fit: str = "crop"
    heads: tuple[tuple[Tensor, Tensor], ...] = field(default=(), compare=False)
    logits: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, compare=False)

    @property
    def model(self) -> str:
        """The model's name without its library, with what its weights say of it."""
        random = " (random weights)" if self.classifier.random else ""
        return self.classifier.name.partition(":")[2] + str(self.classifier.weights.get("suffix", "")) + random

    @property
    def paper(self) -> bool:
        """Whether images and model are the paper's own."""
        return bool(self.like) and not self.differs

    @property
    def masked(self) -> bool:
        """Whether it is known where in every image its classes are."""
        return bool(self.images) and all(image.mask is not None for image in self.images)

    @property
    def fingerprint(self) -> str:
        """What a kept result belongs to, beside its images: this model with these weights."""
        told = [self.data, self.classifier.name, self.classifier.weights]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:10]

    def by_fold(self) -> Iterator[tuple[int, tuple[StudyImage, ...]]]:
        """The images of each fold with its head in the model."""
        for fold in sorted({image.fold for image in self.images}):
            self.use(fold)
            yield fold, tuple(image for image in self.images if image.fold == fold)

    def use(self, fold: int) -> None:
        """Put the fold's head into the model."""
        if self.heads:
            network: Any = self.classifier.model
            with torch.no_grad():
                for own, new in zip(network.get_classifier().parameters(), self.heads[fold], strict=True):
                    own.copy_(new)

    def read(self, image: StudyImage) -> Photo:
        """The image as the model sees it; its fold's head is put into the model."""
        self.use(image.fold)
        return read_photo(image.path, self.classifier.spec, self.fit)

    def masks(self, image: StudyImage) -> NDArray[np.bool_]:
        """(classes, H, W): where each of ``image.classes`` is, as the model sees it."""
        assert image.mask is not None
        return masks_of(image.mask, image.codes, self.classifier.spec.size)


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
    found: Sequence[tuple[Path, int]]
    if any((folder / name).exists() for name in ("train_test_split.txt", "meta", "train")):
        images = read_image_set(folder, seed=seed)
        found, names, data, skipped = images.test, ClassNames(images.names), f"{IMAGES} ({images.kind})", images.skipped
    else:
        own = read_image_folder(folder)
        found = [(image.path, image.label) for image in own.images]
        names, data, skipped = own.classes, IMAGES, own.skipped
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()[:limit]
    chosen = tuple(StudyImage(path.name, path, label, (label,)) for path, label in (found[k] for k in order))
    return Labelled(data, chosen, names), list(skipped)


def photo_images(folder: Path, limit: int | None) -> tuple[StudyImage, ...]:
    """Photographs without labels."""
    return tuple(StudyImage(path.name, path) for path in find_photos([folder])[:limit])


def find_weights(model: str, given: Sequence[str]) -> str | None:
    """What was given for ``model``: a path, "pretrained" or "random"; None where nothing was.

    Raises ``UsageError`` for a path that is not there.
    """
    found: str | None = None
    for entry in given:
        name, equals, value = entry.partition("=")
        if equals:
            if name != model:
                continue
            if value not in ("pretrained", "random") and not Path(value).is_file():
                raise UsageError(f"--weights {entry}: no such file; {what_to_bring(model)}")
            return value
        folder = Path(entry)
        if not folder.is_dir():
            raise UsageError(f"--weights {entry}: wanted MODEL=FILE, MODEL=pretrained or a folder of weights files")
        inside = [folder / file for file in _file_names(model) if (folder / file).is_file()]
        found = found or (str(inside[0]) if inside else None)
    return found


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
    source = f"get them with `curl -LO {address}`" if address else "bring its publisher's file"
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
    own = [official] if official and official not in ("model.safetensors", "pytorch_model.bin") else []
    plains = dict.fromkeys((plain, plain.removeprefix("tf_")))  # timm marks what was converted from TensorFlow
    return [*own, *(f"{name}{ending}" for name in plains for ending in _ENDINGS)]


def describe(arm: Arm) -> dict[str, Any]:
    """An arm for run.json."""
    told = {"data": arm.data, "model": arm.model, "images": len(arm.images), "differs": arm.differs}
    return {**told, "weights": dict(arm.classifier.weights)}
