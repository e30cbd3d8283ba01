"""The Lightning module of one run: batches of row numbers in, losses and validation figures out."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lidc_xai.errors import ModelError
from lidc_xai.models.inference import view_outputs
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.training.loop.augment import Draws, augmented, draw, mixed_seed, moved
from lidc_xai.training.loop.losses import masked_loss
from lidc_xai.training.loop.mask_head import MaskHead
from lidc_xai.training.loop.optimiser import build_optimiser, build_schedule
from lidc_xai.training.loop.planes import PlaneBank
from lidc_xai.training.metrics import auc
from lidc_xai.training.options import FitOptions


class FitModule(lightning.LightningModule):
    """Trains ``model`` on the rows ``train`` of ``bank`` and validates it on the rows ``validation``.

    Everything random in an epoch (order, augmentation, dropout) is seeded from the run's seed and the epoch, so that a
    resumed run repeats what an uninterrupted one does.
    """

    def __init__(
        self, model: NoduleModel, bank: PlaneBank, train: Tensor, validation: Tensor, options: FitOptions
    ) -> None:
        super().__init__()
        self.model = model
        self.bank, self.train_rows, self.validation_rows, self.options = bank, train, validation, options
        self.targets = standardised(bank.targets, model)
        self.taught = with_soft_labels(self.targets, bank, model) if options.loss.soft_labels else self.targets
        self.positive_weight = _positive_weight(bank, train) if options.loss.class_weights else 1.0
        self.draws: Draws | None = None
        with torch.random.fork_rng(devices=[]):  # its first weights are the run's own, whatever was drawn before
            torch.manual_seed(options.seed)
            self.mask_head = MaskHead(model) if options.loss.mask_weight else None

    def train_dataloader(self) -> DataLoader:
        sampler: DistributedSampler = DistributedSampler(
            range(len(self.train_rows)),  # type: ignore[arg-type]
            num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, seed=self.options.seed,
        )  # fmt: skip
        return DataLoader(self.train_rows, batch_size=self._batch_size(), sampler=sampler)  # type: ignore[arg-type]

    def _batch_size(self) -> int:
        """Nodules per step of this process: the batch is shared out, so that more processes take the same steps."""
        return max(self.options.batch_size // self.trainer.world_size, 1)

    def val_dataloader(self) -> DataLoader:
        """One batch that holds nothing: every process evaluates the whole validation part, so that all agree on it."""
        return DataLoader([0])  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        optimiser = build_optimiser(self, self.options.optimiser)
        own = math.ceil(len(self.train_rows) / self.trainer.world_size)
        batches = math.ceil(own / self._batch_size())
        steps = math.ceil(batches / self.options.accumulate)
        schedule = build_schedule(optimiser, self.options.optimiser, steps, self.options.epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        planes, epoch, seed = self.bank.planes, self.current_epoch, self.options.seed
        views, read, side = planes.shape[1], planes.shape[2], planes.shape[-1]
        slices = min(self.options.augment.slices, read)
        self.draws = draw(self.options.augment, len(planes), side, views, slices, seed, epoch)
        self.draws.slice += read // 2 - slices // 2
        self.model.train()

    def training_step(self, rows: Tensor, batch_index: int) -> Tensor:
        # Dropout draws from the global generator, which a restart would leave elsewhere.
        torch.manual_seed(mixed_seed(self.options.seed, self.current_epoch, batch_index, self.global_rank))
        rows = rows.cpu()
        assert self.draws is not None
        chosen = rows, self.draws.view[rows], self.draws.slice[rows]
        changed = augmented(self.bank.planes[chosen].to(self.device), self.draws, rows, self.model.preprocess.mean)
        tokens, outputs = self.model.tokens_and_outputs(self.model.preprocess.apply(changed.to(self.dtype)))
        targets = self._targets_under_zoom(rows).to(outputs)
        loss = masked_loss(outputs, targets, self.model.output_kinds, self.options.loss, self.positive_weight)
        if self.mask_head is not None:
            assert self.bank.masks is not None
            masks = moved(self.bank.masks[chosen].to(changed), self.draws, rows)
            loss = loss + self.options.loss.mask_weight * self.mask_head(tokens, masks)
        if not torch.isfinite(loss):
            rate = self.options.optimiser.lr
            raise ModelError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch}, step {batch_index}; "
                f"lower optimiser.lr (now {rate:g}) or use precision 32-true (now {self.options.precision})"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(rows), sync_dist=True)
        return loss

    def _targets_under_zoom(self, rows: Tensor) -> Tensor:
        """A zoomed nodule has a zoomed diameter; everything else keeps its rating."""
        targets = self.taught[rows]
        if "diameter" in self.model.output_names and self.options.augment.scale and self.draws is not None:
            column = self.model.output_names.index("diameter")
            mean, sd = self.model.target_scaling["diameter"]
            targets = targets.clone()
            targets[:, column] = ((targets[:, column] * sd + mean) * self.draws.zoom[rows] - mean) / sd
        return targets

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        rows = self.validation_rows
        planes = self.bank.evaluated(self.model.preprocess.slices)[rows]
        outputs = view_outputs(self.model, planes, planes.shape[1] * self.options.batch_size).mean(1)
        targets = self.targets[rows]
        plain = self.options.loss.model_copy(update={"label_smoothing": 0.0})
        loss = masked_loss(outputs, targets, self.model.output_kinds, plain)
        if not torch.isfinite(loss):
            raise ModelError(
                f"the validation loss became {float(loss)} in epoch {self.current_epoch}; lower optimiser.lr"
            )
        self.log("val_loss", loss, batch_size=1, prog_bar=True)
        if "malignancy" in self.model.output_names:
            column = self.model.output_names.index("malignancy")
            present = torch.isfinite(targets[:, column])
            value = auc(targets[present, column].numpy(), outputs[present, column].numpy())
            self.log("val_auc", float(value), batch_size=1, prog_bar=True)


def standardised(targets: Tensor, model: NoduleModel) -> Tensor:
    """(n, outputs) in own units -> what the outputs are trained to be: labels stay, biomarkers become z-scores."""
    columns = []
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        mean, sd = model.target_scaling[name] if kind == "regression" else (0.0, 1.0)
        columns.append((targets[:, column] - mean) / sd)
    return torch.stack(columns, dim=1)


def with_soft_labels(targets: Tensor, bank: PlaneBank, model: NoduleModel) -> Tensor:
    """(n, outputs) targets in which a nodule without a malignancy label has (mean rating - 1) / 4 instead of NaN."""
    if "malignancy" not in model.output_names:
        return targets
    column = model.output_names.index("malignancy")
    rating = pd.to_numeric(bank.manifest["malignancy"]).astype("float64").to_numpy(dtype=np.float32, na_value=np.nan)
    soft = (torch.from_numpy(rating) - 1) / 4
    targets = targets.clone()
    targets[:, column] = torch.where(torch.isnan(targets[:, column]), soft.to(targets), targets[:, column])
    return targets


def _positive_weight(bank: PlaneBank, rows: Tensor) -> float:
    if "malignancy" not in bank.output_names:
        return 1.0
    labels = bank.targets[rows, bank.output_names.index("malignancy")]
    return float((labels == 0).sum() / (labels == 1).sum().clamp(min=1))
