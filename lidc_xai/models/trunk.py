"""A ViT in two parts: the trunk up to a block, whose tokens can be kept, and what comes after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidc_xai.errors import UsageError

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel


BEFORE_BLOCKS = ("cls_token", "reg_token", "dist_token", "pos_embed", "patch_embed", "norm_pre")
"""Parts of a timm ViT before its first block."""


def trunk_depth(model: NoduleModel, learning_blocks: int) -> int:
    """Blocks that the trunk has where the last ``learning_blocks`` of the model's blocks learn."""
    network = model.backbone
    if not isinstance(network, VisionTransformer):
        name = model.recipe["backbone"]
        raise UsageError(f"backbone {name!r} is no plain ViT, so it has no trunk that could be kept; leave trunk out")
    return max(len(network.blocks) - learning_blocks, 0)


def trunk_modules(model: NoduleModel, depth: int) -> dict[str, Tensor]:
    """Name -> weights of everything before block ``depth``."""
    kept = {}
    for name, tensor in model.backbone.state_dict().items():
        stem, _, rest = name.partition(".")
        if stem in BEFORE_BLOCKS or (stem == "blocks" and int(rest.split(".")[0]) < depth):
            kept[name] = tensor
    return kept


def trunk_tokens(model: NoduleModel, images: Tensor, depth: int) -> Tensor:
    """(B, 3, S, S) preprocessed images -> (B, T, width) tokens before block ``depth``."""
    network: Any = model.backbone
    tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
    for block in network.blocks[:depth]:
        tokens = block(tokens)
    return tokens


def after_trunk(model: NoduleModel, tokens: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """What ``tokens_and_outputs`` gives, from the tokens before block ``depth``."""
    network: Any = model.backbone
    blocks: nn.Sequential = network.blocks
    for block in blocks[depth:]:
        tokens = block(tokens)
    tokens = network.norm(tokens)
    return tokens, model.head(network.forward_head(tokens, pre_logits=True))
