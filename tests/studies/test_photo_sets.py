"""Photograph sets: what is read, one line for what is missing or wrong, superclasses of WordNet."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies.hypernyms import ancestors
from studies.photo_sets import masks_of, present, read_ilsvrc, read_msrc, superclasses

from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.imagenet import ClassNames


def test_masked_photographs(photographs: Path) -> None:
    data = read_msrc(photographs / "msrc")
    assert (data.names, data.codes, len(data.photos)) == (("red", "green", "blue"), (1, 2, 3), 20)
    photo = next(one for one in data.photos if one.path.stem == "0")
    assert photo.shares[0] == pytest.approx(22 * 20 / 2400)
    assert sorted(present(photo)) == [0, 1]
    masks = masks_of(photo.mask, (1, 2), (56, 84))
    assert masks.shape == (2, 56, 84)
    assert masks.mean((1, 2)) == pytest.approx([photo.shares[0], photo.shares[1]], abs=0.02)
    assert not (masks[0] & masks[1]).any()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda f: shutil.rmtree(f / "masks"), UsageError, "holds no masks (masks); put there MSRC v2"),
        (lambda f: (f / "classes.json").unlink(), UsageError, "holds no names of the classes (classes.json)"),
        (lambda f: (f / "masks" / "3.png").unlink(), DataError, "3.jpg has no mask"),
        (lambda f: (f / "classes.json").write_text("[]"), DataError, "wanted a class's name for each number"),
        (
            lambda f: Image.fromarray(np.full((40, 60), 9, np.uint8)).save(f / "masks" / "3.png"),
            DataError, "3.png: class 9 is none of",
        ),
        (lambda f: (f / "masks" / "3.png").write_bytes(b"none"), DataError, "is no mask that can be read"),
        (
            lambda f: Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(f / "masks" / "3.png"),
            DataError, "a mask has one number a pixel",
        ),
        (
            lambda f: Image.fromarray(np.ones((60, 40), np.uint8)).save(f / "masks" / "3.png"),
            DataError, "3.png: is 40 × 60 pixels and 3.jpg 60 × 40",
        ),
        (lambda f: (f / "images" / "3.jpg").write_bytes(b"none"), DataError, "3.jpg: is no photograph"),
    ],
)  # fmt: skip
def test_a_spoiled_masked_set_is_one_line(
    photographs: Path, tmp_path: Path, spoil: object, error: type[LidcXaiError], words: str
) -> None:
    folder = tmp_path / "msrc"
    shutil.copytree(photographs / "msrc", folder)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(error) as raised:
        read_msrc(folder)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("file,label,n_real\n0.JPEG,1000,1\n", DataError, "line 2: 0.JPEG has label 1000; wanted 0 to 999"),
        ("file,label,n_real\n0.JPEG,-1,1\n", DataError, "has label -1"),
        ("file,label,n_real\n0.JPEG,3.7,1\n", DataError, "wanted the columns file, label (0 to 999)"),
        ("file,label,n_real\n0.JPEG,,1\n", DataError, "wanted the columns file, label (0 to 999)"),
        ("file,label,n_real\nabsent.JPEG,3,1\n", DataError, "absent.JPEG of labels.csv is not there"),
        ("file,label,n_real\n", DataError, "labels.csv: names no photograph"),
        ("file,label\n0.JPEG,3\n", DataError, "wanted the columns file, label"),
        (None, UsageError, "holds no labels.csv; put there ImageNet's validation images"),
    ],
)
def test_spoiled_labels_are_one_line(
    photographs: Path, tmp_path: Path, text: str | None, error: type[LidcXaiError], words: str
) -> None:
    folder = tmp_path / "ilsvrc_val"
    shutil.copytree(photographs / "ilsvrc_val", folder)
    if text is None:
        (folder / "labels.csv").unlink()
    else:
        (folder / "labels.csv").write_text(text)
    with pytest.raises(error) as raised:
        read_ilsvrc(folder)
    assert words in str(raised.value)


def test_labels(photographs: Path) -> None:
    photos = read_ilsvrc(photographs / "ilsvrc_val")
    assert len(photos) == 30
    assert [(one.label, one.real) for one in photos[:3]] == [(207, 0), (281, 1), (207, 2)]


def test_superclasses_are_whole_enough_and_apart() -> None:
    names = ClassNames.of_imagenet(1000)
    assert names is not None
    assert names.synsets is not None
    places = [names.synsets[k % 1000] for k in range(0, 3000, 3)]
    groups = superclasses(places, least=15)
    every = [place for own in groups.values() for place in own]
    assert len(every) == len(set(every)) <= len(places)
    assert min(map(len, groups.values())) >= 15
    for synset, own in groups.items():
        assert all(synset in ancestors(places[place]) for place in own)
    alone = superclasses(["n02099601"] * 15 + ["n02123045"] * 3)
    assert alone == {"n02099601": list(range(15))}
