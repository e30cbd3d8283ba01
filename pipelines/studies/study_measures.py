"""What several studies measure: tidy tables of values per image, where a map lies on objects, example sheets.

On an image of two objects with known masks M_c and M_o, the map S_c for class c is right where it lies on c's own:

    own share = Σ_{M_c} S_c⁺ / Σ_{M_c ∪ M_o} S_c⁺        auprc = that of S_c against M_c; iou at the area of M_c;
    pointing = is the highest pixel in M_c               own − other = auprc of S_c − auprc of S_o, both against M_c

all averaged over the two classes. A map that cannot tell the two apart has an own share of about ½ and an own − other
of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.evaluation.maps import resampled
from lidc_xai.evaluation.metrics._localisation import average_precision, localisation
from lidc_xai.imagenet.panel import draw_panel
from lidc_xai.imagenet.photographs import Photo
from studies.study_arms import Arm, StudyImage

COLUMNS = ("image", "method", "metric", "value")
OWN_SHARE, AUPRC, OWN_OTHER = "objects/own share", "objects/auprc", "objects/own − other"
IOU, POINTING = "objects/iou", "objects/pointing"
POSITIVE_OWN, POSITIVE_REST = "signs/positive share of the object", "signs/positive share of the rest"
QUIET_REST = "signs/share of the rest below 5 % of the highest"


def tidy(images: Sequence[StudyImage], method: str, values: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """One row per image and metric: ``values``, metric → (n,)."""
    names = [image.name for image in images]
    parts = [
        pd.DataFrame({"image": names, "method": method, "metric": metric, "value": np.asarray(own, dtype=np.float64)})
        for metric, own in values.items()
    ]
    return joined(parts)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of ``tidy`` below each other, with the right types even where there is none."""
    found = [part for part in parts if len(part)]
    if not found:
        return pd.DataFrame({name: pd.Series(dtype=float if name == "value" else object) for name in COLUMNS})
    return pd.concat(found, ignore_index=True)


def object_classes(images: Sequence[StudyImage]) -> Tensor:
    """(n, 2) the classes of images of two objects."""
    return torch.tensor([image.classes for image in images])


def on_objects(arm: Arm, images: Sequence[StudyImage], method: str, relevance: Tensor, seed: int = 0) -> pd.DataFrame:
    """Every figure above of maps (n, 2, h, w), one for each class of ``image.classes``; the mean of the two."""
    masks = np.stack([arm.masks(image) for image in images])
    maps = resampled(relevance.detach().double().cpu(), (masks.shape[-2], masks.shape[-1]))
    own = [localisation(maps[:, k], masks[:, k], 1.0, seed=seed) for k in (0, 1)]
    others = [
        np.array([average_precision(maps[i, 1 - k].numpy(), masks[i, k]) for i in range(len(images))]) for k in (0, 1)
    ]
    values = {
        OWN_SHARE: [own_share(maps[:, k].numpy(), masks[:, k], masks[:, 1 - k]) for k in (0, 1)],
        AUPRC: [one.auprc for one in own],
        OWN_OTHER: [one.auprc - other for one, other in zip(own, others, strict=True)],
        IOU: [one.iou for one in own],
        POINTING: [one.pointing for one in own],
    }
    return tidy(images, method, {metric: np.mean(parts, axis=0) for metric, parts in values.items()})


def sign_shares(arm: Arm, images: Sequence[StudyImage], method: str, relevance: Tensor) -> pd.DataFrame:
    """Of maps (n, 2, h, w): how much of the own object and of all the rest is positive, and how much of the rest is
    below 5 % of the map's highest value (negative included); the mean of both classes."""
    masks = np.stack([arm.masks(image) for image in images])
    size = (masks.shape[-2], masks.shape[-1])
    maps = resampled(relevance.detach().double().cpu(), size).numpy()
    low = maps < 0.05 * maps.max((-2, -1), keepdims=True)
    values = {
        POSITIVE_OWN: ((maps > 0) & masks).sum((-2, -1)) / masks.sum((-2, -1)),
        POSITIVE_REST: ((maps > 0) & ~masks).sum((-2, -1)) / (~masks).sum((-2, -1)),
        QUIET_REST: (low & ~masks).sum((-2, -1)) / (~masks).sum((-2, -1)),
    }
    return tidy(images, method, {metric: own.mean(1) for metric, own in values.items()})


def own_share(maps: NDArray[np.float64], own: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) share of the positive relevance on both objects that lies on the own one; NaN where there is none."""
    positive = np.maximum(maps, 0)
    mine, theirs = (positive * own).sum((1, 2)), (positive * other).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(mine / (mine + theirs))


def labels_of(images: Sequence[StudyImage], logits: Tensor) -> Tensor:
    """(n,) each image's label; the predicted class where it has none."""
    predicted = logits.argmax(-1).cpu()
    own = [int(predicted[k]) if image.label is None else image.label for k, image in enumerate(images)]
    return torch.tensor(own)


def picture(arm: Arm, image: StudyImage) -> Photo:
    """The image as the arm's model sees it."""
    return arm.read(image)


def readable(arm: Arm, count: int) -> list[StudyImage]:
    """The first ``count`` of the arm's images that can be read."""
    found: list[StudyImage] = []
    for image in arm.images:
        if len(found) == count:
            break
        try:
            picture(arm, image)
        except DataError:
            continue  # named as skipped where the images are measured
        found.append(image)
    return found


def draw_example(arm: Arm, image: StudyImage, classes: Sequence[int], maps: Mapping[str, Tensor], folder: Path) -> None:
    """One sheet of maps (classes, h, w) in ``folder``, named after the data, the model and the image."""
    name = f"{arm.data}-{arm.model}-{image.path.stem}.png".replace(" ", "_")
    rows = [arm.classifier.label(label) for label in classes]
    arrays = {key: value.detach().float().cpu().numpy() for key, value in maps.items()}
    warning = "random weights: these maps say nothing" if arm.classifier.random else None
    title = f"{image.name}: {arm.model}, {arm.data}"
    draw_panel(folder / name, picture(arm, image).pixels, arrays, rows, title, warning, picture="image")


def draw_examples(
    arm: Arm, count: int, folder: Path, device: str, maps_of: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
) -> None:
    """Sheets of the first ``count`` images: ``maps_of(image (1,3,H,W), classes (1, 2))`` gives maps (classes, h, w) of
    the two classes that the image shows, of the two most probable where these are not known."""
    for image in readable(arm, count):
        batch = picture(arm, image).tensor.to(device)
        with torch.no_grad():
            top = arm.classifier.model(batch).topk(2).indices.cpu()
        classes = torch.tensor([image.classes]) if arm.masked else top
        draw_example(arm, image, classes[0].tolist(), maps_of(batch, classes), folder)
