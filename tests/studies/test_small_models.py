"""The small models: known by name everywhere, trained from a seed, kept with what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from studies.made_photos import CLASSES, MadePhotos, make_photos
from studies.small_models import SMALL_MODELS, train_small

from lidc_xai.errors import DataError, UsageError
from lidc_xai.explain import explain, list_methods
from lidc_xai.imagenet.classifier import load_classifier
from lidc_xai.imagenet.photographs import read_photo


def test_learns_what_it_sees(made: MadePhotos, tmp_path: Path) -> None:
    """24 images, by heart."""
    file = tmp_path / "vgg.safetensors"
    train_small("made_vgg", made, file, epochs=30)
    found = load_classifier("made_vgg", file)
    images = [(read_photo(path, found.spec).tensor, label) for path, label in made.singles("train")]
    with torch.no_grad():
        right = [int(found.model(image).argmax()) == label for image, label in images]
    assert sum(right) > 0.5 * len(right)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_kept_with_what_it_was_trained_on(name: str, made: MadePhotos, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.safetensors"
    accuracy = train_small(name, made, file, epochs=1)
    assert json.loads(file.with_suffix(".json").read_text())["accuracy"] == accuracy
    before = file.read_bytes()
    assert train_small(name, made, file, epochs=1) == accuracy
    assert file.read_bytes() == before
    with pytest.raises(UsageError, match="trained with other options"):
        train_small(name, made, file, epochs=2)
    found = load_classifier(name, file, labels=made.classes_file)
    assert (found.count, found.label(0), found.spec.size) == (len(CLASSES), CLASSES[0], (64, 64))


def test_same_seed_same_weights(made: MadePhotos, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    state = torch.random.get_rng_state()
    for file, seed in zip(files, (0, 0, 1), strict=True):
        train_small("made_vgg", made, file, epochs=1, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_methods_that_the_studies_need() -> None:
    vit, vgg = (load_classifier(name, "random").model for name in SMALL_MODELS)
    assert {"reciprocam", "relevance_propagation", "gradient_rollout", "cdam"} <= set(list_methods(vit))
    assert {"gradcam", "gradcam_plus_plus", "rsi_gradcam", "fullgrad", "xgradcam"} <= set(list_methods(vgg))
    assert explain(vgg, torch.rand(1, 3, 64, 64), 0, "gradcam").relevance.shape[-2:] == (16, 16)


def test_what_cannot_be_trained(made: MadePhotos, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made_vit, made_vgg"):
        train_small("resnet50", made, tmp_path / "x.safetensors")
    large = make_photos(tmp_path / "large", train=1, val=1, pairs=1, size=32)
    with pytest.raises(DataError, match="want images of 64 px, got 32"):
        train_small("made_vgg", large, tmp_path / "x.safetensors", epochs=1)
    with pytest.raises(UsageError, match="no published weights"):
        load_classifier("made_vgg", "pretrained")
