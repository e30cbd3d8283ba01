"""Arms on real photographs: two networks, their heads fitted here on features that are computed once and kept.

masked(model)         MSRC's test photographs with two classes that are both there and predicted; head of 21 classes
superclasses(model)   ImageNet's validation images in WordNet's superclasses, each with a head that did not see it
distilled(model)      the same images with 1000 classes learned from EfficientNet-Lite0's probabilities
thousand()            the same images with EfficientNet-Lite0's own classifier
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.classifier import Classifier, load_classifier
from studies.features import cached_features
from studies.linear_probe import FrozenBackbone, load_backbone, with_classifier
from studies.photo_batches import LabelledPhotos
from studies.photo_heads import (
    Floats,
    Folded,
    Head,
    cross_fitted,
    distilled,
    kept_heads,
    mean_precision,
    multi_label_head,
    scores_of,
    split,
)
from studies.photo_sets import MaskedSet, present, read_ilsvrc, read_msrc, superclasses
from studies.study_arms import CNN, VIT, Arm, StudyImage, find_weights, what_to_bring
from studies.study_sets import X_MULTI, X_VAL
from studies.study_table import Row
from studies.trained_classifier import fingerprint_of

TRAIN = 350
"""Photographs of MSRC that heads are fitted on; the others are measured."""
FOLDS = 5
_BATCH = 16
_PAIR = 2


class PhotoArms:
    """Photographs under ``folder``, weights as the command line has them, features kept under ``kept``.

    ``size``: side of the photographs for a ViT, a multiple of its patch. ``rows``: how good the heads are.
    """

    def __init__(
        self, folder: Path, weights: Sequence[str], kept: Path, *, size: int = 112, seed: int = 0, device: str = "cpu"
    ) -> None:
        self.folder, self.given, self.kept = folder, list(weights), kept
        self.size, self.seed, self.device = size, seed, device
        self.rows: list[Row] = []
        self.backbone = cache(self._backbone)

    def check(self) -> None:
        """Read both sets now, so that what is wrong with them is told before hours of work."""
        _ = self.msrc, self.ilsvrc

    def has(self, model: str) -> bool:
        """Whether the model's weights were given."""
        return find_weights(model, self.given) is not None

    @cached_property
    def msrc(self) -> MaskedSet:
        return read_msrc(self.folder / "msrc")

    @cached_property
    def parts(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places of MSRC's photographs to learn from, and to measure on."""
        count = len(self.msrc.photos)
        return split(count, min(TRAIN, round(0.6 * count)), self.seed)

    @cached_property
    def ilsvrc(self) -> tuple[StudyImage, ...]:
        """ImageNet's images in an order drawn by the seed."""
        photos = read_ilsvrc(self.folder / "ilsvrc_val")
        order = np.random.default_rng(self.seed).permutation(len(photos))
        chosen = [photos[k] for k in order]
        return tuple(StudyImage(one.path.name, one.path, one.label, (one.label,), real=one.real) for one in chosen)

    def masked(self, model: str) -> Arm:
        """X_multi: the two largest classes of each photograph that are there and predicted."""
        backbone, data = self.backbone(model), self.msrc
        features = self._features(model, [(one.path, 0) for one in data.photos], "msrc")
        shown = np.array([[share >= 0.01 for share in one.shares.values()] for one in data.photos])
        train, test = self.parts

        def fit() -> Folded:
            return [multi_label_head(features[train], shown[train])], np.zeros(len(data.photos), np.intp)

        heads, folds = self._heads(model, "multi-label", [features[train], shown[train]], fit)
        scores = scores_of(heads, features[test], folds[test])
        precision, chance = mean_precision(scores, shown[test])
        data_name = f"{X_MULTI}: MSRC"
        for method, values in (("multi-label head", precision), ("chance", chance)):
            interval = bootstrap_mean(values[np.isfinite(values)], seed=self.seed)
            note = f"mean over {len(data.names)} classes, learned on {len(train)} photographs, measured on {len(test)}"
            self.rows.append(Row.of(data_name, self._title(model), method, "average precision", interval, note=note))
        images, draws = [], np.random.default_rng(self.seed)
        for k, own in zip(test, scores, strict=True):
            photo = data.photos[k]
            both = [c for c in present(photo) if own[c] > 0][:_PAIR]
            if len(both) == _PAIR:
                pair = tuple(both[c] for c in draws.permutation(_PAIR))  # the asked class is not always the larger one
                codes = tuple(data.codes[c] for c in pair)
                images.append(StudyImage(photo.path.name, photo.path, pair[0], pair, photo.mask, codes))
        order = np.random.default_rng(self.seed).permutation(len(images))
        chosen = tuple(images[k] for k in order)
        differs = f"model: {self._title(model)}; images: MSRC photographs with two classes"
        return self._arm(data_name, backbone, heads, data.names, chosen, X_MULTI, differs)

    def learned_from(self, label: int) -> list[Path]:
        """MSRC's training photographs that show a class, those that it fills most first."""
        own = [self.msrc.photos[k] for k in self.parts[0] if label in present(self.msrc.photos[k])]
        return [photo.path for photo in sorted(own, key=lambda photo: -photo.shares[label])]

    def superclasses(self, model: str) -> Arm:
        """X_val: images of WordNet's superclasses with 15 images or more."""
        backbone = self.backbone(model)
        synsets = _imagenet().synsets
        assert synsets is not None
        groups = superclasses([synsets[image.label or 0] for image in self.ilsvrc])
        names = tuple(self._name_of(synset, places) for synset, places in groups.items())
        label_of = {place: k for k, places in enumerate(groups.values()) for place in places}
        places = sorted(label_of)
        labels = np.array([label_of[place] for place in places])
        features = self._features(model, [(image.path, 0) for image in self.ilsvrc], "ilsvrc")[places]
        heads, folds = self._heads(
            model, "superclasses", [features, labels], lambda: cross_fitted(features, labels, FOLDS, self.seed)
        )
        scores = scores_of(heads, features, folds)
        data_name = f"{X_VAL}: superclasses"
        right = (scores.argmax(1) == labels).astype(float)
        largest = np.bincount(labels).max() / len(labels)
        note = f"{len(labels)} of {len(self.ilsvrc)} images, {len(names)} WordNet superclasses, {FOLDS} folds"
        interval = bootstrap_mean(right, seed=self.seed)
        self.rows.append(Row.of(data_name, self._title(model), "cross-fitted head", "accuracy", interval, note=note))
        chance = Row(data_name, self._title(model), "chance", "accuracy", largest, n=len(labels), note="largest class")
        self.rows.append(chance)
        chosen = tuple(
            StudyImage(image.name, image.path, int(label), (int(label),), fold=int(fold), real=image.real)
            for image, label, fold in zip((self.ilsvrc[p] for p in places), labels, folds, strict=True)
        )
        differs = (
            f"model: {self._title(model)}; images and classes: {len(names)} superclasses of ILSVRC validation images"
        )
        arm = self._arm(data_name, backbone, heads, names, chosen, X_VAL, differs)
        return replace(arm, logits=_by_name(chosen, scores))

    def distilled(self, model: str) -> Arm:
        """The same images with 1000 classes that ``model``'s head learned from EfficientNet-Lite0."""
        backbone = self.backbone(model)
        examples = [(image.path, 0) for image in self.ilsvrc]
        teacher = self._teacher(examples)
        features = self._features(model, examples, "ilsvrc")
        heads, folds = self._heads(
            model, "distilled", [features, teacher], lambda: distilled(features, teacher, FOLDS, self.seed)
        )
        scores = scores_of(heads, features, folds)
        data_name = f"{X_VAL}: distilled classes"
        agrees = (scores.argmax(1) == teacher.argmax(1)).astype(float)
        note = "with its teacher EfficientNet-Lite0, by heads that did not see the image: no accuracy"
        interval = bootstrap_mean(agrees, seed=self.seed)
        self.rows.append(Row.of(data_name, self._title(model), "distilled head", "agreement", interval, note=note))
        chosen = tuple(
            StudyImage(image.name, image.path, image.label, image.classes, fold=int(fold), real=image.real)
            for image, fold in zip(self.ilsvrc, folds, strict=True)
        )
        differs = f"model: {self._title(model)} with classes distilled from EfficientNet-Lite0"
        names = _imagenet().names
        arm = self._arm(data_name, backbone, heads, names, chosen, "ImageNet validation", differs)
        return replace(arm, logits=_by_name(chosen, scores))

    def thousand(self) -> Arm:
        """ImageNet's images with EfficientNet-Lite0's own classifier."""
        classifier = load_classifier(CNN, str(find_weights(CNN, self.given)))
        classifier.model.to(self.device)
        data_name = "ILSVRC"
        scores = self._teacher([(image.path, 0) for image in self.ilsvrc])
        right = (scores.argmax(1) == np.array([image.label for image in self.ilsvrc])).astype(float)
        interval = bootstrap_mean(right, seed=self.seed)
        note = f"{len(self.ilsvrc)} validation images, easier than the whole set"
        self.rows.append(Row.of(data_name, CNN, "own classifier", "accuracy", interval, note=note))
        differs = "model: EfficientNet-Lite0; images: 1000 of the validation set"
        logits = _by_name(self.ilsvrc, np.log(scores))
        return Arm(data_name, classifier, self.ilsvrc, "ImageNet validation", differs, "whole", logits=logits)

    def _teacher(self, examples: Sequence[tuple[Path, int]]) -> Floats:
        """(n, 1000) probabilities of EfficientNet-Lite0's own classifier."""
        network = load_classifier(CNN, str(find_weights(CNN, self.given))).model
        features = self._features(CNN, examples, "ilsvrc")
        with torch.no_grad():
            logits = network.get_classifier()(torch.from_numpy(features).float())  # type: ignore[operator]
        return np.asarray(logits.double().softmax(1).numpy())

    def _backbone(self, model: str) -> FrozenBackbone:
        weights = find_weights(model, self.given)
        if weights is None:
            raise UsageError(f"{model}: {what_to_bring(model)}")
        if model == VIT:
            return load_backbone(model, weights, size=self.size, seed=self.seed)
        classifier = load_classifier(model, weights)
        network: Any = classifier.model
        network.requires_grad_(False)
        return FrozenBackbone(model, network, classifier.weights, classifier.spec)

    def _features(self, model: str, examples: Sequence[tuple[Path, int]], part: str) -> Floats:
        """(n, D) what the frozen network says of whole photographs; kept."""
        backbone = self.backbone(model)
        network = backbone.network
        if network.num_classes:
            network.reset_classifier(0)
        network.to(self.device)
        photos = LabelledPhotos(examples, backbone.spec, fit="whole")
        of = fingerprint_of(backbone.origin, model, backbone.spec, "whole")
        folder = self.kept / f"{model}-{'x'.join(map(str, backbone.spec.size))}"
        features, _ = cached_features(network, photos, folder, part, of=of, batch=_BATCH, device=self.device)
        return features.double().numpy()

    def _heads(self, model: str, kind: str, learned_from: Sequence[NDArray[Any]], fit: Callable[[], Folded]) -> Folded:
        """Heads that are kept beside the features, under a hash of what they are learned from."""
        digest = hashlib.sha256(f"{kind} {FOLDS} {self.seed}".encode())
        for part in learned_from:
            digest.update(np.ascontiguousarray(part).tobytes())
        side = "x".join(map(str, self.backbone(model).spec.size))
        return kept_heads(self.kept / f"{model}-{side}" / f"{kind}-{digest.hexdigest()[:12]}.safetensors", fit)

    def _arm(
        self, data: str, backbone: FrozenBackbone, heads: Sequence[Head], names: Sequence[str],
        images: tuple[StudyImage, ...], like: str, differs: str,
    ) -> Arm:  # fmt: skip
        """An arm with a network of its own, so that arms of one backbone do not meet each other's heads."""
        own = self._backbone(backbone.name)
        layer = nn.Linear(heads[0][0].shape[1], len(names))
        network = with_classifier(own.network, layer, backbone.name).to(self.device)
        digest = hashlib.sha256()
        for weight, bias in heads:
            digest.update(weight.numpy().tobytes() + bias.numpy().tobytes())
        told = {**own.origin, "heads": digest.hexdigest()[:16], "suffix": self._side(backbone.name)}
        classifier = Classifier(
            f"timm:{backbone.name}", network, own.spec, ClassNames(tuple(names)), len(names), told, random=False
        )
        arm = Arm(data, classifier, images, like, differs, "whole", tuple(heads))
        arm.use(0)
        return arm

    def _title(self, model: str) -> str:
        return model + self._side(model)

    def _side(self, model: str) -> str:
        return f", {self.size} px" if model == VIT else ""

    def _name_of(self, synset: str, places: Sequence[int]) -> str:
        """A superclass is called by its synset and the two classes that have most images in it."""
        labels = [self.ilsvrc[place].label or 0 for place in places]
        common = sorted(set(labels), key=lambda label: (-labels.count(label), label))[:2]
        return f"{synset} ({' / '.join(_imagenet().short(label) for label in common)} …)"


def _by_name(images: Sequence[StudyImage], scores: Floats) -> dict[str, Floats]:
    return {image.name: row for image, row in zip(images, scores, strict=True)}


def _imagenet() -> ClassNames:
    names = ClassNames.of_imagenet(1000)
    assert names is not None
    return names
