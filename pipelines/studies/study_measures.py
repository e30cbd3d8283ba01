"""What several studies measure: tidy tables of values per image, where a map lies on made objects, example sheets.

On an image of two objects with known masks M_c and M_o, the map for class c is right where it lies on c's own object:

    own share = Σ_{M_c} S⁺ / Σ_{M_c ∪ M_o} S⁺        auprc = that of S against M_c

An own share of ½ is what a map has that cannot tell the two objects apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.evaluation.maps import resampled
from lidc_xai.evaluation.metrics._localisation import average_precision
from lidc_xai.imagenet.panel import draw_panel
from lidc_xai.imagenet.photographs import Photo, read_photo
from studies.study_arms import Arm, StudyImage

COLUMNS = ("image", "method", "metric", "value")
OWN_SHARE, AUPRC = "objects/own share", "objects/auprc"


def tidy(images: Sequence[StudyImage], method: str, values: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """One row per image and metric: ``values``, metric → (n,)."""
    names = [image.name for image in images]
    parts = [
        pd.DataFrame(
            {"image": names, "method": method, "metric": metric, "value": np.asarray(scores, dtype=np.float64)}
        )
        for metric, scores in values.items()
    ]
    return joined(parts)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of ``tidy`` below each other, with the right types even where there is none."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return pd.DataFrame({name: pd.Series(dtype=float if name == "value" else object) for name in COLUMNS})
    return pd.concat(filled, ignore_index=True)


def object_classes(images: Sequence[StudyImage]) -> Tensor:
    """(n, 2) the classes of images of two objects."""
    return torch.tensor([image.classes for image in images])


def on_objects(arm: Arm, images: Sequence[StudyImage], method: str, relevance: Tensor) -> pd.DataFrame:
    """Own share and AUPRC of maps (n, 2, h, w), one for each class of ``image.classes``; the mean of the two."""
    masks = np.stack([arm.masks(image) for image in images])
    size = (masks.shape[-2], masks.shape[-1])
    maps = resampled(relevance.detach().double().cpu(), size).numpy()
    share = np.stack([own_share(maps[:, k], masks[:, k], masks[:, 1 - k]) for k in (0, 1)])
    auprc = np.array([[average_precision(maps[i, k], masks[i, k]) for i in range(len(images))] for k in (0, 1)])
    return tidy(images, method, {OWN_SHARE: share.mean(0), AUPRC: auprc.mean(0)})


def own_share(maps: NDArray[np.float64], target: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) share of the positive relevance on both objects that lies on the own one; NaN where there is none."""
    positive = np.maximum(maps, 0)
    mine, theirs = (positive * target).sum((1, 2)), (positive * other).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(mine / (mine + theirs))


def labels_of(images: Sequence[StudyImage], logits: Tensor) -> Tensor:
    """(n,) each image's label; the predicted class where it has none."""
    predicted = logits.argmax(-1).cpu()
    labels = [int(predicted[k]) if image.label is None else image.label for k, image in enumerate(images)]
    return torch.tensor(labels)


def picture(arm: Arm, image: StudyImage) -> Photo:
    """The image as the arm's model sees it."""
    return read_photo(image.path, arm.classifier.spec)


def readable(arm: Arm, count: int) -> list[StudyImage]:
    """The first ``count`` of the arm's images that can be read."""
    chosen: list[StudyImage] = []
    for image in arm.images:
        if len(chosen) == count:
            break
        try:
            picture(arm, image)
        except DataError:
            continue  # named as skipped where the images are measured
        chosen.append(image)
    return chosen


def draw_example(arm: Arm, image: StudyImage, classes: Sequence[int], maps: Mapping[str, Tensor], folder: Path) -> None:
    """One sheet of maps (classes, h, w) in ``folder``, named after the data, the model and the image."""
    name = f"{arm.data}-{arm.model}-{image.path.stem}.png".replace(" ", "_")
    rows = [arm.classifier.label(label) for label in classes]
    arrays = {key: value.detach().float().cpu().numpy() for key, value in maps.items()}
    warning = "random weights: these maps say nothing" if arm.classifier.random else None
    title = f"{image.name}: {arm.model}, {arm.data}"
    draw_panel(folder / name, picture(arm, image).pixels, arrays, rows, title, warning, picture="image")
