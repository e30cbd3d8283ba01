"""Folders of labelled images: how numbers and classes are found, and what is said of what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from studies.folder import read_image_folder

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet import ClassNames

GOLDFISH, BOXER = "n01443537", "n02108089"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def flat(folder: Path, numbers: list[int]) -> Path:
    for number in numbers:
        picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return folder


def test_class_folders_by_synset_number_and_name(tmp_path: Path) -> None:
    for name, number in ((GOLDFISH, 7), ("242", 3), ("tiger_cat", 5)):
        picture(tmp_path / name / f"ILSVRC2012_val_{number:08d}.JPEG")
    found = read_image_folder(tmp_path)
    assert [(one.number, one.label) for one in found.images] == [(3, 242), (5, 282), (7, 1)]
    assert found.total == 50_000
    assert [(row.nodule_id, row.reason.split(" images")[0]) for row in found.skipped] == [
        ("ILSVRC2012_val_00000001", "49997 of 50000")
    ]


def test_a_flat_folder_takes_every_form_of_the_ground_truth(tmp_path: Path) -> None:
    images = flat(tmp_path / "val", [1, 3])
    listed = tmp_path / "val" / "val.txt"
    listed.write_text(f"ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000003.JPEG {BOXER}\n")
    assert [one.label for one in read_image_folder(images).images] == [1, 242]
    kaggle = tmp_path / "LOC_val_solution.csv"
    kaggle.write_text(
        "ImageId,PredictionString\n"
        f"ILSVRC2012_val_00000003,{BOXER} 1 2 3 4\n"
        f"ILSVRC2012_val_00000001,{GOLDFISH} 1 2 3 4\n"
    )
    assert [one.label for one in read_image_folder(images, ground_truth=kaggle).images] == [1, 242]
    in_order = tmp_path / "labels.txt"
    in_order.write_text("\n".join([GOLDFISH, "0", BOXER, *["0"] * 49_997]))
    assert [one.label for one in read_image_folder(images, ground_truth=in_order).images] == [1, 242]


def test_the_devkits_numbers_need_its_own_order(tmp_path: Path) -> None:
    images = flat(tmp_path / "val", [1, 2])
    names = ClassNames.of_imagenet(1000)
    assert names is not None
    assert names.synsets is not None
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("\n".join(["1000", "1", *[str(1 + k % 1000) for k in range(49_998)]]))
    with pytest.raises(DataError, match=r"meta\.mat beside it"):
        read_image_folder(images)
    synsets = np.array(
        [(k, synset) for k, synset in enumerate(reversed(names.synsets), start=1)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")],
    )
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    assert [one.label for one in read_image_folder(images).images] == [0, 999]  # the other way round


def test_missing_and_unlisted_images_are_counted(tmp_path: Path) -> None:
    images = flat(tmp_path, [1, 2, 9])
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{k:08d}.JPEG 0\n" for k in (1, 2, 3, 4)))
    found = read_image_folder(images)
    assert [one.number for one in found.images] == [1, 2]
    assert {(row.nodule_id, row.reason) for row in found.skipped} == {
        ("ILSVRC2012_val_00000009.JPEG", "1 images have no class in val.txt"),
        ("ILSVRC2012_val_00000003", "2 of 4 listed images are not there"),
    }


def test_unknown_synsets_are_named_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / GOLDFISH / "a.png")
    picture(tmp_path / "n99999999" / "b.png")
    found = read_image_folder(tmp_path)
    assert [one.label for one in found.images] == [1]
    assert [(row.nodule_id, row.reason.split(":")[0]) for row in found.skipped] == [("n99999999", "1 images left out")]
    flat_images = flat(tmp_path / "flat", [1, 2])
    (flat_images / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n99999999\nILSVRC2012_val_00000002.JPEG 5\n")
    with pytest.raises(DataError, match="'n99999999', no known class \\(1 such entries"):
        read_image_folder(flat_images)


@pytest.mark.parametrize(
    ("lines", "error", "told"),
    [
        (["0", "1"], DataError, "has 2 classes for the 50000 images"),
        (["ILSVRC2012_val_00000077.JPEG 3"], DataError, "none of its 1 images"),
        ([], DataError, "holds no line"),
        (None, UsageError, "put one of ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_labels_that_do_not_fit_say_so(
    tmp_path: Path, lines: list[str] | None, error: type[Exception], told: str
) -> None:
    images = flat(tmp_path, [1, 2])
    if lines is not None:
        (tmp_path / "val.txt").write_text("\n".join(lines))
    with pytest.raises(error, match=told):
        read_image_folder(images)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_image_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="neither images"):
        read_image_folder(tmp_path)
    picture(tmp_path / "n99999999" / "b.png")
    with pytest.raises(DataError, match="1 folders unknown"):
        read_image_folder(tmp_path)


def test_a_set_of_its_own_is_numbered_by_its_names_or_by_order(tmp_path: Path) -> None:
    classes = ClassNames(("red", "blue"))
    for name, label in (("pair_00000002", "red"), ("pair_00000001", "blue")):
        picture(tmp_path / "numbered" / label / f"{name}.png")
        picture(tmp_path / "plain" / label / f"{label}.png")
    numbered = read_image_folder(tmp_path / "numbered", classes=classes)
    assert [(one.number, one.label) for one in numbered.images] == [(1, 1), (2, 0)]
    assert (numbered.total, numbered.skipped) == (2, ())
    plain = read_image_folder(tmp_path / "plain", classes=classes)
    assert [(one.number, one.label) for one in plain.images] == [(1, 1), (2, 0)]
