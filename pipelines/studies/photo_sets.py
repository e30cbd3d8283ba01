"""Real photographs for the studies: one set with a class for every pixel, one of ImageNet's validation images.

FOLDER/msrc/classes.json, images/<name>.jpg, masks/<name>.png     MSRC v2: a class number a pixel, 0 = none
FOLDER/ilsvrc_val/labels.csv, images/                             file, label (0 to 999), n_real

Each photograph is read as a square of its whole: MSRC's (3 × 2, 2 × 3) are stretched, so that no mask is cut off.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lidc_xai.errors import DataError, UsageError
from studies.hypernyms import hypernyms, steps_down

RARE = ("horse", "mountain")
"""Classes of MSRC that are left out: horse is on 3 photographs, mountain is usually left out."""
LEAST_AREA = 0.01
"""Share of a photograph from which a class is present."""
CLASSES = 1000
GET_MSRC = "MSRC v2 with cleaned labels: FOLDER/msrc with images/, masks/ and classes.json"
GET_ILSVRC = "ImageNet's validation images: FOLDER/ilsvrc_val with images/ and labels.csv (file,label,n_real)"


@dataclass(frozen=True)
class MaskedPhoto:
    """``shares``: class → its share of the photograph."""

    path: Path
    mask: Path
    shares: dict[int, float]


@dataclass(frozen=True)
class MaskedSet:
    """``codes``: the number that each usable class has in the masks, in the order of ``names``."""

    photos: tuple[MaskedPhoto, ...]
    names: tuple[str, ...]
    codes: tuple[int, ...]


@dataclass(frozen=True)
class LabelledPhoto:
    """``label``: ImageNet's class, 0 to 999; ``real``: how many ReaL labels it has."""

    path: Path
    label: int
    real: int


def read_msrc(folder: Path) -> MaskedSet:
    """The photographs with their masks; ``UsageError`` where something is missing, ``DataError`` where it is wrong."""
    file, images, masks = folder / "classes.json", folder / "images", folder / "masks"
    for path, what in ((file, "names of the classes"), (images, "photographs"), (masks, "masks")):
        if not path.exists():
            raise UsageError(f"{folder}: holds no {what} ({path.name}); put there {GET_MSRC}")
    try:
        named = {int(code): str(name) for code, name in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file}: wanted a class's name for each number of the masks ({error})") from None
    usable = {code: name for code, name in sorted(named.items()) if name not in RARE}
    codes = tuple(usable)
    photos = []
    for path in sorted(images.iterdir()):
        mask = masks / f"{path.stem}.png"
        if not mask.is_file():
            raise DataError(f"{mask}: {path.name} has no mask; put there {GET_MSRC}")
        pixels = read_codes(mask)
        _check_size(path, mask, pixels)
        counted = Counter(dict(zip(*(part.tolist() for part in np.unique(pixels, return_counts=True)), strict=True)))
        unknown = sorted(counted.keys() - named.keys() - {0})
        if unknown:
            raise DataError(f"{mask}: class {unknown[0]} is none of {file} (1 to {max(named)}, 0: none)")
        photos.append(MaskedPhoto(path, mask, {k: counted[code] / pixels.size for k, code in enumerate(codes)}))
    if not photos:
        raise DataError(f"{images}: holds no photograph; put there {GET_MSRC}")
    return MaskedSet(tuple(photos), tuple(usable.values()), codes)


def _check_size(path: Path, mask: Path, pixels: NDArray[np.uint8]) -> None:
    """``DataError`` where a mask is not as large as its photograph, or the photograph is none."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except OSError as error:
        raise DataError(f"{path}: is no photograph that can be read ({str(error).splitlines()[0]})") from None
    if pixels.shape != (height, width):
        mine = f"{pixels.shape[1]} × {pixels.shape[0]}"
        raise DataError(f"{mask}: is {mine} pixels and {path.name} {width} × {height}; put there {GET_MSRC}")


def read_codes(path: Path) -> NDArray[np.uint8]:
    """(H, W) class number of every pixel; ``DataError`` where it is no such picture."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no mask that can be read ({str(error).splitlines()[0]})") from None
    if pixels.ndim != 2:
        raise DataError(f"{path}: a mask has one number a pixel, this picture has shape {pixels.shape}")
    return pixels


def masks_of(path: Path, codes: tuple[int, ...], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(classes, H, W): where each class of ``codes`` is, on a square of the whole photograph."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST))
    return np.stack([pixels == code for code in codes])


def present(photo: MaskedPhoto) -> list[int]:
    """The photograph's classes, the largest first."""
    shown = [k for k, share in photo.shares.items() if share >= LEAST_AREA]
    return sorted(shown, key=lambda k: -photo.shares[k])


def read_ilsvrc(folder: Path) -> tuple[LabelledPhoto, ...]:
    """The images with their labels; ``UsageError`` where something is missing, ``DataError`` where it is wrong."""
    file, images = folder / "labels.csv", folder / "images"
    for path in (file, images):
        if not path.exists():
            raise UsageError(f"{folder}: holds no {path.name}; put there {GET_ILSVRC}")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        rows = list(zip(table["file"], table["label"].map(int), table["n_real"].map(int), strict=True))
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{file}: wanted the columns file, label (0 to 999) and n_real ({error})") from None
    if not rows:
        raise DataError(f"{file}: names no photograph; put there {GET_ILSVRC}")
    for number, (name, label, _) in enumerate(rows, start=2):
        if not 0 <= label < CLASSES:
            raise DataError(f"{file}: line {number}: {name} has label {label}; wanted 0 to {CLASSES - 1}")
        if not (images / name).is_file():
            raise DataError(f"{images}: {name} of {file.name} is not there; put there {GET_ILSVRC}")
    return tuple(LabelledPhoto(images / name, int(label), int(real)) for name, label, real in rows)


def superclasses(synsets: list[str], least: int = 15) -> dict[str, list[int]]:
    """WordNet's synset → places in ``synsets`` that belong under it, ``least`` at least, every place once or nowhere.

    From the leaves upward along each synset's first hypernym: what is gathered under a synset becomes a superclass as
    soon as it is enough, the rest moves on. What is left where everything meets (fewer than 6 steps below the root,
    where words are as wide as "artifact") belongs nowhere.
    """
    gathered: dict[str, list[int]] = {}
    for place, synset in enumerate(synsets):
        gathered.setdefault(synset, []).append(place)
    done: dict[str, list[int]] = {}
    while gathered:
        synset = max(gathered, key=lambda one: (steps_down(one), one))
        places = gathered.pop(synset)
        if steps_down(synset) < 6:
            continue
        if len(places) >= least:
            done[synset] = places
        else:
            above = hypernyms()[synset]
            if above:
                gathered.setdefault(above[0], []).extend(places)
    return done
