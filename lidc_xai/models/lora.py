"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen matrix W learns an update of low rank, W + s·B·A.

As a parametrization of ``nn.Linear.weight``: the layer stays an ``nn.Linear`` whose ``weight`` is the sum, so that
every way to explain it holds, and merging is taking the parametrization off. (``peft`` replaces the layer by a wrapper,
under other names, which the closed forms do not know.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lidc_xai.errors import UsageError

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel

_MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class LowRank(nn.Module):
    """W (out, in) -> W + (alpha / rank)·B·A with A (rank, in) drawn at random and B (out, rank) zero at the start."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, dtype=weight.dtype).to(weight.device) / columns**0.5)
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_lora(model: NoduleModel, blocks: int, rank: int, alpha: float, seed: int = 0) -> list[nn.Parameter]:
    """Give the four matrices of each of the last ``blocks`` blocks an update; returns the parameters that learn."""
    network: Any = model.backbone
    if not hasattr(network, "blocks"):
        raise UsageError(f"backbone {model.recipe['backbone']!r} has no transformer blocks; LoRA needs a ViT")
    learning: list[nn.Parameter] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in list(network.blocks)[max(len(network.blocks) - blocks, 0) :]:
            for name in _MATRICES:
                layer = block.get_submodule(name)
                update = LowRank(layer.weight, rank, alpha)
                parametrize.register_parametrization(layer, "weight", update)
                learning += [update.down, update.up]
    return learning


def merge_lora(model: NoduleModel) -> dict[str, Tensor]:
    """Add the updates to their matrices, in place; returns the adapter that ``apply_adapter`` adds to the base again.

    Keys: ``<layer>.down`` and ``<layer>.up`` (already scaled), and everything after the blocks (final norm, head).
    """
    adapter: dict[str, Tensor] = {}
    for name, layer in list(model.named_modules()):
        if parametrize.is_parametrized(layer, "weight"):
            (update,) = layer.parametrizations["weight"]
            adapter[f"{name}.down"] = update.down.detach().clone()
            adapter[f"{name}.up"] = (update.scale * update.up).detach().clone()
            base = layer.parametrizations["weight"].original.detach()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight.data = _merged(base, adapter[f"{name}.down"], adapter[f"{name}.up"])
    after = {name: tensor for name, tensor in model.state_dict().items() if _after_blocks(name)}
    return adapter | {name: tensor.detach().clone() for name, tensor in after.items()}


def apply_adapter(model: NoduleModel, adapter: dict[str, Tensor]) -> None:
    """Turn a model with its base weights into the one that ``merge_lora`` left, in place."""
    layers = {key.removesuffix(".down") for key in adapter if key.endswith(".down")}
    given = {name: tensor for name, tensor in adapter.items() if not name.endswith((".down", ".up"))}
    wanted = {name for name in model.state_dict() if _after_blocks(name)}
    try:
        for name in layers:
            layer: Any = model.get_submodule(name)
            down, up = (adapter[f"{name}.{part}"].to(layer.weight) for part in ("down", "up"))
            layer.weight.data = _merged(layer.weight.data, down, up)
        if set(given) != wanted:
            raise KeyError(sorted(set(given) ^ wanted)[0])
        model.load_state_dict({**model.state_dict(), **given})
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UsageError(f"the adapter does not fit {model.recipe['backbone']!r} ({error})") from error


def _merged(base: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return base + up @ down


def _after_blocks(name: str) -> bool:
    return name.startswith(("backbone.norm.", "backbone.fc_norm.", "head."))
