"""Labelled photographs in a folder: ImageNet's validation images as they come, or any folder with a folder per class.

flat            ILSVRC2012_val_00000001.JPEG … and a file that gives their classes (``ground_truth``)
class folders   n01440764/… ; folders are named by synset, by number or by name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.photographs import SUFFIXES
from lidc_xai.skipped import Skipped
from studies.ground_truth import USUAL, read_ground_truth
from studies.real_labels import VALIDATION_IMAGES

STAGE = "folder"
_NUMBERED = re.compile(r"_(\d{8})$")
_OF_IMAGENET = re.compile(r"ILSVRC2012_val_\d{8}$")


@dataclass(frozen=True)
class LabelledImage:
    """``label``: class number. ``number``: of the image, from 1: its place in lists of labels."""

    path: Path
    label: int
    number: int


@dataclass(frozen=True)
class ImageFolder:
    """``images`` by number; ``total``: how many the whole set has (50,000 for ImageNet's validation images);
    ``skipped``: what was left out and why."""

    root: Path
    images: tuple[LabelledImage, ...]
    classes: ClassNames
    total: int
    skipped: tuple[Skipped, ...]

    def by_number(self) -> dict[int, LabelledImage]:
        return {image.number: image for image in self.images}


def read_image_folder(
    folder: Path | str, *, ground_truth: Path | str | None = None, classes: ClassNames | None = None
) -> ImageFolder:
    """The labelled images under ``folder``.

    ``ground_truth``: file with the classes of a flat folder; None: one of the usual names in the folder or beside it.
    ``classes``: None: ImageNet's 1000. Images whose class is unknown or that are missing are listed in ``skipped``.
    ``UsageError`` for a missing folder or file, ``DataError`` where no image with a known class is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder of images")
    names = classes or ClassNames.of_imagenet(1000)
    assert names is not None
    flat = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    subfolders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if flat:
        return _flat(root, flat, _ground_truth_file(root, ground_truth), names)
    if not subfolders:
        raise DataError(f"{root}: holds neither images ({', '.join(SUFFIXES)}) nor class folders")
    return _class_folders(root, subfolders, names)


def own_classes(folder: Path | str) -> ClassNames:
    """The classes of a folder of class folders that belong to no known set: its folders' names, sorted."""
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder of class folders")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{root}: holds no class folder")
    return ClassNames(tuple(name.replace("_", " ") for name in names))


def _ground_truth_file(root: Path, given: Path | str | None) -> Path:
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UsageError(f"{path}: no such file with the classes of the images")
        return path
    places = [parent / name for parent in (root, root.parent) for name in USUAL]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(f"{root}: a flat folder needs the classes of its images; put one of {', '.join(USUAL)} there")
    return file


def _flat(root: Path, paths: list[Path], file: Path, names: ClassNames) -> ImageFolder:
    by_name, in_order = read_ground_truth(file, names)
    if by_name:
        return _listed(root, paths, file, by_name, names)
    numbers, total = _numbers(paths)
    if len(in_order) != total:
        raise DataError(f"{file}: has {len(in_order)} classes for the {total} images of {root}")
    images = [LabelledImage(path, in_order[number - 1], number) for path, number in zip(paths, numbers, strict=True)]
    return _folder(root, images, names, total, [])


def _listed(root: Path, paths: list[Path], file: Path, by_name: dict[str, int], names: ClassNames) -> ImageFolder:
    listed = [path for path in paths if path.stem in by_name]
    if not listed:
        raise DataError(f"{file}: none of its {len(by_name)} images is in {root}; first: {next(iter(by_name))}")
    skipped = []
    unlisted = [path for path in paths if path.stem not in by_name]
    if unlisted:
        skipped.append(Skipped(unlisted[0].name, STAGE, f"{len(unlisted)} images have no class in {file.name}"))
    missing = sorted(by_name.keys() - {path.stem for path in listed})
    if missing:
        skipped.append(Skipped(missing[0], STAGE, f"{len(missing)} of {len(by_name)} listed images are not there"))
    of_imagenet = all(_OF_IMAGENET.search(name) for name in by_name)
    numbers = {name: int(name[-8:]) if of_imagenet else place for place, name in enumerate(sorted(by_name), start=1)}
    images = [LabelledImage(path, by_name[path.stem], numbers[path.stem]) for path in listed]
    total = VALIDATION_IMAGES if of_imagenet else len(by_name)
    return ImageFolder(root, _by_number(images), names, total, tuple(skipped))


def _class_folders(root: Path, subfolders: list[Path], names: ClassNames) -> ImageFolder:
    pictures: list[tuple[Path, int]] = []
    skipped: list[Skipped] = []
    for folder in subfolders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        try:
            label = names.find(folder.name)
        except UsageError as error:
            skipped.append(Skipped(folder.name, STAGE, f"{len(paths)} images left out: {error}"))
            continue
        pictures += [(path, label) for path in paths]
    if not pictures:
        reason = f"; first: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{root}: no image in a folder of a known class ({len(skipped)} folders unknown{reason})")
    numbers, total = _numbers([path for path, _ in pictures])
    images = [LabelledImage(path, label, number) for (path, label), number in zip(pictures, numbers, strict=True)]
    return _folder(root, images, names, total, skipped)


def _numbers(paths: list[Path]) -> tuple[list[int], int]:
    """Numbers from the files' names where each has its own, else by order; and how many images the set has."""
    matches = [_NUMBERED.search(path.stem) for path in paths]
    numbers = [int(match.group(1)) for match in matches if match]
    if len(set(numbers)) != len(paths):
        return list(range(1, len(paths) + 1)), len(paths)
    of_imagenet = all(_OF_IMAGENET.search(path.stem) for path in paths)
    return numbers, VALIDATION_IMAGES if of_imagenet else max(numbers)


def _folder(
    root: Path, images: list[LabelledImage], names: ClassNames, total: int, skipped: list[Skipped]
) -> ImageFolder:
    missing = sorted(set(range(1, total + 1)) - {image.number for image in images})
    if missing and not skipped:
        stem = _NUMBERED.sub("", images[0].path.stem)
        reason = f"{len(missing)} of {total} images are not in {root.name}"
        skipped = [*skipped, Skipped(f"{stem}_{missing[0]:08d}", STAGE, reason)]
    return ImageFolder(root, _by_number(images), names, total, tuple(skipped))


def _by_number(images: list[LabelledImage]) -> tuple[LabelledImage, ...]:
    return tuple(sorted(images, key=lambda image: image.number))
