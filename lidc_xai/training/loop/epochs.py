"""What every training here shares: batches in a seeded order, steps counted for the schedule, a finite loss."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lidc_xai.data.augmentation import mixed_seed
from lidc_xai.errors import ModelError
from lidc_xai.training.loop.optimiser import build_optimiser, build_schedule
from lidc_xai.training.options import MachineOptions, OptimiserOptions


class EpochModule(lightning.LightningModule):
    """Learns from ``shown``, a dataset that is told each epoch by ``shown.epoch``.

    Everything random in an epoch (order, augmentation, dropout) is seeded from the run's seed and the epoch, so that a
    resumed run repeats what an uninterrupted one does.
    """

    def __init__(self, shown: Any, options: MachineOptions, optimiser: OptimiserOptions) -> None:
        super().__init__()
        self.shown, self.options, self.optimiser_options = shown, options, optimiser

    def train_dataloader(self) -> DataLoader:
        sampler: DistributedSampler = DistributedSampler(
            range(len(self.shown)),  # type: ignore[arg-type]
            num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, seed=self.options.seed,
        )  # fmt: skip
        dataset: Dataset = self.shown
        return DataLoader(dataset, batch_size=self._batch_size(), sampler=sampler)

    def _batch_size(self) -> int:
        """Items per step of this process: the batch is shared out, so that more processes take the same steps."""
        return max(self.options.batch_size // self.trainer.world_size, 1)

    def steps_per_epoch(self) -> int:
        """Steps of the optimiser."""
        shown = math.ceil(len(self.shown) / self.trainer.world_size)
        return math.ceil(math.ceil(shown / self._batch_size()) / self.options.accumulate)

    def configure_optimizers(self) -> Any:
        optimiser = build_optimiser(self, self.optimiser_options)
        schedule = build_schedule(optimiser, self.optimiser_options, self.steps_per_epoch(), self.options.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.shown.epoch = self.current_epoch
        self.train()

    def seed_step(self, batch_index: int) -> None:
        """Dropout draws from the global generator, which a restart would leave elsewhere."""
        torch.manual_seed(mixed_seed(self.options.seed, self.current_epoch, batch_index, self.global_rank))

    def checked(self, loss: Tensor, items: int) -> Tensor:
        """The loss, logged; ``ModelError`` where it is no number any more."""
        if not torch.isfinite(loss):
            raise ModelError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch}; lower optimiser.lr "
                f"(now {self.optimiser_options.lr:g}) or use precision 32-true (now {self.options.precision})"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=items, sync_dist=True)
        return loss
