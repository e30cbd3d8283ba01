"""A linear classifier on a frozen backbone: how much of the classes the backbone's features tell.

    logits = W l(x) + b,      l(x) the vector that the head reads; W and b alone are learned, by cross entropy

The defaults are the CDAM paper's: random resized crop, flip, Adam at 3e-4, 128 images a step, 10 epochs. Without
augmentation the features of the training images are computed once and kept, as those of the test images always are.
``standardise`` then learns on (l − μ) / σ of the training features, which converges where features differ little, and
sets W ← W / σ, b ← b − W μ / σ afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.files import atomic_path, remove_half_written
from lidc_xai.imagenet.classifier import input_spec
from lidc_xai.imagenet.photographs import InputSpec
from lidc_xai.models.nodule_model import build_backbone
from lidc_xai.models.weights import load_weights
from studies.epochs import EpochOptions, train_epochs
from studies.features import cached_features, features_of, in_batches, read_features
from studies.image_sets import ImageSet
from studies.photo_batches import LabelledPhotos, batches
from studies.trained_classifier import TrainedClassifier, fingerprint_of, write_classifier


@dataclass(frozen=True)
class FrozenBackbone:
    """A timm network without classifier, and what its weights and inputs are."""

    name: str
    network: Any
    origin: dict[str, Any]
    spec: InputSpec


def train_probe(
    backbone: str,
    weights: str | Path,
    images: ImageSet,
    out: Path | str,
    options: EpochOptions | None = None,
    *,
    size: int | None = None,
    device: str = "cpu",
) -> TrainedClassifier:
    """Train the linear classifier and write the whole network to ``out`` (see ``trained_classifier``).

    ``backbone``: of ``list_backbones()`` or any timm name; ``weights``: "pretrained", a file, or "random". The same
    command goes on where a killed one stopped. Raises ``UsageError`` for a wrong name or another run's folder,
    ``ModelError`` for weights of another model.
    """
    options = options or EpochOptions()
    folder = Path(out)
    remove_half_written(folder)
    frozen = load_backbone(backbone, weights, size=size, seed=options.seed)
    frozen.network.to(device)
    of = fingerprint_of(frozen.origin, backbone, frozen.spec)
    kept: dict[str, Any] = {"of": of, "batch": options.batch, "workers": options.workers, "device": device}
    test = cached_features(
        frozen.network, LabelledPhotos(images.test, frozen.spec), folder / "features", "test", **kept
    )
    plain = None
    if not options.augment:
        photos = LabelledPhotos(images.train, frozen.spec)
        plain = cached_features(frozen.network, photos, folder / "features", "train", **kept)

    if options.standardise and plain is None:
        raise UsageError("standardise needs the features of all training images: set augment to false with it")
    mean, scale = _moments(plain[0]) if plain is not None and options.standardise else (0.0, 1.0)
    test_batches = in_batches((test[0] - mean) / scale, test[1], 4096)
    if plain is not None:
        plain = ((plain[0] - mean) / scale, plain[1])

    def epoch_of(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        if plain is not None:
            return in_batches(*plain, options.batch, seed=options.seed * 1_000_003 + epoch)
        photos = LabelledPhotos(
            images.train, frozen.spec, smallest_crop=options.smallest_crop, seed=options.seed, epoch=epoch
        )
        found = batches(photos, options.batch, shuffle=True, workers=options.workers)
        return ((features_of(frozen.network, some.to(device)), labels) for some, labels in found)

    head = _new_head(test[0].shape[1], len(images.names), options.seed)
    record = train_epochs(
        head, options, folder, fingerprint_of(of, options, images.train, images.names),
        epoch_of, lambda: test_batches, steps=-(-len(images.train) // options.batch), device=device,
    )  # fmt: skip
    head = _folded(head.cpu(), mean, scale)
    with atomic_path(folder / "head.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, temporary)
    network = with_classifier(frozen.network, head, backbone)
    about = {"model": f"timm:{backbone}", "kind": "linear probe", "backbone_weights": frozen.origin, "size": size}
    return write_classifier(folder, network.cpu(), about, images, record, options)


def load_backbone(name: str, weights: str | Path, *, size: int | None = None, seed: int = 0) -> FrozenBackbone:
    """A backbone in evaluation mode whose parameters do not learn."""
    if str(weights) not in ("pretrained", "random") and not Path(weights).exists():
        raise UsageError(f"{weights}: no such weights file; give a file, 'pretrained' or 'random'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_backbone(name, size=size)
    origin: dict[str, Any] = {"source": "random", "seed": seed}
    if str(weights) != "random":
        origin = load_weights(network, weights, name)
    network.eval().requires_grad_(False)
    return FrozenBackbone(name, network, origin, input_spec("timm", name, network, size))


def with_classifier(network: Any, head: nn.Linear, name: str) -> nn.Module:
    """The timm network with ``head`` as its classifier (both heads of a distilled one)."""
    network.reset_classifier(head.out_features)
    classifiers = network.get_classifier()
    for own in classifiers if isinstance(classifiers, tuple) else (classifiers,):
        if not isinstance(own, nn.Linear) or own.weight.shape != head.weight.shape:
            raise UsageError(f"backbone {name!r} has no linear classifier on the vector that is read")
        own.load_state_dict(head.state_dict())
    done: nn.Module = network
    return done.eval()


def predictions(folder: Path | str) -> NDArray[np.intp]:
    """(n,) most probable class of each test image by the probe in ``folder``, after its last epoch."""
    head = load_file(Path(folder) / "head.safetensors")
    logits = read_features(Path(folder) / "features", "test") @ head["weight"].T + head["bias"]
    return np.asarray(logits.argmax(-1).numpy())


def logistic_regression(folder: Path | str, images: ImageSet, options: EpochOptions) -> NDArray[np.intp]:
    """(n,) classes of the test images by scikit-learn's logistic regression on the features of a probe that was trained
    with ``options`` (without augmentation): the same penalty (1e-7 where it has none), standardised where it was."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = (read_features(Path(folder) / "features", part).numpy() for part in ("train", "test"))
    inverse = 1 / (len(train) * max(options.weight_decay, 1e-7))
    plain = LogisticRegression(C=inverse, max_iter=5000)
    model = make_pipeline(StandardScaler(), plain) if options.standardise else plain
    return np.asarray(model.fit(train, [label for _, label in images.train]).predict(test))


def _new_head(width: int, classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(width, classes)
    nn.init.zeros_(head.bias)
    return head


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of (n, D) features; 1 where a feature does not vary."""
    scale = features.std(0, correction=0)
    return features.mean(0), torch.where(scale > 1e-8, scale, torch.ones_like(scale))


def _folded(head: nn.Linear, mean: Tensor | float, scale: Tensor | float) -> nn.Linear:
    """The layer that reads plain features as ``head`` reads standardised ones."""
    with torch.no_grad():
        head.weight.div_(scale)
        head.bias.sub_((head.weight * mean).sum(1))
    return head
