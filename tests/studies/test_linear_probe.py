"""Linear probe and fine-tuning: as accurate as logistic regression, resumable to the same weights, refusals."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from studies.epochs import EpochOptions, accuracy, train_epochs
from studies.features import in_batches
from studies.finetuning import finetune
from studies.image_sets import ImageSet, read_image_set
from studies.linear_probe import logistic_regression, predictions, train_probe
from studies.photo_batches import LabelledPhotos, batches

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.imagenet import load_classifier, read_photo
from lidc_xai.imagenet.photographs import InputSpec

COLOURS = ((120, 90, 90), (90, 120, 90), (90, 90, 120), (110, 110, 80))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Four classes of coloured noise whose colours overlap, so that no classifier is right everywhere."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("val", 60)):
        for label, colour in enumerate(COLOURS):
            folder = root / part / f"class_{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                own = np.array(colour) + rng.normal(0, 14, 3)
                pixels = np.clip(own + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return read_image_set(root)


OPTIONS = EpochOptions(
    augment=False, standardise=True, epochs=150, learning_rate=3e-2, weight_decay=1e-3, schedule="cosine", batch=240
)  # fmt: skip


@pytest.fixture(scope="module")
def probe(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe")
    train_probe("test_vit", "random", images, out, OPTIONS)
    return out


def test_the_probe_is_as_accurate_as_logistic_regression_on_its_features(images: ImageSet, probe: Path) -> None:
    ours = predictions(probe) == images.test_labels
    theirs = logistic_regression(probe, images, OPTIONS) == images.test_labels
    assert 0.5 < theirs.mean() < 0.97  # neither noise nor a task that everything solves
    assert abs(ours.mean() - theirs.mean()) <= 0.01
    assert json.loads((probe / "training.json").read_text())["accuracy"] == pytest.approx(ours.mean())


def test_what_is_written_is_a_classifier_for_every_other_command(images: ImageSet, probe: Path) -> None:
    found = load_classifier("test_vit", probe / "weights.safetensors", labels=probe / "classes.txt")
    assert found.count == 4
    assert found.label(2) == "class 2"
    with torch.no_grad():
        own = [int(found.model(read_photo(path, found.spec).tensor).argmax()) for path, _ in images.test[:12]]
    assert own == predictions(probe)[:12].tolist()


def test_a_killed_probe_goes_on_to_the_same_weights(images: ImageSet, tmp_path: Path) -> None:
    few = ImageSet(images.kind, images.train[::12], images.test[::12], images.names, ())
    options = EpochOptions(epochs=3, batch=8)  # augmented: the images of every epoch depend on seed and epoch alone
    whole = train_probe("test_vit", "random", few, tmp_path / "whole", options)
    shorter = options.model_copy(update={"epochs": 2})
    train_probe("test_vit", "random", few, tmp_path / "killed", shorter)
    with pytest.raises(UsageError, match="holds a run with another fingerprint"):
        train_probe("test_vit", "random", few, tmp_path / "killed", options)
    # as if the shorter run were the longer one, killed after two epochs
    shutil.copy(tmp_path / "whole" / "training_run.json", tmp_path / "killed")
    resumed = train_probe("test_vit", "random", few, tmp_path / "killed", options)
    assert resumed.record == whole.record
    a, b = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "whole", tmp_path / "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_features_of_another_backbone_are_refused(images: ImageSet, probe: Path) -> None:
    with pytest.raises(UsageError, match="features of another backbone or of other images"):
        train_probe("test_vit", "random", images, probe, OPTIONS.model_copy(update={"seed": 1}))


def test_weights_of_another_model_are_one_line(images: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(ModelError, match="holds no known first layer"):
        train_probe("test_vit", file, images, tmp_path / "a", OPTIONS)
    with pytest.raises(ModelError, match="another architecture"):
        finetune("torchvision:squeezenet1_0", file, images, tmp_path / "b")
    with pytest.raises(UsageError, match="no such weights file"):
        train_probe("test_vit", tmp_path / "absent.pth", images, tmp_path / "c", OPTIONS)
    with pytest.raises(UsageError, match="no linear layer"):
        finetune("torchvision:squeezenet1_0", "random", images, tmp_path / "d")


@pytest.mark.parametrize("name", ["test_vit", "torchvision:mobilenet_v3_small"])
def test_fine_tuning_learns_with_timm_and_with_torchvision(name: str, images: ImageSet, tmp_path: Path) -> None:
    few = ImageSet(images.kind, images.train[::6], images.test[::12], images.names, ())
    options = EpochOptions(epochs=2, batch=20, smallest_crop=0.5, learning_rate=1e-3)
    done = finetune(
        name, "random", few, tmp_path, options, size=64 if name == "torchvision:mobilenet_v3_small" else None
    )
    assert done.record[-1]["loss"] < done.record[0]["loss"]
    found = load_classifier(name, done.weights, labels=done.classes)
    assert found.count == 4
    assert not found.random
    again = finetune(
        name, "random", few, tmp_path, options, size=64 if name == "torchvision:mobilenet_v3_small" else None
    )
    assert again.record == done.record  # nothing is trained twice


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    rows = in_batches(torch.full((4, 2), torch.inf), torch.zeros(4, dtype=torch.long), 2)
    with pytest.raises(DataError, match="the loss of epoch 1 is nan"):
        train_epochs(module, EpochOptions(), tmp_path, "x", lambda _: rows, lambda: rows, steps=2)


def test_sgd_momentum_is_kept_between_epochs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 3, generator=generator), torch.arange(40) % 2

    def train(epochs: int, folder: Path) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        options = EpochOptions(epochs=epochs, optimiser="sgd", learning_rate=0.1)
        train_epochs(
            module, options, folder, "x", lambda epoch: in_batches(features, labels, 8, seed=epoch),
            lambda: in_batches(features, labels, 40), steps=5,
        )  # fmt: skip
        assert 0 <= accuracy(module, in_batches(features, labels, 40)) <= 1
        return module.weight.detach().clone()

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "killed")
    assert torch.equal(train(4, tmp_path / "killed"), whole)


def test_an_image_looks_different_in_every_epoch_and_alike_for_one_seed(images: ImageSet) -> None:
    spec = InputSpec((32, 32), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear")

    def image(**given: int) -> torch.Tensor:
        return LabelledPhotos(images.train[:3], spec, smallest_crop=0.2, **given)[1][0]

    assert torch.equal(image(epoch=1), image(epoch=1))
    assert not torch.equal(image(epoch=1), image(epoch=2))
    assert not torch.equal(image(seed=1), image(seed=2))
    order = [
        labels.tolist() for _, labels in batches(LabelledPhotos(images.train[::9], spec, epoch=1), 4, shuffle=True)
    ]
    other = [
        labels.tolist() for _, labels in batches(LabelledPhotos(images.train[::9], spec, epoch=2), 4, shuffle=True)
    ]
    assert sorted(chain(*order)) == sorted(chain(*other))
    assert order != other


def test_a_broken_image_is_named(images: ImageSet, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    few = ImageSet("classes", ((broken, 0), *images.train[:2]), images.test[:2], images.names, ())
    with pytest.raises(DataError, match=r"broken\.png: is no picture"):
        train_probe("test_vit", "random", few, tmp_path / "out", EpochOptions(epochs=1))


def test_standardised_features_need_all_of_them_at_hand(images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set augment to false"):
        train_probe("test_vit", "random", images, tmp_path, EpochOptions(standardise=True))
