"""Which parameters learn, the optimiser, and the shape of the learning rate over steps."""

from __future__ import annotations

import math
from typing import Any

from timm.optim import Muon
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler

from lidc_xai.errors import UsageError
from lidc_xai.models.lora import add_lora
from lidc_xai.models.nodule_model import NoduleModel
from lidc_xai.models.trunk import BEFORE_BLOCKS, trunk_modules
from lidc_xai.training.options import FitOptions, OptimiserOptions


def choose_trainable(model: NoduleModel, options: FitOptions) -> int:
    """Freeze what is not to learn; returns the number of parameter tensors that do. The head always learns.

    With LoRA the blocks keep their matrices and learn an update of low rank.

    ``trainable_tensors`` counts back from the model's last parameter tensor, head included (the paper's unit);
    ``trainable_blocks`` counts a ViT's transformer blocks and takes everything after them along.
    """
    parameters = list(model.parameters())
    if options.trainable_tensors is not None:
        open_from = max(len(parameters) - options.trainable_tensors, 0)
        learning = set(map(id, parameters[open_from:]))
    elif options.trainable_blocks is not None:
        open_blocks = 0 if options.lora.rank else options.trainable_blocks
        learning = set(map(id, _after_blocks(model, open_blocks)))
        if options.lora.rank:
            updates = add_lora(model, options.trainable_blocks, options.lora.rank, options.lora.alpha, options.seed)
            learning |= set(map(id, updates))
            parameters = list(model.parameters())
    else:
        learning = set(map(id, parameters))
    learning |= set(map(id, model.head.parameters()))
    for parameter in parameters:
        parameter.requires_grad_(id(parameter) in learning)
    return len(learning)


def _after_blocks(model: NoduleModel, count: int) -> list[nn.Parameter]:
    blocks: Any = getattr(model.backbone, "blocks", None)
    if blocks is None:
        name = model.recipe["backbone"]
        raise UsageError(
            f"backbone {name!r} has no transformer blocks; use trainable_tensors instead of trainable_blocks"
        )
    frozen = trunk_modules(model, len(blocks) - count)
    return [parameter for name, parameter in model.backbone.named_parameters() if name not in frozen]


def build_optimiser(model: nn.Module, options: OptimiserOptions) -> Optimizer:
    """Adam, AdamW or Muon on the parameters that learn; biases, norms and tokens are not decayed.

    Muon (Jordan et al. 2024) moves the matrices of a ViT's blocks by the orthogonalised momentum, at ``muon_lr`` scaled
    to the size of an AdamW step; everything else learns by AdamW at ``lr``, both with Nesterov's look ahead.
    ``layer_decay`` d: block k of n learns at d^(n - k) of the rate, what comes before the blocks at d^(n + 1).
    """
    muon = options.name == "muon"
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = muon and parameter.ndim == 2 and ".blocks." in f".{name}"
        spared = not matrix and (parameter.ndim <= 1 or name.endswith(("_token", "pos_embed")))
        share = options.layer_decay ** _layers_after(model, name) if options.layer_decay < 1 else 1.0
        group = groups.setdefault((not matrix, spared, share), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = 0.0 if spared else options.weight_decay
        group["lr"] = (options.muon_lr if matrix else options.lr) * share
        if muon and not matrix:
            group["use_fallback"] = True
    ordered = [groups[key] for key in sorted(groups)]
    if not muon:
        kind = AdamW if options.name == "adamw" else Adam
        return kind(ordered, lr=options.lr)
    if not any(not fallback for fallback, _, _ in groups):
        raise UsageError("optimiser.name 'muon' needs matrices of transformer blocks that learn; use adamw")
    return Muon(ordered, lr=options.muon_lr, betas=(0.9, 0.999), nesterov=True, adjust_lr_fn="match_rms_adamw")


def _layers_after(model: nn.Module, name: str) -> int:
    """Layers between a parameter and the head: 1 for the last block, n + 1 before the first, 0 after the blocks."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts[:-1]) if part == "blocks"]
    if places:
        blocks: Any = model.get_submodule(".".join(parts[: places[0] + 1]))
        return len(blocks) - int(parts[places[0] + 1])
    if any(part in BEFORE_BLOCKS for part in parts):
        owner = ".".join(parts[: next(place for place, part in enumerate(parts) if part in BEFORE_BLOCKS)])
        return len(getattr(model.get_submodule(owner), "blocks", ())) + 1
    return 0


def build_schedule(optimiser: Optimizer, options: OptimiserOptions, steps_per_epoch: int, epochs: int) -> LRScheduler:
    """A schedule that is advanced after every optimiser step."""
    per_epoch = max(steps_per_epoch, 1)
    if options.schedule == "cyclic":
        half = max(round(options.cycle_epochs * per_epoch / 2), 1)
        top = [float(group["lr"]) for group in optimiser.param_groups]
        base = [rate * options.cycle_lowest for rate in top]
        return CyclicLR(optimiser, base, top, step_size_up=half, mode="triangular2", cycle_momentum=False)
    if options.schedule == "exponential":
        return LambdaLR(optimiser, lambda step: options.gamma ** (step // per_epoch))
    if options.schedule == "cosine":
        warm, total = options.warmup_epochs * per_epoch, max(epochs * per_epoch, 1)

        def share(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            done = min((step - warm) / max(total - warm, 1), 1.0)
            return options.final_share + (1 - options.final_share) * 0.5 * (1 + math.cos(math.pi * done))

        return LambdaLR(optimiser, share)
    return LambdaLR(optimiser, lambda step: 1.0)
