"""What the CDAM study's figures show: maps of two classes by every method, CDAM against attention, concept maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.explain import explain
from lidc_xai.files import atomic_path
from lidc_xai.imagenet.photographs import read_photo
from studies.cdam_figures import MapCell, MapRow, attention_tokens, draw_attention, draw_map_rows
from studies.concept_maps import maps_of, vector_of
from studies.study_arms import PHOTOS, Arm, StudyImage
from studies.study_measures import joined, object_classes, on_objects, readable

IMAGENET_CLASSES = 1000
_ATTENTION_IMAGES = 50
_AT_ONCE = 4


@dataclass(frozen=True)
class ConceptSet:
    """A concept: the pictures that make it, the class that it is (None: none), and images to show it on."""

    name: str
    paths: tuple[Path, ...]
    label: int | None
    shown: tuple[StudyImage, ...]


@dataclass(frozen=True)
class Seen:
    """Images as a model sees them: (n, H, W, 3) pixels, (n, 3, H, W) normalised, and (n, 2) classes to explain."""

    names: tuple[str, ...]
    pixels: np.ndarray
    tensor: Tensor
    targets: Tensor


def seen(arm: Arm, images: Sequence[StudyImage]) -> Seen:
    """Read images; where two classes are not known, the two most probable ones are explained."""
    photos = [read_photo(image.path, arm.classifier.spec) for image in images]
    model = arm.classifier.model
    tensor = torch.cat([photo.tensor for photo in photos]).to(next(model.parameters()).device)
    with torch.no_grad():
        probable = torch.cat([model(some).topk(2).indices.cpu() for some in tensor.split(_AT_ONCE)])
    targets = [
        torch.tensor(image.classes[:2]) if len(image.classes) > 1 else predicted
        for image, predicted in zip(images, probable, strict=True)
    ]
    names = tuple(image.name for image in images)
    return Seen(names, np.stack([photo.pixels for photo in photos]), tensor, torch.stack(targets))


def class_figures(folder: Path, arm: Arm, shown: int, options: BenchmarkOptions, names: Mapping[str, str]) -> None:
    """Attention and both classes' CDAM, as ``names["classes"]``; every method for both classes, as ``names["methods"]``
    (either may be absent)."""
    photos = seen(arm, readable(arm, shown))
    label = arm.classifier.label
    random = arm.classifier.random
    told = f"{arm.data}, {arm.model}: orange speaks for the class, blue against it; every map has its own scale"
    if arm.data == PHOTOS and arm.classifier.count != IMAGENET_CLASSES:
        told = f"{arm.data}, {arm.model}: how it is done, no more: this model never learned from photographs"
    if "classes" in names:
        maps = explain(arm.classifier.model, photos.tensor, photos.targets, ["attention", "cdam"])
        rows = []
        for b, name in enumerate(photos.names):
            cells = [MapCell("attention", _array(maps["attention"].relevance[b, 0]), "attention")]
            cells += [
                MapCell(f"CDAM: {label(int(photos.targets[b, t]))}", _array(maps["cdam"].relevance[b, t]))
                for t in (0, 1)
            ]
            rows.append(MapRow(photos.pixels[b], name, tuple(cells)))
        draw_map_rows(folder / names["classes"], rows, told, random)
    if "methods" in names:
        few = Seen(photos.names[:2], photos.pixels[:2], photos.tensor[:2], photos.targets[:2])
        by_method = {
            wanted: explain(arm.classifier.model, few.tensor, few.targets, method, **given).relevance
            for wanted, (method, given) in options.variants(arm.classifier.model).items()
        }
        rows = [
            MapRow(
                few.pixels[b], label(int(few.targets[b, t])),
                tuple(MapCell(name, _array(maps[b, t]), name) for name, maps in by_method.items()),
            )
            for b in range(len(few.names)) for t in (0, 1)
        ]  # fmt: skip
        draw_map_rows(folder / names["methods"], rows, told, random)


def attention_figure(path: Path, arm: Arm) -> pd.DataFrame:
    """CDAM against attention on up to 50 images: the figure, and the tokens behind it beside it as Parquet."""
    parts = []
    images = readable(arm, _ATTENTION_IMAGES)
    for start in range(0, len(images), _AT_ONCE):
        photos = seen(arm, images[start : start + _AT_ONCE])
        parts.append(attention_tokens(arm.classifier, photos.tensor, photos.targets, photos.names))
    tokens = pd.concat(parts, ignore_index=True)
    with atomic_path(path.with_suffix(".parquet")) as temporary:
        tokens.to_parquet(temporary, index=False)
    draw_attention(path, tokens, f"{arm.data}, {arm.model}: {len(images)} images, two classes each")
    return tokens


def concept_figure(path: Path, arm: Arm, concept: ConceptSet, sizes: Sequence[int], shown: int) -> None:
    """The concept's map from each number of pictures, with attention, and CDAM of the class where it is one."""
    vectors = {size: vector_of(arm.classifier, concept.paths, size) for size in sizes}
    photos = seen(arm, readable(replace(arm, images=concept.shown), shown))
    maps = maps_of(arm.classifier, photos.tensor, list(vectors.values()))
    attention = explain(arm.classifier.model, photos.tensor, photos.targets, "attention").relevance
    of_class = None
    if concept.label is not None:
        of_class = explain(arm.classifier.model, photos.tensor, concept.label, "cdam").relevance
    rows = []
    for b, name in enumerate(photos.names):
        cells = [MapCell(f"concept, {size} images", _array(maps[b, k])) for k, size in enumerate(sizes)]
        if of_class is not None:
            cells.append(MapCell("CDAM of the class", _array(of_class[b, 0])))
        cells.append(MapCell("attention", _array(attention[b, 0]), "attention"))
        rows.append(MapRow(photos.pixels[b], name, tuple(cells)))
    draw_map_rows(path, rows, f"{arm.data}, {arm.model}: the concept of {concept.name}", arm.classifier.random)


def concept_measures(
    arm: Arm, sets: Mapping[int, Sequence[Path]], sizes: Sequence[int]
) -> Callable[[Sequence[StudyImage], Tensor], pd.DataFrame]:
    """A function of made pairs: how far the concept's map, the class's CDAM and attention lie on the right object.

    ``sets``: class → pictures of it alone. Its table has the columns image, method, metric, value.
    """
    vectors = {(label, n): vector_of(arm.classifier, paths, n) for label, paths in sets.items() for n in sizes}
    model = arm.classifier.model

    def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
        classes = object_classes(images)
        maps = {
            name: explanation.relevance
            for name, explanation in explain(model, batch, classes, ["cdam", "attention"]).items()
        }
        for n in sizes:
            rows = [
                maps_of(arm.classifier, batch[b : b + 1], [vectors[int(label), n] for label in concept])
                for b, concept in enumerate(classes)
            ]
            maps[f"concept_cdam, {n} images"] = torch.cat(rows)
        return joined([on_objects(arm, images, name, relevance) for name, relevance in maps.items()])

    return measure


def _array(relevance: Tensor) -> np.ndarray:
    return np.asarray(relevance.detach().float().cpu().numpy())
