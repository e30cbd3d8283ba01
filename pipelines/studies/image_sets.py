"""Image sets to train a classifier on: CUB-200-2011 and Food-101 as they are published, ImageNet, or any class folders.

CUB_200_2011/   images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/
food-101/       meta/train.txt, meta/test.txt, meta/classes.txt, images/<class>/<number>.jpg
train/ + val/   a folder per class in each (ImageNet: by synset; val/ may be flat with its ground truth); test/ for val/
class folders   alone: a share of every class, drawn by the seed, is kept to test on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.skipped import Skipped
from studies.folder import ImageFolder, own_classes, read_image_folder

Examples = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class ImageSet:
    """``train`` and ``test``: images with their class; ``names`` of the classes; ``skipped``: what is not there."""

    kind: str
    train: Examples
    test: Examples
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    @property
    def test_labels(self) -> NDArray[np.intp]:
        return np.array([label for _, label in self.test], dtype=np.intp)


def read_image_set(
    folder: Path | str, kind: str = "auto", *, test_share: float = 0.2, seed: int = 0, limit: int | None = None
) -> ImageSet:
    """The set in ``folder``; ``kind``: a key of ``KINDS``, or "auto" to see which one it is.

    ``limit``: at most so many images of each class in each part (a dry run). ``UsageError`` for a missing folder or an
    unknown kind, ``DataError`` for lists that do not belong together or where no image is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder of images")
    if kind not in ("auto", *KINDS):
        raise UsageError(f"kind is one of auto, {', '.join(KINDS)}, not {kind!r}")
    if not 0 < test_share < 1:
        raise UsageError(f"test_share is above 0 and below 1, not {test_share}")
    images = KINDS[_kind_of(root) if kind == "auto" else kind](root, test_share, seed)
    for part, examples in (("train", images.train), ("test", images.test)):
        if not examples:
            first = f"; {images.skipped[0].reason}, first {images.skipped[0].nodule_id}" if images.skipped else ""
            raise DataError(f"{root}: no image to {part} on is there{first}")
    if limit is None:
        return images
    train, test = (_first_of_each(part, limit) for part in (images.train, images.test))
    return ImageSet(images.kind, train, test, images.names, images.skipped)


def _kind_of(root: Path) -> str:
    if (root / "train_test_split.txt").is_file():
        return "cub200"
    if (root / "meta" / "train.txt").is_file():
        return "food101"
    return "parts" if (root / "train").is_dir() else "classes"


def _cub200(root: Path, test_share: float, seed: int) -> ImageSet:
    names = _numbered(root / "classes.txt")
    paths, labels, split = (
        _numbered(root / file) for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    for file, lines in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        if lines.keys() != paths.keys():
            raise DataError(f"{root / file}: has {len(lines)} images, images.txt {len(paths)}; they must be the same")
    order = {number: place for place, number in enumerate(sorted(names, key=int))}
    unknown = [label for label in labels.values() if label not in order]
    if unknown:
        raise DataError(
            f"{root}: image_class_labels.txt has {len(unknown)} labels that classes.txt has not: {unknown[0]}"
        )
    listed = [(root / "images" / paths[key], order[labels[key]], split[key] == "1") for key in paths]
    train, missing = _there("train", [(path, label) for path, label, to_train in listed if to_train])
    test, gone = _there("test", [(path, label) for path, label, to_train in listed if not to_train])
    told = tuple(name.partition(".")[2].replace("_", " ") or name for _, name in sorted(names.items(), key=_by_number))
    return ImageSet("cub200", train, test, told, missing + gone)


def _food101(root: Path, test_share: float, seed: int) -> ImageSet:
    names = _lines(root / "meta" / "classes.txt")
    order = {name: place for place, name in enumerate(names)}
    parts: list[Examples] = []
    skipped: list[Skipped] = []
    for part in ("train", "test"):
        listed = []
        for entry in _lines(root / "meta" / f"{part}.txt"):
            name = entry.partition("/")[0]
            if name not in order:
                raise DataError(f"{root}: meta/{part}.txt has {entry!r}, whose class is not in meta/classes.txt")
            listed.append((root / "images" / f"{entry}.jpg", order[name]))
        examples, missing = _there(part, listed)
        parts.append(examples)
        skipped += missing
    return ImageSet("food101", parts[0], parts[1], tuple(name.replace("_", " ") for name in names), tuple(skipped))


def _parts(root: Path, test_share: float, seed: int) -> ImageSet:
    held = next((root / name for name in ("val", "validation", "test") if (root / name).is_dir()), None)
    if held is None:
        raise DataError(f"{root}: has train/ but none of val/, validation/, test/ to test on")
    classes = _classes_of(root / "train")
    train, test = (read_image_folder(part, classes=classes) for part in (root / "train", held))
    return ImageSet("parts", _examples(train), _examples(test), classes.names, (*train.skipped, *test.skipped))


def _classes(root: Path, test_share: float, seed: int) -> ImageSet:
    classes = _classes_of(root)
    folder = read_image_folder(root, classes=classes)
    rng = np.random.default_rng(seed)
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label in range(len(classes)):
        of_class = [example for example in _examples(folder) if example[1] == label]
        held = min(len(of_class) - 1, max(1, round(test_share * len(of_class)))) if of_class else 0
        drawn = set(rng.permutation(len(of_class))[:held].tolist())
        for place, example in enumerate(of_class):
            (test if place in drawn else train).append(example)
    return ImageSet("classes", tuple(train), tuple(test), classes.names, folder.skipped)


KINDS: Mapping[str, Callable[[Path, float, int], ImageSet]] = {
    "cub200": _cub200, "food101": _food101, "parts": _parts, "classes": _classes,
}  # fmt: skip


def _classes_of(folder: Path) -> ClassNames:
    """ImageNet's classes where every folder is one of its synsets and all are there, else the folders' own names."""
    listed = own_classes(folder)
    imagenet = ClassNames.of_imagenet(1000)
    assert imagenet is not None
    return imagenet if imagenet.synsets and set(listed.names) == set(imagenet.synsets) else listed


def _examples(folder: ImageFolder) -> Examples:
    return tuple((image.path, image.label) for image in folder.images)


def _there(part: str, listed: Iterable[tuple[Path, int]]) -> tuple[Examples, tuple[Skipped, ...]]:
    """The examples whose file is there, and one row for all that are not."""
    examples = tuple(listed)
    there = tuple(example for example in examples if example[0].is_file())
    missing = [path for path, _ in examples if not path.is_file()]
    if not missing:
        return there, ()
    reason = f"{len(missing)} of {len(examples)} images to {part} on are not there"
    return there, (Skipped("/".join(missing[0].parts[-2:]), "images", reason),)


def _first_of_each(examples: Examples, limit: int) -> Examples:
    seen: dict[int, int] = {}
    kept = []
    for path, label in examples:
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= limit:
            kept.append((path, label))
    return tuple(kept)


def _by_number(item: tuple[str, str]) -> int:
    return int(item[0])


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this list of the set cannot be read ({error})") from None


def _numbered(path: Path) -> dict[str, str]:
    """CUB's lists: a number and a word a line."""
    numbers = {}
    for line in _lines(path):
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest:
            raise DataError(f"{path}: wanted 'number value' a line, got {line[:60]!r}")
        numbers[number] = rest.strip()
    return numbers
