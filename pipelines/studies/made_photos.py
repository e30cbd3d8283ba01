"""Photographs made for a study: textured backgrounds with objects of a few classes, so that the right answer is known.

Each class has a shape, a texture and a range of colours of its own. Training images show one object; the images of the
test show two of different classes that do not touch, with the mask of each. Everything follows from the seed.

FOLDER/classes.txt            a class per line
       train/<class>/*.png    one object each, to train on; val/ likewise, to measure accuracy on
       pairs/pair_00000001.png …   two objects each; val.txt names the class of one of them,
       real.json               the classes of both, in the form of ReaL labels
       masks/pair_00000001-<class number>.png   255 where the object of that class is
       about.json             the options that all of it was made with
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, write_json, write_text
from lidc_xai.progress import track

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_FINE = 2  # drawn so many times larger, then averaged down: smooth edges
_RADIUS = (0.15, 0.22)  # of the image's side
_GAP = 1.1  # two centres are at least so many times the sum of their radii apart


@dataclass(frozen=True)
class _Look:
    """One class: a shape and a texture as functions of (u, v), which run from −1 to 1 over the object, and a hue."""

    name: str
    inside: Callable[[Floats, Floats], Bools]
    texture: Callable[[Floats, Floats], Floats]
    hue: float


def _star(u: Floats, v: Floats) -> Bools:
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    return np.asarray(radius < 0.68 + 0.32 * np.cos(5 * angle))


def _cross(u: Floats, v: Floats) -> Bools:
    arms = (np.abs(u) < 0.36) | (np.abs(v) < 0.36)
    return np.asarray(arms & (np.maximum(np.abs(u), np.abs(v)) < 0.95))


def _triangle(u: Floats, v: Floats) -> Bools:
    return np.asarray((v < 0.75) & (v > -0.95) & (np.abs(u) < 0.55 * (v + 0.95)))


def _square(u: Floats, v: Floats) -> Bools:
    return np.asarray(np.maximum(np.abs(u), np.abs(v)) < 0.8)


def _disc(u: Floats, v: Floats) -> Bools:
    return np.asarray(np.hypot(u, v) < 0.95)


def _ring(u: Floats, v: Floats) -> Bools:
    return np.asarray(_disc(u, v) & (np.hypot(u, v) > 0.45))


_LOOKS = (
    _Look("striped disc", _disc, lambda u, v: np.sign(np.sin(9 * u)), 0.00),
    _Look("dotted square", _square, lambda u, v: np.sign(np.sin(9 * u) * np.sin(9 * v) - 0.3), 0.12),
    _Look("checked triangle", _triangle, lambda u, v: np.sign(np.sin(8 * u) * np.sin(8 * v)), 0.33),
    _Look("shaded cross", _cross, lambda u, v: u + v, 0.50),
    _Look("ringed ring", _ring, lambda u, v: np.sign(np.sin(22 * np.hypot(u, v))), 0.66),
    _Look("waved star", _star, lambda u, v: np.sign(np.sin(9 * v + 2 * np.sin(6 * u))), 0.83),
)
CLASSES = tuple(look.name for look in _LOOKS)


@dataclass(frozen=True)
class MadePhoto:
    """``pixels`` (H,W,3) uint8, the ``classes`` that are shown and the mask (H,W) of each."""

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...]
    masks: tuple[Bools, ...]


@dataclass(frozen=True)
class MadePhotos:
    """A folder of made photographs; see the module for what lies where."""

    folder: Path
    about: dict[str, Any]

    @property
    def classes_file(self) -> Path:
        return self.folder / "classes.txt"

    def singles(self, part: str) -> list[tuple[Path, int]]:
        """Images of "train" or "val" with their class, in a fixed order."""
        folders = [(label, self.folder / part / _folder_name(label)) for label in range(len(CLASSES))]
        return [(path, label) for label, folder in folders for path in sorted(folder.glob("*.png"))]

    def pairs(self) -> list[tuple[Path, tuple[int, int]]]:
        """Images of two objects with their classes, in the order of real.json."""
        labels = json.loads((self.folder / "real.json").read_text(encoding="utf-8"))
        paths = sorted((self.folder / "pairs").glob("*.png"))
        if len(labels) != len(paths):
            raise DataError(f"{self.folder}: {len(paths)} pairs but {len(labels)} labels; delete it and make it again")
        return [(path, (int(a), int(b))) for path, (a, b) in zip(paths, labels, strict=True)]

    def mask(self, pair: Path, label: int) -> Bools:
        """(H,W) where the object of class ``label`` lies in the image ``pair``."""
        path = self.folder / "masks" / f"{pair.stem}-{label:02d}.png"
        with Image.open(path) as opened:
            return np.asarray(np.asarray(opened) > 127)


def make_photo(classes: Sequence[int], rng: np.random.Generator, size: int = 64) -> MadePhoto:
    """One image with an object of each of ``classes`` (one to three), at places drawn by ``rng`` that do not touch."""
    if not 1 <= len(classes) <= 3 or not all(0 <= label < len(CLASSES) for label in classes):
        raise UsageError(
            f"a made photograph shows one to three of classes 0 to {len(CLASSES) - 1}, not {list(classes)}"
        )
    side = size * _FINE
    canvas = _background(side, rng)
    radii = [float(rng.uniform(*_RADIUS)) * side for _ in classes]
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    masks = []
    for label, radius, (y, x) in zip(classes, radii, _places(radii, side, rng), strict=True):
        turn = rng.uniform(-0.35, 0.35)
        across, down = (columns - x) / radius, (rows - y) / radius
        u, v = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
        look = _LOOKS[label]
        inside = look.inside(u, v)
        hue = (look.hue + rng.normal(0, 0.03)) % 1
        value = np.clip(rng.uniform(0.6, 0.8) + 0.25 * look.texture(u, v) + rng.normal(0, 0.03, u.shape), 0, 1)
        colour = hsv_to_rgb(np.stack([np.full_like(value, hue), np.full_like(value, rng.uniform(0.5, 0.8)), value], -1))
        canvas[inside] = colour[inside]
        masks.append(_down(inside.astype(np.float64)) > 0.5)
    pixels = np.clip(np.stack([_down(canvas[..., c]) for c in range(3)], -1) * 255 + 0.5, 0, 255).astype(np.uint8)
    return MadePhoto(pixels, tuple(classes), tuple(masks))


def make_photos(
    folder: Path | str, *, train: int = 200, val: int = 40, pairs: int = 200, size: int = 64, seed: int = 0
) -> MadePhotos:
    """Make ``train`` and ``val`` images per class and ``pairs`` of two objects; a folder made alike is kept.

    ``UsageError`` where the folder was made with other options.
    """
    if min(train, val, pairs) < 1 or size < 16:
        raise UsageError(f"made photographs: at least one of each and 16 px, got {train}, {val}, {pairs}, {size} px")
    folder = Path(folder)
    about = {"train": train, "val": val, "pairs": pairs, "size": size, "seed": seed, "classes": list(CLASSES)}
    if (folder / "about.json").is_file():
        known = read_made_photos(folder)
        if known.about != about:
            raise UsageError(f"{folder}: was made with other options ({known.about}); choose another folder")
        return known
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder}: holds other files; choose an empty or a new folder for the made photographs")
    rng = np.random.default_rng(seed)
    with atomic_path(folder) as temporary:
        for part, count in (("train", train), ("val", val)):
            for label in track(range(len(CLASSES)), f"make {part} images", len(CLASSES)):
                inside = temporary / part / _folder_name(label)
                inside.mkdir(parents=True)
                for k in range(count):
                    Image.fromarray(make_photo([label], rng, size).pixels).save(inside / f"{part}-{label}-{k:04d}.png")
        _write_pairs(temporary, pairs, size, rng)
        write_text(temporary / "classes.txt", "\n".join(CLASSES) + "\n")
        write_json(temporary / "about.json", about)
    return MadePhotos(folder, about)


def read_made_photos(folder: Path | str) -> MadePhotos:
    """A folder of ``make_photos``; ``UsageError`` where it is none."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: is no folder of made photographs ({error})") from None
    return MadePhotos(folder, about)


