"""The publishers' key layouts, turned into timm's.

DINO and DeiT already use timm's keys. DINOv2 adds a mask token, which is dropped, and with registers keeps a position
for CLS, which timm adds to the CLS token itself. torchvision's ViT, VGG and ResNet have their own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lidc_xai.errors import ModelError

_WRAPPERS = ("teacher", "state_dict", "model", "model_state", "student")
_ANCHORS = (
    "patch_embed.proj.weight", "patch_embed.proj.0.weight", "conv_proj.weight", "features.0.weight", "conv1.weight",
)  # fmt: skip
"""First layer of each layout: what stands before it is a prefix that some training code added."""

_TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
_TORCHVISION_VGG = (
    (r"^classifier\.0\.", "pre_logits.fc1."),
    (r"^classifier\.3\.", "pre_logits.fc2."),
    (r"^classifier\.6\.", "head.fc."),
)


def to_timm_layout(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """State dict with timm's keys from what a file holds; ``ModelError`` where no known layout is found."""
    tensors = _without_prefix(_unwrapped(content), path)
    if "class_token" in tensors:
        return _renamed(tensors, _TORCHVISION_VIT)
    if "features.0.weight" in tensors and "classifier.0.weight" in tensors:
        return _vgg(tensors)
    if "mask_token" in tensors or "register_tokens" in tensors:
        return _dinov2(tensors)
    return tensors


def _unwrapped(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The dictionary of tensors inside what training code saves around it."""
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping):
            return _unwrapped(content[name])
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _without_prefix(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    prefixes = {
        key.removesuffix(anchor)
        for key in tensors
        for anchor in _ANCHORS
        if key == anchor or key.endswith(f".{anchor}")
        if not re.search(r"(layer\d|downsample|blocks?|encoder_layer_\d+)\.", key)
    }
    if not prefixes:
        first = next(iter(tensors), "nothing")
        raise ModelError(f"{path}: holds no known first layer ({', '.join(_ANCHORS)}); its first key is {first}")
    prefix = next((p for p in sorted(prefixes) if "teacher" in p), min(prefixes, key=len))
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _renamed(tensors: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def _vgg(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm keeps VGG's two fully connected layers as convolutions."""
    renamed = _renamed(tensors, _TORCHVISION_VGG)
    for key, kernel in (("pre_logits.fc1.weight", 7), ("pre_logits.fc2.weight", 1)):
        weight = renamed[key]
        renamed[key] = weight.reshape(weight.shape[0], -1, kernel, kernel)
    return renamed


def _dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Also undoes the chunks that full training checkpoints put around the blocks (blocks.0.3. -> blocks.3.)."""
    converted = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value
        for key, value in tensors.items()
        if key != "mask_token"
    }
    if "register_tokens" in converted:
        positions = converted["pos_embed"]
        converted["reg_token"] = converted.pop("register_tokens")
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
    return converted
