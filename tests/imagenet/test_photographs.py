"""What a classifier sees of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet.photographs import InputSpec, find_photos, read_photo
from lidc_xai.reporting.pdf import load_weasyprint

SPEC = InputSpec((64, 64), 72, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), "bilinear")


def test_the_centre_is_cut_and_normalised(photo: Path) -> None:
    found = read_photo(photo, SPEC)
    side = 160 * 64 / 72
    assert found.box == pytest.approx(((240 - side) / 2, (160 - side) / 2, (240 + side) / 2, (160 + side) / 2))
    assert found.full == (240, 160)
    assert found.pixels.shape == (64, 64, 3)
    left, right = found.tensor[0, :, 32, 4], found.tensor[0, :, 32, 60]
    red, zero = (200 / 255 - 0.5) / 0.2, torch.tensor([-2.5, -1.6, -0.6])
    torch.testing.assert_close(left, torch.tensor([red, -1.6, -0.6]))
    torch.testing.assert_close(right, torch.tensor([-2.5, -1.6, (200 / 255 - 0.3) / 0.5]))
    assert zero[1] == right[1]


def test_cropping_is_what_timm_evaluates_with(tmp_path: Path) -> None:
    from timm.data import create_transform

    noise = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((180, 240), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "noise.png")
    theirs = create_transform(
        (3, 64, 64), mean=SPEC.mean, std=SPEC.std, interpolation="bilinear", crop_pct=64 / 72, is_training=False
    )(smooth)
    ours = read_photo(tmp_path / "noise.png", SPEC).tensor[0]
    assert (ours - theirs).abs().mean() < 0.06  # it rounds to whole pixels twice
    assert (ours - theirs.flip(2)).abs().mean() > 0.3


def test_the_whole_photograph_may_be_stretched(photo: Path) -> None:
    found = read_photo(photo, SPEC, "whole")
    assert found.box == (0, 0, 240, 160)
    assert found.pixels[:, :31, 0].min() > 190
    with pytest.raises(UsageError, match="fit is one of crop, whole, not 'fill'"):
        read_photo(photo, SPEC, "fill")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode in ("I;16", "CMYK") else "picture.png")
    Image.new(mode, (80, 70)).save(path)
    assert read_photo(path, SPEC).tensor.shape == (1, 3, 64, 64)


def test_a_turned_photograph_is_put_upright(photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    with Image.open(photo) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to see it upright
        turned.save(path, quality=95, exif=exif)
    found = read_photo(path, SPEC)
    assert found.full == (240, 160)
    assert found.pixels[32, 4, 0] > 150
    assert found.pixels[32, 60, 2] > 150


def test_what_is_no_picture_says_so(tmp_path: Path, photo: Path) -> None:
    load_weasyprint()  # which lets a whole process read half of a picture
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"text.png: is no picture that can be read"):
        read_photo(tmp_path / "text.png", SPEC)
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:300])
    with pytest.raises(DataError, match=r"half.png: is no picture that can be read"):
        read_photo(tmp_path / "half.png", SPEC)


def test_folders_are_searched(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", "more/c.webp"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_photos([photo, tmp_path, photo])] == ["halves.png", "a.jpg", "b.PNG", "c.webp"]
    with pytest.raises(UsageError, match="no such picture or folder"):
        find_photos([tmp_path / "absent.png"])
    with pytest.raises(UsageError, match="no picture was given"):
        find_photos([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="this folder holds no picture"):
        find_photos([tmp_path / "empty"])
