"""Fine-tune any classifier of timm or torchvision on an image set: every weight learns, the last layer anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.files import remove_half_written
from lidc_xai.imagenet.classifier import find_architecture, load_classifier
from lidc_xai.imagenet.photographs import InputSpec
from lidc_xai.models.backbones import BACKBONES
from studies.epochs import EpochOptions, train_epochs
from studies.image_sets import ImageSet
from studies.linear_probe import load_backbone
from studies.photo_batches import LabelledPhotos, batches
from studies.trained_classifier import TrainedClassifier, fingerprint_of, write_classifier


def finetune(
    model: str,
    weights: str | Path,
    images: ImageSet,
    out: Path | str,
    options: EpochOptions | None = None,
    *,
    size: int | None = None,
    device: str = "cpu",
) -> TrainedClassifier:
    """Train and write the classifier to ``out`` (see ``trained_classifier``); a killed run goes on.

    ``model``: a timm or torchvision name; ``weights``: "pretrained", a file (its classifier is dropped), or "random".
    Raises ``UsageError`` for a wrong name or another run's folder, ``ModelError`` for weights of another model.
    """
    options = options or EpochOptions()
    folder = Path(out)
    remove_half_written(folder)
    network, origin, spec = start_from(model, weights, len(images.names), size=size, seed=options.seed)

    def train(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        smallest = options.smallest_crop if options.augment else None
        photos = LabelledPhotos(images.train, spec, smallest_crop=smallest, seed=options.seed, epoch=epoch)
        return batches(photos, options.batch, shuffle=True, workers=options.workers)

    def test() -> Iterable[tuple[Tensor, Tensor]]:
        return batches(LabelledPhotos(images.test, spec), options.batch, workers=options.workers)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        record = train_epochs(
            network, options, folder, fingerprint_of(model, origin, size, options, images.train, images.names),
            train, test, steps=-(-len(images.train) // options.batch), device=device,
        )  # fmt: skip
    library, short = find_architecture(model)
    about = {"model": f"{library}:{short}", "kind": "fine-tuned", "start": origin, "size": size}
    return write_classifier(folder, network.cpu(), about, images, record, options)


def start_from(
    model: str, weights: str | Path, count: int, *, size: int | None = None, seed: int = 0
) -> tuple[nn.Module, dict[str, Any], InputSpec]:
    """The network with a new last layer of ``count`` classes, where its weights come from, and its inputs."""
    library, short = find_architecture(model)
    network: Any
    if library == "timm" and short in BACKBONES and BACKBONES[short].kind == "vit":
        frozen = load_backbone(short, weights, size=size, seed=seed)
        network, origin, spec = frozen.network.requires_grad_(True), frozen.origin, frozen.spec
    else:
        classifier = load_classifier(model, weights, size=size, seed=seed)
        network, origin, spec = classifier.model, classifier.weights, classifier.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(network, "reset_classifier"):
            network.reset_classifier(count)
        else:
            _replace_last_linear(network, count, model)
    return network, dict(origin), spec


def _replace_last_linear(network: nn.Module, count: int, name: str) -> None:
    linear = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(f"model {name!r} has no linear layer at its end that could be replaced; choose another")
    parent, _, last = linear[-1].rpartition(".")
    old: Any = network.get_submodule(linear[-1])
    setattr(network.get_submodule(parent), last, nn.Linear(old.in_features, count))
