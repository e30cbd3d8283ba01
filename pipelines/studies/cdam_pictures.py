"""What the CDAM study's figures show: maps of two classes by every method, CDAM against attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.explain import explain
from lidc_xai.files import atomic_path
from studies.cdam_figures import MapCell, MapRow, attention_tokens, draw_attention, draw_map_rows
from studies.study_arms import Arm, StudyImage
from studies.study_measures import readable

_AT_ONCE = 4


@dataclass(frozen=True)
class Seen:
    """Images as a model sees them: (n, H, W, 3) pixels, (n, 3, H, W) normalised, and (n, 2) classes to explain."""

    names: tuple[str, ...]
    pixels: np.ndarray
    tensor: Tensor
    targets: Tensor


def seen(arm: Arm, images: Sequence[StudyImage]) -> Seen:
    """Read images of one fold; where two classes are not known, the two most probable ones are explained."""
    photos = [arm.read(image) for image in images]
    model = arm.classifier.model
    tensor = torch.cat([photo.tensor for photo in photos]).to(next(model.parameters()).device)
    with torch.no_grad():
        probable = torch.cat([model(some).topk(2).indices.cpu() for some in tensor.split(_AT_ONCE)])
    targets = [
        torch.tensor(image.classes[:2]) if len(image.classes) > 1 else own
        for image, own in zip(images, probable, strict=True)
    ]
    names = tuple(image.name for image in images)
    return Seen(names, np.stack([photo.pixels for photo in photos]), tensor, torch.stack(targets))


def class_figures(folder: Path, arm: Arm, shown: int, options: BenchmarkOptions, names: Mapping[str, str]) -> None:
    """Attention and both classes' CDAM, as ``names["classes"]``; every method for both classes, as ``names["methods"]``
    (either may be absent)."""
    if all((folder / name).is_file() for name in names.values()):
        return
    fold = arm.images[0].fold
    found = seen(arm, readable(replace(arm, images=tuple(one for one in arm.images if one.fold == fold)), shown))
    label = arm.classifier.label
    random = arm.classifier.random
    told = f"{arm.data}, {arm.model}: orange speaks for the class, blue against it; every map has its own scale"
    if "classes" in names:
        maps = explain(arm.classifier.model, found.tensor, found.targets, ["attention", "cdam"])
        rows = []
        for b, name in enumerate(found.names):
            cells = [MapCell("attention", _array(maps["attention"].relevance[b, 0]), "attention")]
            cells += [
                MapCell(f"CDAM: {label(int(found.targets[b, t]))}", _array(maps["cdam"].relevance[b, t]))
                for t in (0, 1)
            ]
            rows.append(MapRow(found.pixels[b], name, tuple(cells)))
        draw_map_rows(folder / names["classes"], rows, told, random)
    if "methods" in names:
        few = Seen(found.names[:2], found.pixels[:2], found.tensor[:2], found.targets[:2])
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
    """CDAM against attention on the arm's images: the figure, and the tokens behind it beside it as Parquet, from where
    they are read again where they are of these images."""
    kept = path.with_suffix(".parquet")
    names = [image.name for image in arm.images]
    if kept.is_file() and list(dict.fromkeys(pd.read_parquet(kept, columns=["image"])["image"])) == names:
        tokens = pd.read_parquet(kept)
    else:
        parts = []
        for image in readable(arm, len(names)):
            shown = seen(arm, [image])
            parts.append(attention_tokens(arm.classifier, shown.tensor, shown.targets, shown.names))
        tokens = pd.concat(parts, ignore_index=True)
        with atomic_path(kept) as temporary:
            tokens.to_parquet(temporary, index=False)
    draw_attention(path, tokens, f"{arm.data}, {arm.model}: {tokens['image'].nunique()} images, two classes each")
    return tokens


def _array(relevance: Tensor) -> np.ndarray:
    return np.asarray(relevance.detach().float().cpu().numpy())
