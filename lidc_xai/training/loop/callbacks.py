"""What happens around Lightning's epochs: a table of figures that survives a kill, a bar on standard error, silence."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from torch import Tensor

from lidc_xai.csv_files import write_csv


class History(lightning.Callback):
    """One row per epoch (epoch, train_loss, val_loss, val_auc, lr), kept in the checkpoint and in ``history.csv``."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]
        self.rows.append({"epoch": trainer.current_epoch, **figures, "lr": rate})
        if self.path is not None and trainer.is_global_zero:
            write_csv(self.path, self.table())

    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class BestWeights(lightning.Callback):
    """The weights of the best epoch so far, on the CPU, kept in the checkpoint. Equal figures: the earlier epoch."""

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.sign = monitor, 1.0 if mode == "min" else -1.0
        self.epoch, self.value = -1, math.inf
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        if self.epoch < 0 or value < self.value:
            module: Any = pl_module
            self.epoch, self.value = trainer.current_epoch, value
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in module.kept_weights().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "value": self.value, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.value, self.weights = (state_dict[name] for name in ("epoch", "value", "weights"))


class EpochBar(lightning.Callback):
    """A bar over epochs, moving with every batch, with the time left and the last validation figures."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[epoch]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=trainer.max_epochs, completed=trainer.current_epoch, epoch=_epoch_words(trainer, 0)
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = trainer.num_training_batches
        done = (batch_idx + 1) / batches if isinstance(batches, int) and batches else 0.0
        words = _epoch_words(trainer, batch_idx + 1)
        self._bar.update(self._task, completed=trainer.current_epoch + done, epoch=words)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = {name: value for name, value in figures.items() if name.startswith("val_")} or figures
        words = ", ".join(f"{name.replace('val_', 'validation ')} {value:.3f}" for name, value in shown.items())
        self._bar.update(self._task, completed=trainer.current_epoch + 1, description=words)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _epoch_words(trainer: lightning.Trainer, batch: int) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch {batch}/{trainer.num_training_batches:g}"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's notes on devices, workers and logging intervals are not ours to show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
