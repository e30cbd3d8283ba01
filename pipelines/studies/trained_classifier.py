"""A classifier that was trained here, on disk: what every command that takes a classifier can read.

weights.safetensors   all tensors under the model's own names; classes.txt   a class name a line
training.json         the model's name, its start, the images, options, loss and test accuracy of every epoch
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors.torch import save_file
from torch import nn

from lidc_xai.evaluation.statistics import Interval, bootstrap_mean
from lidc_xai.files import atomic_path, write_json, write_text
from studies.epochs import EpochOptions
from studies.image_sets import ImageSet


@dataclass(frozen=True)
class TrainedClassifier:
    """``accuracy`` on the ``tested`` images after the last epoch; ``record``: every epoch; ``folder`` as above."""

    folder: Path
    accuracy: float
    tested: int
    record: list[dict[str, float]]

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def classes(self) -> Path:
        return self.folder / "classes.txt"


def write_classifier(
    folder: Path,
    network: nn.Module,
    about: Mapping[str, Any],
    images: ImageSet,
    record: Sequence[Mapping[str, float]],
    options: EpochOptions,
) -> TrainedClassifier:
    """Write the three files; returns where they are and the last epoch's accuracy."""
    done = TrainedClassifier(folder, float(record[-1]["accuracy"]), len(images.test), [dict(one) for one in record])
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(done.weights) as temporary:
        save_file(tensors, temporary)
    write_text(done.classes, "\n".join(images.names) + "\n")
    told = {
        **about,
        "images": {"kind": images.kind, "train": len(images.train), "test": len(images.test)},
        "classes": len(images.names),
        "options": options.model_dump(mode="json"),
        "accuracy": done.accuracy,
        "epochs": done.record,
    }
    write_json(folder / "training.json", told)
    return done


def accuracy_interval(accuracy: float, tested: int, seed: int = 0) -> Interval:
    """The accuracy on ``tested`` images with its bootstrap interval."""
    right = round(accuracy * tested)
    return bootstrap_mean([1.0] * right + [0.0] * (tested - right), seed=seed)


def fingerprint_of(*parts: Any) -> str:
    """A short hash of what a result belongs to."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
