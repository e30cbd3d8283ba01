"""Files that give the class of each validation image: ImageNet's own, Kaggle's, and plain lists.

    ILSVRC2012_validation_ground_truth.txt   a number from 1 to 1000 a line, in the devkit's order: needs its meta.mat
    LOC_val_solution.csv                     ImageId,PredictionString: the first word of the second is the synset
    val.txt                                  file name and class a line
    any other                                a class a line, for image 1, 2, …

A class is a number from 0, a synset or a name.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.photographs import SUFFIXES

USUAL = ("ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv", "val.txt")


def read_ground_truth(path: Path, classes: ClassNames) -> tuple[dict[str, int], list[int]]:
    """(image name without ending → class, []) of a list with names, or ({}, classes of image 1, 2, …).

    ``DataError`` names the line whose class is unknown, and how many there are.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the classes of the images cannot be read ({error})") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: holds no line; wanted a class per image")
    if lines[0].lower().startswith("imageid,"):
        rows = [(row[0], row[1].split()[0]) for row in csv.reader(lines[1:]) if len(row) > 1 and row[1].strip()]
        return dict(zip((name for name, _ in rows), _found(path, [text for _, text in rows], classes), strict=True)), []
    if Path(lines[0].split()[0]).suffix.lower() in SUFFIXES:
        pairs = [line.split(maxsplit=1) for line in lines]
        alone = next((pair[0] for pair in pairs if len(pair) < 2), None)
        if alone is not None:
            raise DataError(f"{path}: gives no class for {alone}")
        names = [Path(pair[0]).stem for pair in pairs]
        return dict(zip(names, _found(path, [pair[1] for pair in pairs], classes), strict=True)), []
    if _of_devkit(lines):
        order = _devkit_order(path)
        return {}, _found(path, [order.get(int(line), line) for line in lines], classes)
    return {}, _found(path, lines, classes)


def _found(path: Path, texts: list[str], classes: ClassNames) -> list[int]:
    known: dict[str, int] = {}
    bad: dict[str, int] = {}
    for line, text in enumerate(texts, start=1):
        if text in known or text in bad:
            continue
        try:
            known[text] = classes.find(text)
        except UsageError:
            bad[text] = line
    if bad:
        first, line = next(iter(bad.items()))
        count = sum(text in bad for text in texts)
        raise DataError(
            f"{path}: entry {line} is {first!r}, no known class ({count} such entries, {len(bad)} different)"
        )
    return [known[text] for text in texts]


def _of_devkit(lines: list[str]) -> bool:
    numbers = {line for line in lines if re.fullmatch(r"\d+", line)}
    return len(numbers) == len(set(lines)) and "1000" in numbers and "0" not in numbers


def _devkit_order(path: Path) -> dict[int, str]:
    """The devkit's number of each synset, from the meta.mat beside the list or in its data folder."""
    places = [path.parent / "meta.mat", path.parent / "data" / "meta.mat", path.parent.parent / "meta.mat"]
    meta = next((place for place in places if place.is_file()), None)
    if meta is None:
        raise DataError(
            f"{path}: numbers 1 to 1000 are the devkit's own order; put the devkit's data/meta.mat beside it as "
            f"{places[0]}, or give val.txt or LOC_val_solution.csv"
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError, TypeError) as error:
        raise DataError(f"{meta}: is no meta.mat of the devkit ({error})") from None
