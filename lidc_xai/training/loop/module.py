"""The Lightning module of one run: batches of drawn planes in, losses and validation figures out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lidc_xai.data.dataset import PlaneDataset, TrainingPlanes, standardised, zoomed_targets
from lidc_xai.data.transforms import MovePlanes
from lidc_xai.data.trunk_cache import TrunkCache, TrunkPlanes
from lidc_xai.errors import ModelError
from lidc_xai.models.inference import view_outputs
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.models.trunk import after_trunk
from lidc_xai.training.distillation import blended
from lidc_xai.training.loop.epochs import EpochModule
from lidc_xai.training.loop.losses import MaskHead, masked_loss
from lidc_xai.training.metrics import auc
from lidc_xai.training.options import FitOptions


class MovingAverage:
    """Of the weights that learn, by which epochs are judged and which is kept (EMA): a ← d·a + (1 − d)·w after every
    step, with d = min(decay, (1 + step) / (10 + step)) so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in _learning(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after optimiser step ``step`` in, once."""
        if step == self.step:  # gradients are being accumulated
            return
        self.step = step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in _learning(model).items():
            self.weights[name] = self.weights[name].to(tensor).lerp(tensor, share)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights; its own come back afterwards."""
        learning = _learning(model)
        learnt = {name: tensor.detach().clone() for name, tensor in learning.items()}
        try:
            _put(learning, self.weights)
            yield
        finally:
            _put(learning, learnt)


@torch.no_grad()
def _put(into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(values[name])


def _learning(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class FitModule(EpochModule):
    """Trains ``model`` on the rows ``train`` of ``data`` and validates it on the rows ``validation``.

    ``teacher``: (len(train), outputs) what a better model says of the training rows, in the outputs' units.
    """

    options: FitOptions

    def __init__(
        self,
        model: NoduleModel,
        data: PlaneDataset,
        train: Tensor,
        validation: Tensor,
        options: FitOptions,
        cache: TrunkCache | None = None,
        teacher: Tensor | None = None,
    ) -> None:
        channels, rows = model.preprocess.planes_per_input, train.tolist()
        shown = (
            TrainingPlanes(data, rows, options.augment, options.seed, channels)
            if cache is None
            else TrunkPlanes(cache, rows, options.augment, options.seed, channels)
        )
        super().__init__(shown, options, options.optimiser)
        self.cache = cache
        self.model, self.data, self.validation_rows = model, data, validation
        self.targets = standardised(data.targets, model.output_names, model.target_scaling)
        self.taught = with_soft_labels(self.targets, data, model) if options.loss.soft_labels else self.targets
        if teacher is not None:
            said = standardised(teacher, model.output_names, model.target_scaling)
            self.taught = self.taught.clone()
            self.taught[train] = blended(self.taught[train], said, options.teacher.weight)
        self.positive_weight = _positive_weight(data, train) if options.loss.class_weights else 1.0
        self.move = MovePlanes(model.preprocess.mean)
        self.average = MovingAverage(model, options.optimiser.ema) if options.optimiser.ema else None
        with torch.random.fork_rng(devices=[]):  # its first weights are the run's own, whatever was drawn before
            torch.manual_seed(options.seed)
            self.mask_head = MaskHead(model) if options.loss.mask_weight else None

    def val_dataloader(self) -> DataLoader:
        """One batch that holds nothing: every process evaluates the whole validation part, so that all agree on it."""
        return DataLoader([0])  # type: ignore[arg-type]

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        self.seed_step(batch_index)
        rows, numbers = batch["row"].cpu(), batch["numbers"].cpu()
        if self.cache is None:
            batch = self.move({**batch, "numbers": numbers})
            image = batch["image"] if self.model.preprocess.planes_per_input > 1 else batch["image"][:, 0]
            tokens, outputs = self.model.tokens_and_outputs(self.model.preprocess.apply(image.to(self.dtype)))
        else:
            tokens, outputs = after_trunk(self.model, batch["tokens"].to(self.dtype), self.cache.depth)
        scaling = self.model.target_scaling
        targets = zoomed_targets(self.taught[rows], numbers, self.model.output_names, scaling).to(outputs)
        loss = masked_loss(outputs, targets, self.model.output_kinds, self.options.loss, self.positive_weight)
        if self.mask_head is not None:
            loss = loss + self.options.loss.mask_weight * self.mask_head(tokens, batch["mask"].to(outputs))
        return self.checked(loss, len(rows))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        if self.average is not None:
            self.average.update(self.model, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint["average"] = self.average.weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.weights = checkpoint["average"]

    def kept_weights(self) -> dict[str, Tensor]:
        """What an epoch is judged by and leaves: the model's own weights, or their moving average."""
        return {**self.model.state_dict(), **(self.average.weights if self.average is not None else {})}

    def evaluated(self, rows: Tensor) -> Tensor:
        """(n, outputs) raw outputs of these rows, averaged as the model averages, from the cache where there is one."""
        return evaluated(self.model, self.data, rows, self.cache, self.options.batch_size)

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        rows = self.validation_rows
        with self.average.in_place(self.model) if self.average is not None else nullcontext():
            outputs = self.evaluated(rows)
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


def evaluated(
    model: NoduleModel, data: PlaneDataset, rows: Tensor, cache: TrunkCache | None = None, batch_size: int = 32
) -> Tensor:
    """(n, outputs) raw outputs of rows of ``data``, averaged over what the model averages over."""
    if cache is not None:
        return cache.outputs(model, rows.tolist()).mean(1)
    inputs = model.preprocess.inputs(data.planes[rows])
    return view_outputs(model, inputs, inputs.shape[1] * batch_size).mean(1)


def with_soft_labels(targets: Tensor, data: PlaneDataset, model: NoduleModel) -> Tensor:
    """(n, outputs) targets in which a nodule without a malignancy label has (mean rating - 1) / 4 instead of NaN."""
    if "malignancy" not in model.output_names:
        return targets
    column = model.output_names.index("malignancy")
    rating = pd.to_numeric(data.manifest["malignancy"]).astype("float64").to_numpy(dtype=np.float32, na_value=np.nan)
    soft = (torch.from_numpy(rating) - 1) / 4
    targets = targets.clone()
    targets[:, column] = torch.where(torch.isnan(targets[:, column]), soft.to(targets), targets[:, column])
    return targets


def _positive_weight(data: PlaneDataset, rows: Tensor) -> float:
    if "malignancy" not in data.outputs:
        return 1.0
    labels = data.targets[rows, data.outputs.index("malignancy")]
    return float((labels == 0).sum() / (labels == 1).sum().clamp(min=1))
