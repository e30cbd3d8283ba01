"""Lightning's trainer as this project sets it up: quiet, checkpointed every epoch, best epoch by validation."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from lidc_xai.errors import ModelError, StorageError, UsageError
from lidc_xai.files import remove_half_written
from lidc_xai.progress import progress_shown
from lidc_xai.training.loop.callbacks import BestWeights, EpochBar, History, quiet_lightning
from lidc_xai.training.loop.module import FitModule
from lidc_xai.training.options import FitOptions, MachineOptions


def train(module: FitModule, options: FitOptions, folder: Path | None) -> tuple[pd.DataFrame, int]:
    """Run or continue the epochs and leave the best epoch's weights in ``module.model``, on the CPU.

    Returns the history and the best epoch.
    """
    monitor, mode = ("val_loss", "min") if options.monitor == "loss" else ("val_auc", "max")
    history = History(folder / "history.csv" if folder else None)
    best = BestWeights(monitor, mode)
    callbacks: list[lightning.Callback] = [history, best]
    if options.patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=options.patience, check_finite=False))
    on_cpu = _device(options)[0] == "cpu"
    with unfused_attention(module.model, on_cpu and options.precision == "bf16-mixed"):
        run_epochs(module, options, folder, callbacks, options.optimiser.clip)
    module.model.load_state_dict(best.weights)
    module.model.cpu().eval()
    return history.table(), best.epoch


def run_epochs(
    module: lightning.LightningModule,
    options: MachineOptions,
    folder: Path | None,
    callbacks: list[lightning.Callback],
    clip: float | None,
) -> None:
    """Train ``module``, continuing from ``folder/checkpoints`` where a run was interrupted."""
    if progress_shown():
        callbacks.append(EpochBar())
    last = None
    if folder is not None:
        if is_first_process():
            remove_half_written(folder)
        # Saved after the validation of every epoch, so that a kill costs one epoch at most.
        callbacks.append(
            ModelCheckpoint(
                folder / "checkpoints", filename="last", monitor=None, save_top_k=1, save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )  # fmt: skip
        last = folder / "checkpoints" / "last.ckpt"
    rng = torch.get_rng_state()
    try:
        with quiet_lightning():
            trainer = _build_trainer(options, folder, clip, callbacks)
            resume = str(last) if last is not None and last.is_file() else None
            trainer.fit(module, ckpt_path=resume, weights_only=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{folder}: the disk is full; free space and run the same command again") from error
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"out of device memory; lower batch_size (now {options.batch_size}) or raise accumulate"
        ) from error
    except SystemExit as error:  # Lightning turns an interrupt into an exit
        raise KeyboardInterrupt from error
    finally:
        torch.set_rng_state(rng)


def _build_trainer(
    options: MachineOptions, folder: Path | None, clip: float | None, callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    accelerator, devices = _device(options)
    arguments: dict[str, Any] = {
        "max_epochs": options.epochs,
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": options.nodes,
        "precision": options.precision,
        "accumulate_grad_batches": options.accumulate,
        "gradient_clip_val": clip,
        "callbacks": callbacks,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": folder is not None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder or Path.cwd(),
    }
    if options.devices * options.nodes > 1:
        arguments["strategy"] = "ddp"
    if options.logs and folder is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        arguments["logger"] = TensorBoardLogger(folder, name="logs", version="")
    try:
        return lightning.Trainer(**arguments)
    except (MisconfigurationException, ValueError) as error:
        machine = f"device {options.device}, devices {options.devices}, precision {options.precision}"
        raise UsageError(f"{machine}: not possible here ({str(error).splitlines()[0]})") from error


@contextmanager
def on_device(model: nn.Module, options: MachineOptions) -> Iterator[None]:
    """The model on the device that the run learns on; on the CPU again afterwards."""
    try:
        if _device(options)[0] == "gpu":
            model.to(options.device if ":" in options.device else "cuda")
        yield
    finally:
        model.cpu()


def is_first_process() -> bool:
    """Whether this process writes: always, except for the second and later ones of a run on several devices."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def _device(options: MachineOptions) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices for auto, cpu, cuda or cuda:N."""
    if options.device == "auto":
        return ("gpu" if torch.cuda.is_available() else "cpu"), options.devices
    if options.device == "cpu":
        return "cpu", options.devices
    match = re.fullmatch(r"cuda(?::(\d+))?", options.device)
    if not match:
        raise UsageError(f"device {options.device!r}: wanted auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UsageError(f"device {options.device!r}: no CUDA device is visible; use device cpu")
    if match[1] is None:
        return "gpu", options.devices
    if options.devices > 1:
        raise UsageError(f"device {options.device!r} names one device, devices is {options.devices}; use device cuda")
    return "gpu", [int(match[1])]


@contextmanager
def unfused_attention(model: nn.Module, unfused: bool) -> Iterator[None]:
    """timm's attention as two plain products inside, the fused one again afterwards; nothing where not ``unfused``.

    On CPUs PyTorch's fused attention goes backward in bfloat16 some 9 times slower than the two products do (91 against
    11 ms for 32 images of 65 tokens, one core), which made it 40 % of a step.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)] if unfused else []
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
