"""How far models are the same network: fine-tuned copies of one backbone often share all but their last blocks.

Tokens that enter block d are the same for two models whose embedding and first d blocks are the same modules with the
same weights, so that they need to be computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lidc_xai.explain.networks.alterations import alteration
from lidc_xai.explain.networks.families import as_vit
from lidc_xai.explain.networks.wrappers import base_class, unwrapped

_EMBEDDING = ("cls_token", "reg_token", "dist_token", "pos_embed", "patch_embed", "norm_pre", "patch_drop", "pos_drop")


def common_blocks(models: Sequence[nn.Module]) -> list[int]:
    """Per model, the number of leading blocks whose input and weights are those of the first model, its last block
    never counted; 0 where nothing is known to be shared (only timm's ``VisionTransformer`` is compared).

    >>> from copy import deepcopy
    >>> other = deepcopy(vit)
    >>> _ = torch.nn.init.zeros_(other.blocks[-1].norm1.weight)
    >>> common_blocks([vit, other])
    [1, 1]
    """
    bodies = [_body(model) for model in models]
    first = bodies[0] if bodies else None
    if first is None:
        return [0] * len(models)
    return [0 if body is None else _common(first, body) for body in bodies]


def _body(model: nn.Module) -> Any:
    """The plain, unaltered timm ViT inside a model, or None."""
    anatomy = as_vit(model)
    if anatomy is None or alteration(unwrapped(model)) is not None:
        return None
    body: Any = anatomy.model
    if isinstance(getattr(body, "backbone", None), nn.Module):
        body = unwrapped(body.backbone)
    return body if base_class(body, "timm.models.vision_transformer", "VisionTransformer") is type(body) else None


def _common(first: Any, other: Any) -> int:
    if not _same(_embedding(first), _embedding(other)) or _plain(first) != _plain(other):
        return 0
    depth = 0
    for own, theirs in zip(list(first.blocks)[:-1], list(other.blocks)[:-1], strict=False):
        same_kind = repr(own) == repr(theirs) and own.attn.num_heads == theirs.attn.num_heads
        if not same_kind or not _same(own.state_dict(), theirs.state_dict()):
            break
        depth += 1
    return depth


def _embedding(body: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in body.state_dict().items() if name.split(".")[0] in _EMBEDDING}


def _plain(body: Any) -> list[tuple[str, Any]]:
    """Settings of the embedding that are no weights, and its layers in words."""
    settings = ((name, value) for name, value in sorted(vars(body).items()) if name != "training")
    plain = [(name, value) for name, value in settings if isinstance(value, bool | int | str)]
    layers: Iterator[tuple[str, str]] = ((name, repr(getattr(body, name, None))) for name in _EMBEDDING[4:])
    return [*plain, *layers]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        tensor is other[name]
        or (
            tensor.shape == other[name].shape
            and tensor.dtype == other[name].dtype
            and tensor.device == other[name].device
            and torch.equal(tensor, other[name])
        )
        for name, tensor in one.items()
    )
