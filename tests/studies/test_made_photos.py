"""Made photographs: what is shown where is known, the seed decides everything, nobody's folder is overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies.folder import read_image_folder
from studies.made_photos import CLASSES, MadePhotos, make_photo, make_photos, read_made_photos

from lidc_xai.errors import UsageError
from lidc_xai.imagenet.class_names import ClassNames


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_the_mask_is_where_the_colour_is(label: int) -> None:
    """Backgrounds are nearly grey and objects are coloured: saturation tells them apart."""
    photo = make_photo([label], np.random.default_rng(3))
    mask, pixels = photo.masks[0], photo.pixels.astype(float)
    saturation = 1 - pixels.min(-1) / np.maximum(pixels.max(-1), 1)
    assert 0.02 < mask.mean() < 0.2
    assert np.quantile(saturation[mask], 0.2) > np.quantile(saturation[~mask], 0.9)


def test_two_objects_do_not_touch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        photo = make_photo([0, 3], rng)
        assert not (photo.masks[0] & photo.masks[1]).any()
        assert min(mask.sum() for mask in photo.masks) > 100


def test_classes_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="one to three of classes 0 to 5"):
        make_photo([6], np.random.default_rng(0))


def test_folder(made: MadePhotos) -> None:
    assert len(made.singles("train")) == 6 * made.about["train"]
    for path, classes in made.pairs():
        assert len(set(classes)) == 2
        with Image.open(path) as opened:
            assert opened.size == (64, 64)
        assert all(made.mask(path, label).any() for label in classes)


def test_is_read_as_a_folder_of_images(made: MadePhotos) -> None:
    names = ClassNames.from_file(made.classes_file, len(CLASSES))
    singles = read_image_folder(made.folder / "train", classes=names)
    assert {(image.path, image.label) for image in singles.images} == set(made.singles("train"))
    flat = read_image_folder(made.folder / "pairs", classes=names)
    assert [(image.path, image.label) for image in flat.images] == [(path, pair[0]) for path, pair in made.pairs()]


def test_same_seed_same_bytes_other_options_refused(made: MadePhotos, tmp_path: Path) -> None:
    options = {name: made.about[name] for name in ("train", "val", "pairs", "seed")}
    again = make_photos(tmp_path / "again", **options)
    path, other = made.pairs()[-1][0], again.pairs()[-1][0]
    assert path.read_bytes() == other.read_bytes()
    before = other.stat().st_mtime_ns
    assert make_photos(tmp_path / "again", **options).pairs()[-1][0].stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other options"):
        make_photos(tmp_path / "again", **{**options, "seed": 9})


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds other files"):
        make_photos(tmp_path, train=1, val=1, pairs=1)
    with pytest.raises(UsageError, match="no folder of made photographs"):
        read_made_photos(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
