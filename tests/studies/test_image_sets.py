"""Image sets as they are published: CUB-200, Food-101, parts, class folders; and lists that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies.image_sets import read_image_set

from lidc_xai.errors import DataError, UsageError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"]
    images = [f"{name}/{name[4:]}_{k}.jpg" for name in names for k in (1, 2)]
    for image in images:
        picture(root / "images" / image)
    (root / "classes.txt").write_text("".join(f"{k} {name}\n" for k, name in zip((1, 2, 10), names, strict=True)))
    (root / "images.txt").write_text("".join(f"{k} {image}\n" for k, image in enumerate(images, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n5 10\n6 10\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n5 1\n6 0\n")
    return root


def test_cub_as_published(cub: Path) -> None:
    found = read_image_set(cub)
    assert found.kind == "cub200"
    assert found.names == ("Black footed Albatross", "Laysan Albatross", "Red winged Blackbird")
    assert [(path.stem[-1], label) for path, label in found.train] == [("1", 0), ("2", 1), ("1", 2)]
    assert found.test_labels.tolist() == [0, 1, 2]
    assert found.skipped == ()


def test_images_of_a_list_that_are_not_there_are_named_and_counted(cub: Path) -> None:
    (cub / "images" / "001.Black_footed_Albatross" / "Black_footed_Albatross_2.jpg").unlink()
    found = read_image_set(cub)
    assert len(found.test) == 2
    assert [(row.nodule_id, row.reason) for row in found.skipped] == [
        ("001.Black_footed_Albatross/Black_footed_Albatross_2.jpg", "1 of 3 images to test on are not there")
    ]


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("image_class_labels.txt", "1 1\n", "image_class_labels.txt: has 1 images, images.txt 6"),
        ("train_test_split.txt", "1 1\n2 1\n", "train_test_split.txt: has 2 images"),
        (
            "image_class_labels.txt",
            "".join(f"{k} 77\n" for k in range(1, 7)),
            "has 6 labels that classes.txt has not: 77",
        ),
        ("classes.txt", "x\n", "wanted 'number value' a line, got 'x'"),
        ("train_test_split.txt", "".join(f"{k} 1\n" for k in range(1, 7)), "no image to test on"),
    ],
)
def test_lists_of_cub_that_do_not_belong_together(cub: Path, file: str, text: str, told: str) -> None:
    (cub / file).write_text(text)
    with pytest.raises(DataError, match=told):
        read_image_set(cub, "cub200")


def test_food_as_published(tmp_path: Path) -> None:
    for name in ("apple_pie/1", "apple_pie/2", "waffles/3", "waffles/4"):
        picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "classes.txt").write_text("apple_pie\nwaffles\n")
    (tmp_path / "meta" / "train.txt").write_text("apple_pie/1\nwaffles/3\nwaffles/9\n")
    (tmp_path / "meta" / "test.txt").write_text("apple_pie/2\nwaffles/4\n")
    found = read_image_set(tmp_path)
    assert (found.kind, found.names) == ("food101", ("apple pie", "waffles"))
    assert [(path.name, label) for path, label in found.train] == [("1.jpg", 0), ("3.jpg", 1)]
    assert found.skipped[0].reason == "1 of 3 images to train on are not there"
    (tmp_path / "meta" / "test.txt").write_text("soup/2\n")
    with pytest.raises(DataError, match="'soup/2', whose class is not in"):
        read_image_set(tmp_path)


def test_class_folders_keep_a_share_of_every_class_to_test_on(tmp_path: Path) -> None:
    for name, count in (("b", 10), ("a", 5), ("one", 1)):
        for k in range(count):
            picture(tmp_path / name / f"{k}.png")
    found = read_image_set(tmp_path, test_share=0.2, seed=1)
    assert found.names == ("a", "b", "one")
    assert np.bincount([label for _, label in found.train]).tolist() == [4, 8, 1]
    assert np.bincount(found.test_labels).tolist() == [1, 2]
    assert not {path for path, _ in found.train} & {path for path, _ in found.test}
    assert found == read_image_set(tmp_path, test_share=0.2, seed=1)
    assert len(read_image_set(tmp_path, limit=2).train) == 5


def test_parts_by_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / f"{part}.png")
    found = read_image_set(tmp_path)
    assert (found.kind, found.names, len(found.train), len(found.test)) == ("parts", ("cat", "dog"), 2, 2)
    picture(tmp_path / "val" / "bird" / "x.png")
    assert "bird" in read_image_set(tmp_path).skipped[0].nodule_id


def test_what_is_no_image_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_image_set(tmp_path / "absent")
    with pytest.raises(UsageError, match="kind is one of auto, cub200"):
        read_image_set(tmp_path, "coco")
    with pytest.raises(DataError, match="no class folder"):
        read_image_set(tmp_path)
    picture(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match="none of val/"):
        read_image_set(tmp_path)
