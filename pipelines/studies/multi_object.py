"""Which validation images a study takes: X_val at random, X_multi with several objects.

Two ReaL labels of one image name different objects where

    WordNet distance ≥ min_distance     and     images with both / images with either ≤ max_overlap

The first keeps breeds and kinds apart from objects; the second drops pairs that nearly always come together, because
they are two names of one thing (sunglass and sunglasses) or a thing and its part (lampshade and table lamp). The CDAM
paper compares embeddings of class names from a closed service instead, so its images are not these.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from lidc_xai.csv_files import rows_text
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import write_text
from studies.hypernyms import distance

COUNT = 1000
MIN_DISTANCE = 0.4
MAX_OVERLAP = 0.3
_FIELDS = ("image", "labels", "pair", "distance")


@dataclass(frozen=True)
class MultiObject:
    """``number``: of the image, from 1 as in its file name. ``labels``: all of its ReaL labels. ``pair``: the two of
    them that are farthest apart, in the order of the labels."""

    number: int
    labels: tuple[int, ...]
    pair: tuple[int, int]
    distance: float


@dataclass(frozen=True)
class MultiSelection:
    """``chosen``, by number, and how many images and pairs were left at each stage."""

    chosen: tuple[MultiObject, ...]
    counts: dict[str, int | dict[int, int]]


def random_numbers(available: Sequence[int], count: int = COUNT, seed: int = 0, total: int | None = None) -> list[int]:
    """``count`` of the image numbers ``available`` (from 1 to ``total``), drawn by ``seed``, sorted.

    The draw is over all ``total`` numbers, so that a folder with gaps gives the same images as far as it has them.
    """
    have = set(available)
    order = np.random.default_rng(seed).permutation(total or max(have, default=0)) + 1
    return sorted([int(number) for number in order if number in have][:count])


def select_multi(
    labels: Sequence[Sequence[int]],
    synsets: Sequence[str] | None,
    *,
    count: int = COUNT,
    min_distance: float = MIN_DISTANCE,
    max_overlap: float = MAX_OVERLAP,
    seed: int = 0,
    available: Sequence[int] | None = None,
) -> MultiSelection:
    """``count`` images with two different objects or more, drawn by ``seed``.

    ``labels``: of image 1, 2, …; ``synsets``: of the classes; None: classes of no dictionary, all of them different
    (the overlap is not asked either). ``available``: numbers of the images at hand; None: all.
    """
    if not 0 <= min_distance <= 1 or not 0 < max_overlap <= 1:
        raise UsageError(f"min_distance is 0 to 1 and max_overlap above 0 to 1, not {min_distance} and {max_overlap}")
    apart = (lambda a, b: 1.0) if synsets is None else _distances(synsets)
    together = Counter(pair for of_image in labels for pair in combinations(sorted(set(of_image)), 2))
    far = {pair for pair in together if apart(*pair) >= min_distance}
    alone = Counter(label for of_image in labels for label in set(of_image))

    def overlap(pair: tuple[int, int]) -> float:
        both = together[pair]
        return both / (alone[pair[0]] + alone[pair[1]] - both)

    different = far if synsets is None else {pair for pair in far if overlap(pair) <= max_overlap}
    qualified = [
        MultiObject(number, tuple(of_image), *best)
        for number, of_image in enumerate(labels, start=1)
        if (best := _farthest(of_image, different, apart)) is not None
    ]
    wanted = set(range(1, len(labels) + 1) if available is None else available)
    at_hand = {one.number: one for one in qualified if one.number in wanted}
    numbers = random_numbers(list(at_hand), count, seed, len(labels)) if at_hand else []
    counts: dict[str, int | dict[int, int]] = {
        "images": len(labels),
        "images_by_labels": dict(sorted(Counter(len(set(of_image)) for of_image in labels).items())),
        "pairs": len(together),
        "pairs_far_apart": len(far),
        "pairs_of_different_objects": len(different),
        "images_with_far_pair": sum(_farthest(of_image, far, apart) is not None for of_image in labels),
        "images_with_different_objects": len(qualified),
        "at_hand": len(at_hand),
        "selected": len(numbers),
    }
    return MultiSelection(tuple(at_hand[number] for number in numbers), counts)


def write_multi(path: Path | str, selection: MultiSelection) -> None:
    """A CSV: image (number from 1), labels and pair (class numbers, space between), distance."""
    rows = [
        (one.number, *(" ".join(map(str, numbers)) for numbers in (one.labels, one.pair)), f"{one.distance:.3f}")
        for one in selection.chosen
    ]
    write_text(path, rows_text([_FIELDS, *rows]))


def read_multi(path: Path | str) -> list[MultiObject]:
    """What ``write_multi`` wrote, or a list of one's own in that form; ``DataError`` where it is not one."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file}: no such list of images with several objects")
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        chosen = [
            MultiObject(int(row["image"]), _numbers(row["labels"]), _pair(row["pair"]), float(row["distance"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: is no list with the columns {', '.join(_FIELDS)} ({error})") from None
    if not chosen:
        raise DataError(f"{file}: lists no image")
    return chosen


def _distances(synsets: Sequence[str]) -> Callable[[int, int], float]:
    known: dict[tuple[int, int], float] = {}

    def between(first: int, second: int) -> float:
        pair = (min(first, second), max(first, second))
        if pair not in known:
            known[pair] = distance(synsets[pair[0]], synsets[pair[1]])
        return known[pair]

    return between


def _farthest(
    labels: Sequence[int], different: set[tuple[int, int]], apart: Callable[[int, int], float]
) -> tuple[tuple[int, int], float] | None:
    """The pair of an image's labels that is farthest apart among the different ones, and how far; None without."""
    pairs = [pair for pair in combinations(dict.fromkeys(labels), 2) if (min(pair), max(pair)) in different]
    if not pairs:
        return None
    best = max(pairs, key=lambda pair: apart(*pair))
    return best, apart(*best)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


def _pair(text: str) -> tuple[int, int]:
    first, second = _numbers(text)
    return first, second
