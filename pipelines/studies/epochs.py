"""A classifier's training in whole epochs, each kept: the same command goes on after the last one that was finished.

checkpoint.safetensors   parameters, buffers and the optimiser's state; in its header what was trained on what
                         (another run is refused) and the record of each epoch
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lidc_xai.config import Options
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path
from lidc_xai.progress import track

Batches = Iterable[tuple[Tensor, Tensor]]


class EpochOptions(Options):
    """How a classifier learns. The defaults are those of the CDAM paper's linear classifier."""

    epochs: int = Field(default=10, ge=1, description="Passes over the training images.")
    batch: int = Field(default=128, ge=1, description="Images per step.")
    optimiser: Literal["adam", "sgd"] = Field(default="adam", description="adam, or sgd with momentum 0.9.")
    learning_rate: float = Field(default=3e-4, gt=0, description="Rate at the start.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty.")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="Rate over the epochs.")
    augment: bool = Field(default=True, description="Random resized crop and horizontal flip.")
    standardise: bool = Field(
        default=False,
        description="Linear probe without augmentation: learn on features of mean 0 and variance 1, then fold them in.",
    )
    smallest_crop: float = Field(default=0.08, gt=0, le=1, description="Smallest share of the image that a crop shows.")
    workers: int = Field(default=0, ge=0, description="Processes that read images.")
    seed: int = Field(default=0, ge=0, description="Seed of the new layer, the order and the crops.")


def train_epochs(
    module: nn.Module,
    options: EpochOptions,
    checkpoint: Path,
    fingerprint: str,
    train: Callable[[int], Batches],
    test: Callable[[], Batches],
    *,
    steps: int | None,
    device: str = "cpu",
    title: str = "train",
) -> list[dict[str, float]]:
    """Train ``module`` in place; returns loss and test accuracy of every epoch.

    ``train(epoch)`` gives the batches of an epoch, ``steps`` of them (None: few, one bar shows all epochs);
    ``fingerprint`` says what is trained on what.
    ``UsageError`` where ``checkpoint`` is of another run, ``DataError`` where the loss is not finite.
    """
    module.to(device)
    learned = list(module.parameters())
    optimiser: torch.optim.Optimizer
    if options.optimiser == "adam":
        optimiser = torch.optim.Adam(learned, lr=options.learning_rate, weight_decay=options.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            learned, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay
        )  # fmt: skip
    record = _resume(module, optimiser, checkpoint, fingerprint)
    left = range(len(record), options.epochs)
    for epoch in left if steps else track(left, title, len(left)):
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * _share(options, epoch)
        batches = train(epoch)
        loss = _one_epoch(
            module, optimiser, track(batches, f"{title}, epoch {epoch + 1}", steps) if steps else batches, device
        )
        if not math.isfinite(loss):
            raise DataError(f"{title}: the loss of epoch {epoch + 1} is {loss}; lower learning_rate")
        record.append({"epoch": epoch + 1, "loss": loss, "accuracy": accuracy(module, test(), device)})
        _keep(module, optimiser, checkpoint, fingerprint, record)
    module.eval()
    return record


def accuracy(module: nn.Module, batches: Batches, device: str = "cpu") -> float:
    """Share of images whose most probable class is theirs."""
    was_training = module.training
    module.eval()
    right = count = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((module(images.to(device)).argmax(-1).cpu() == labels).sum())
            count += len(labels)
    module.train(was_training)
    return right / count


def _share(options: EpochOptions, epoch: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / options.epochs)) if options.schedule == "cosine" else 1.0


def _one_epoch(module: nn.Module, optimiser: torch.optim.Optimizer, batches: Batches, device: str) -> float:
    """Mean loss of the epoch."""
    module.train()
    total, count = 0.0, 0
    for images, labels in batches:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(images.to(device)), labels.to(device))
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(labels)
        count += len(labels)
    return total / count


def _keep(
    module: nn.Module, optimiser: torch.optim.Optimizer, path: Path, fingerprint: str, record: list[dict[str, float]]
) -> None:
    """State and record in one file, so that a kill cannot part them."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    for place, state in optimiser.state_dict()["state"].items():
        tensors |= {
            f"optimiser.{place}.{name}": torch.as_tensor(value) for name, value in state.items() if value is not None
        }
    about = json.dumps({"fingerprint": fingerprint, "record": record})
    with atomic_path(path) as temporary:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, temporary, metadata={"about": about})


def _resume(
    module: nn.Module, optimiser: torch.optim.Optimizer, path: Path, fingerprint: str
) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: this checkpoint cannot be read ({error}); delete it to start again") from None
    if about["fingerprint"] != fingerprint:
        raise UsageError(f"{path}: is the checkpoint of another run; choose another --out, or delete it")
    module.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, place, short = name.split(".", 2)
            state.setdefault(int(place), {})[short] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    record: list[dict[str, float]] = about["record"]
    return record