def _folder_name(label: int) -> str:
    return CLASSES[label].replace(" ", "_")


def _write_pairs(folder: Path, count: int, size: int, rng: np.random.Generator) -> None:
    (folder / "pairs").mkdir()
    (folder / "masks").mkdir()
    labels = []
    for k in track(range(1, count + 1), "make images of two objects", count):
        shown = [int(label) for label in rng.choice(len(CLASSES), 2, replace=False)]
        photo = make_photo(shown, rng, size)
        Image.fromarray(photo.pixels).save(folder / "pairs" / f"pair_{k:08d}.png")
        for label, mask in zip(shown, photo.masks, strict=True):
            Image.fromarray(np.uint8(255) * mask).save(folder / "masks" / f"pair_{k:08d}-{label:02d}.png")
        labels.append(shown)
    write_json(folder / "real.json", labels)
    lines = [f"pair_{k:08d}.png {shown[0]}" for k, shown in enumerate(labels, start=1)]
    write_text(folder / "pairs" / "val.txt", "\n".join(lines) + "\n")


def _background(side: int, rng: np.random.Generator) -> Floats:
    """(side, side, 3): clouds of two sizes, a slope, a faint tint."""
    clouds = sum(
        weight * _scaled(gaussian_filter(rng.normal(size=(side, side)), sigma * side / 64, mode="wrap"))
        for weight, sigma in ((0.10, 5.0), (0.06, 1.2))
    )
    slope = np.linspace(-0.1, 0.1, side)
    light = rng.uniform(0.3, 0.6) + clouds + np.outer(slope, np.ones(side)) * rng.choice([-1, 1])
    tint = rng.uniform(0.85, 1.15, 3)
    return np.clip(light[..., None] * tint, 0, 1)


def _scaled(field: Floats) -> Floats:
    return np.asarray((field - field.mean()) / field.std())


def _places(radii: Sequence[float], side: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A centre for each radius, inside the image and apart from the others; drawn again until they fit."""
    while True:
        centres = [(float(rng.uniform(r, side - r)), float(rng.uniform(r, side - r))) for r in radii]
        apart = all(
            np.hypot(a[0] - b[0], a[1] - b[1]) > _GAP * (radii[i] + radii[j])
            for i, a in enumerate(centres)
            for j, b in enumerate(centres)
            if i < j
        )
        if apart:
            return centres


def _down(field: Floats) -> Floats:
    side = len(field) // _FINE
    return np.asarray(field.reshape(side, _FINE, side, _FINE).mean((1, 3)))
