"""A classifier's training in whole epochs by the package's own loop, each kept: a killed run goes on after the last.

training_run.json      what is trained on what: another run in the same folder is refused
checkpoints/last.ckpt  Lightning's: weights, the optimiser's state and the record of each epoch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from pydantic import Field
from torch import Tensor, nn

from lidc_xai.config import Options
from lidc_xai.data.augmentation import mixed_seed
from lidc_xai.errors import DataError
from lidc_xai.files import write_json
from lidc_xai.training.loop.record import read_record
from lidc_xai.training.loop.trainer import run_epochs
from lidc_xai.training.options import MachineOptions

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


class _Batches:
    """The batches of the epoch that it is told."""

    def __init__(self, batches_of: Callable[[int], Batches], steps: int) -> None:
        self.batches_of, self.steps, self.epoch = batches_of, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches_of(self.epoch)  # asked for with the first batch, when a resumed run knows its epoch


class _Classifier(lightning.LightningModule):
    """Cross entropy on the batches of an epoch, then the accuracy on ``test()``."""

    def __init__(
        self, network: nn.Module, options: EpochOptions, batches: _Batches, test: Callable[[], Batches]
    ) -> None:
        super().__init__()
        self.network, self.options, self.batches, self.test_batches = network, options, batches, test
        self.record: list[dict[str, float]] = []
        self.losses: list[tuple[float, int]] = []

    def train_dataloader(self) -> Batches:
        return self.batches

    def configure_optimizers(self) -> Any:
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        given: dict[str, Any] = {"lr": self.options.learning_rate, "weight_decay": self.options.weight_decay}
        adam = self.options.optimiser == "adam"
        optimiser = torch.optim.Adam(learned, **given) if adam else torch.optim.SGD(learned, **given, momentum=0.9)
        if self.options.schedule == "constant":
            return optimiser
        return [optimiser], [torch.optim.lr_scheduler.LambdaLR(optimiser, self._share)]

    def _share(self, epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * epoch / self.options.epochs))

    def on_train_epoch_start(self) -> None:
        self.train()
        self.batches.epoch, self.losses = self.current_epoch, []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        torch.manual_seed(mixed_seed(self.options.seed, self.current_epoch, batch_index))  # dropout
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.losses.append((float(loss.detach()), len(labels)))
        return loss

    def on_train_epoch_end(self) -> None:
        loss = sum(value * count for value, count in self.losses) / sum(count for _, count in self.losses)
        if not math.isfinite(loss):
            raise DataError(f"the loss of epoch {self.current_epoch + 1} is {loss}; lower learning_rate")
        right = accuracy(self.network, self.test_batches(), str(self.device))
        self.record.append({"epoch": self.current_epoch + 1, "loss": loss, "accuracy": right})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = self.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record = list(checkpoint["record"])


def train_epochs(
    network: nn.Module,
    options: EpochOptions,
    folder: Path,
    fingerprint: str,
    train: Callable[[int], Batches],
    test: Callable[[], Batches],
    *,
    steps: int,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Train ``network`` in place, continuing what ``folder`` holds; returns loss and test accuracy of every epoch.

    ``train(epoch)`` gives the batches of an epoch, ``steps`` of them; ``fingerprint`` says what is trained on what.
    ``UsageError`` where ``folder`` holds another run, ``DataError`` where the loss is not finite.
    """
    key = {"fingerprint": fingerprint}
    if read_record(folder / "training_run.json", key) is None:
        write_json(folder / "training_run.json", {"key": key})
    machine = MachineOptions(
        epochs=options.epochs, batch_size=options.batch, device=device, seed=options.seed, logs=False
    )
    module = _Classifier(network, options, _Batches(train, steps), test)
    run_epochs(module, machine, folder, [], clip=None)
    network.eval()
    return module.record


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
