"""A copy of a nodule model that knows removed patches: for fidelity inside the distribution (``model_masked``).

    python pipelines/tune_masked.py --store runs/png --model RUN/fold-0/model --out runs/masked
    lidc-xai benchmark --store runs/png --model RUN/fold-0/model --model-masked runs/masked/model --out runs/bench \\
        --set options.metrics=[fidelity] --set options.replacements=[blur,lung] --set options.up_to=50

The copy is tuned on the patients that the model learned from, with random patches (any share from 0 to half of them)
replaced by lung as around the nodule, labels kept (with --set own_answers=true what the model itself says of whole
images, where labels are learned by heart), every batch turned at random. The validation patients choose the
epoch: of those whose loss on whole images rose by at most 5 %, the one that reads images with patches removed best.
tuned.json holds both losses before and after, and ``usable``: whether there was such an epoch; else the last is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.common import need_model, need_out, need_path, pick_device
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import UsageError
from lidc_xai.evaluation.replacement import Replacement
from lidc_xai.files import write_json
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel
from lidc_xai.models.inference import TURNS, turned
from lidc_xai.models.saved import save_model
from lidc_xai.nodules.cases import store_cases
from lidc_xai.progress import say, track
from lidc_xai.run import Run
from lidc_xai.training.loop.losses import masked_loss
from lidc_xai.training.options import LossOptions

MOST_REMOVED = 0.5
MAY_RISE = 0.05
Precision = Literal["float32", "bfloat16"]


class Tuning(Config):
    """Fields of the script."""

    store: Path | None = Field(None, description="The store that the model learned from.")
    model: str | None = Field(None, description="A model folder, or a shipped model's name.")
    weights: str | None = Field(None, description="Published weights, where the model is an adapter.")
    limit: int | None = Field(None, ge=1, description="Only so many nodules of the training part.")
    epochs: int = Field(3, ge=1, description="Passes over the training part.")
    rate: float = Field(1e-5, gt=0, description="Learning rate of AdamW.")
    batch: int = Field(32, ge=1, description="Images a step.")
    own_answers: bool = Field(False, description="Learn the model's own outputs of whole images in place of labels.")
    blocks: int | None = Field(None, ge=1, description="Only the last so many blocks learn; all by default.")
    precision: Precision = Field("float32", description="Arithmetic of the passes.")


def tune(config: Tuning, run: Run) -> None:
    """Tune, measure, save."""
    out, store = need_out(config), CropStore(need_path(config.store, "--store"))
    model, device = need_model(config.model, config.weights), pick_device(config.device)
    learn, watch = part(model, store, "train_patients", config), part(model, store, "validation_patients", config)
    model.to(device)
    if config.blocks is not None:
        freeze(model, config.blocks)
    generator = torch.Generator().manual_seed(config.seed)
    gone = with_patches_removed(watch["images"], watch["removed"], grid_of(model), generator)

    def losses() -> Losses:
        return Losses(
            *(loss_on(model, images, watch["targets"], config.precision) for images in (watch["images"], gone))
        )

    before = losses()
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=config.rate)
    if config.own_answers:
        learn["targets"] = answers(model, learn["images"], config.precision)
    epochs: list[Losses] = []
    best: dict[str, Tensor] | None = None
    for epoch in range(1, config.epochs + 1):
        learned = one_epoch(model, learn, optimiser, generator, config, f"epoch {epoch}")
        found = losses()
        say(f"epoch {epoch}: {learned:.4f}; whole images {found.whole:.4f}, patches removed {found.removed:.4f}")
        epochs.append(found)
        if chosen_epoch(epochs, before.whole) == epoch:
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if best is not None:
        model.load_state_dict(best)
    kept = chosen_epoch(epochs, before.whole) or config.epochs
    after = epochs[kept - 1]
    model.eval()
    model.adapter = None  # the LoRA update of before says nothing of the tuned weights
    model.training_info = {**model.training_info, "tuned_with_patches_removed": {"epochs": kept}}
    save_model(model, out / "model")
    rise = after.whole / before.whole - 1
    run.results = {
        "before": before.whole, "after": after.whole, "rise": rise, "usable": rise <= MAY_RISE, "epoch": kept,
        "removed_before": before.removed, "removed_after": after.removed,
    }  # fmt: skip
    write_json(out / "tuned.json", run.results)
    print(f"{out / 'model'}: loss on whole images {before.whole:.4f} before, {after.whole:.4f} after ({rise:+.1%})")


class Losses(NamedTuple):
    """Of the validation patients: on whole images, and with random patches removed."""

    whole: float
    removed: float


def chosen_epoch(epochs: Sequence[Losses], whole: float) -> int | None:
    """The epoch (from 1) of the lowest loss with patches removed among those whose loss on whole images is at most 5 %
    above ``whole``; None without one."""
    good = [(one.removed, epoch) for epoch, one in enumerate(epochs, 1) if one.whole / whole - 1 <= MAY_RISE]
    return min(good)[1] if good else None


def one_epoch(
    model: NoduleModel, learn: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator,
    config: Tuning, name: str,
) -> float:  # fmt: skip
    """One pass over the training part; its mean loss."""
    model.train()
    order, total = torch.randperm(len(learn["images"]), generator=generator), 0.0
    for places in track(order.split(config.batch), name, -(-len(order) // config.batch)):
        images = with_patches_removed(learn["images"][places], learn["removed"][places], grid_of(model), generator)
        turn = int(torch.randint(TURNS, (1,), generator=generator))
        outputs, targets = forward(model, turned(images, turn), config.precision), learn["targets"][places]
        loss = masked_loss(outputs, targets.to(outputs.device), model.output_kinds, LossOptions())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(places)
    return total / len(order)


def part(model: NoduleModel, store: CropStore, which: str, config: Tuning) -> dict[str, Tensor]:
    """Images (B,3,S,S), what their pixels become (B,3,S,S), and targets (B,outputs) of one part's axial planes."""
    patients = set(model.training_info.get(which, ()))
    table = store.manifest[store.manifest["patient_id"].isin(patients) & (store.manifest["n_readers_masked"] > 0)]
    if config.limit is not None:
        table = table.sample(frac=1, random_state=config.seed).head(config.limit)
    if table.empty:
        raise UsageError(f"{config.model}: none of its {which} has a nodule with an outline in {store.path}")
    images, removed = [], []
    for lazy in track(store_cases(model, store, table["nodule_id"].tolist(), ("axial",)), which, len(table)):
        case = lazy.load()
        images.append(case.images)
        fill = Replacement("lung", masks=case.masks, parenchyma=case.parenchyma, seed=config.seed)
        removed.append(fill.of(case.images))
    targets = torch.tensor(np.stack([_targets(model, row) for _, row in table.iterrows()]), dtype=torch.float32)
    return {"images": torch.cat(images), "removed": torch.cat(removed), "targets": targets}


def _targets(model: NoduleModel, row: Any) -> np.ndarray:
    """Labels in the model's own scaling; NaN where there is none."""
    values = []
    for name, kind in zip(model.output_names, model.output_kinds, strict=True):
        value = row["label"] if kind == "binary" else row[name]
        mean, sd = (0.0, 1.0) if kind == "binary" else model.target_scaling[name]
        values.append(np.nan if pd.isna(value) else (float(value) - mean) / sd)
    return np.array(values)


def grid_of(model: NoduleModel) -> tuple[int, int]:
    """Patches along rows and columns."""
    found = getattr(getattr(model.backbone, "patch_embed", None), "grid_size", None)
    if found is None:
        raise UsageError(f"backbone {model.recipe['backbone']!r} has no patches to remove")
    return int(found[0]), int(found[1])


def with_patches_removed(images: Tensor, removed: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Every image with a random share (0 to half) of its patches taken from ``removed``."""
    count = grid[0] * grid[1]
    share = MOST_REMOVED * torch.rand(len(images), 1, generator=generator)
    rank = torch.rand(len(images), count, generator=generator).argsort(1).argsort(1)
    gone = (rank < (share * count).round()).view(-1, 1, *grid)
    tall, wide = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    return torch.where(gone.repeat_interleave(tall, -2).repeat_interleave(wide, -1), removed, images)


def forward(model: NoduleModel, images: Tensor, precision: Precision) -> Tensor:
    """(B,outputs) in float32, whatever the passes are run in."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model(images.to(device)).float()


@torch.no_grad()
def answers(model: NoduleModel, images: Tensor, precision: Precision) -> Tensor:
    """(B,outputs) what the model says of whole images, as targets: probabilities of binary outputs."""
    model.eval()
    outputs = torch.cat([forward(model, some, precision).cpu() for some in images.split(64)])
    binary = torch.tensor([kind == "binary" for kind in model.output_kinds])
    return torch.where(binary, outputs.sigmoid(), outputs)


def freeze(model: NoduleModel, blocks: int) -> None:
    """All that lies before the last so many blocks stays as it is."""
    backbone: Any = model.backbone
    for part_of in (backbone.patch_embed, *backbone.blocks[:-blocks]):
        part_of.requires_grad_(False)
    for name in ("cls_token", "pos_embed"):
        getattr(backbone, name).requires_grad_(False)


@torch.no_grad()
def loss_on(model: NoduleModel, images: Tensor, targets: Tensor, precision: Precision) -> float:
    """Loss in evaluation mode."""
    model.eval()
    outputs = torch.cat([forward(model, some, precision).cpu() for some in images.split(64)])
    return float(masked_loss(outputs, targets, model.output_kinds, LossOptions()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("tune_masked", Tuning, tune, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
