"""The publishers' key layouts, turned into timm's.

DINO and DeiT already use timm's keys. DINOv2 adds a mask token, which is dropped, and with registers keeps a position
for CLS, which timm adds to the CLS token itself; DINOv3 calls its registers storage tokens. torchvision's ViT, VGG and
ResNet and transformers' ViTs (ViT, DeiT, DINOv2 with and without registers, DINOv3) have their own names, the latter in
two spellings: that of files on the hub (``encoder.layer.0.attention.attention.query``) and that of the modules since
version 5 (``layers.0.attention.q_proj``). query, key and value become one matrix; DINOv3 has no bias of the key, which
timm keeps as ``q_bias`` and ``v_bias``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidc_xai.errors import ModelError

_WRAPPERS = (
    "teacher", "state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model", "model_state", "student",
)  # fmt: skip
"""What training code calls the tensors in its checkpoints; averaged weights come first."""
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
_DINOV3 = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_ANCHOR = re.compile(r"^(?:.*\.)?embeddings\.patch_embeddings\.(?:projection\.)?weight$")
_BLOCK = r"^(?:.*\.)?(?:encoder\.)?(?:layers?|blocks)\.(\d+)\."
_RULES = (
    (_BLOCK, r"blocks.\1."),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"\.attention\.(?:attention\.)?(?:query\b|q_proj\b)", ".attn.q"),
    (r"\.attention\.(?:attention\.)?(?:key\b|k_proj\b)", ".attn.k"),
    (r"\.attention\.(?:attention\.)?(?:value\b|v_proj\b)", ".attn.v"),
    (r"\.attention\.(?:output\.dense|o_proj)\b", ".attn.proj"),
    (r"\.intermediate\.dense\b", ".mlp.fc1"),
    (r"\.output\.dense\b", ".mlp.fc2"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\b", ".mlp.fc1"),
    (r"\.mlp\.(?:weights_out|down_proj)\b", ".mlp.fc2"),
)
_SPLIT = re.compile(r"^(.*\.attn)\.([qkv])\.(weight|bias)$")
_ONLY_THERE = ("pooler.", "decoder.", "mask_token", "rope_embeddings.")


def to_timm_layout(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """State dict with timm's keys from a file's tensors; ``ModelError`` where no known layout is found."""
    if is_transformers(tensors):
        return from_transformers(tensors)
    tensors = _without_prefix(tensors, path)
    if "class_token" in tensors:
        return _renamed(tensors, _TORCHVISION_VIT)
    if "features.0.weight" in tensors and "classifier.0.weight" in tensors:
        return _vgg(tensors)
    if "storage_tokens" in tensors:
        return _dinov3(tensors)
    if "mask_token" in tensors or "register_tokens" in tensors:
        return _dinov2(tensors)
    return tensors


def unwrapped(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], str | None]:
    """The tensors inside what training code saves around them, and the entry that they were taken from (None: the
    file holds nothing else).
    """
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping):
            tensors, inner = unwrapped(content[name])
            return tensors, name if inner is None else f"{name}.{inner}"
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}, None


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
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key).replace(".mlp.w12.", ".mlp.fc1."): value
        for key, value in tensors.items()
        if key != "mask_token"
    }
    converted = {key.replace(".mlp.w3.", ".mlp.fc2."): value for key, value in converted.items()}
    if "register_tokens" in converted:
        positions = converted["pos_embed"]
        converted["reg_token"] = converted.pop("register_tokens")
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
    return converted


def _dinov3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions are computed, the key's bias is zero by definition: neither is taken over."""
    converted: dict[str, Tensor] = {}
    for key, value in _renamed(tensors, _DINOV3).items():
        if key.endswith(".attn.qkv.bias"):
            place = key.removesuffix("qkv.bias")
            converted[f"{place}q_bias"], _, converted[f"{place}v_bias"] = value.chunk(3)
        elif not key.startswith(("mask_token", "rope_embed", "local_cls_norm")) and not key.endswith(".bias_mask"):
            converted[key] = value
    return converted


def is_transformers(tensors: dict[str, Tensor]) -> bool:
    """Whether these keys are transformers'."""
    return any(_ANCHOR.match(key) for key in tensors)


def from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names."""
    anchor = next(key for key in tensors if _ANCHOR.match(key))
    prefix = anchor[: anchor.index("embeddings.")]
    renamed = {timm_name(key.removeprefix(prefix)): value for key, value in tensors.items()}
    kept = {key: value for key, value in renamed.items() if not key.startswith(_ONLY_THERE)}
    rotary = "pos_embed" not in kept
    return _registers(_joined_mlp(_joined_attention(_scales(kept, rotary), rotary), rotary))


def timm_name(key: str) -> str:
    """One key's name in timm, with query, key and value still apart (``attn.q``); both spellings give the same."""
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key


def _scales(tensors: dict[str, Tensor], rotary: bool) -> dict[str, Tensor]:
    if not rotary:
        return tensors
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key): value for key, value in tensors.items()}


def _joined_attention(tensors: dict[str, Tensor], rotary: bool) -> dict[str, Tensor]:
    """One ``qkv`` from query, key and value; a part that is absent is left for the check of shapes to name."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _SPLIT.match(key)
        if match is None:
            joined[key] = value
        else:
            place, part, kind = match.groups()
            parts.setdefault(f"{place} {kind}", {})[part] = value
    for name, three in parts.items():
        place, kind = name.split()
        if rotary and kind == "bias":
            joined |= {f"{place}.{part}_bias": value for part, value in three.items() if part != "k"}
        else:
            joined[f"{place}.qkv.{kind}"] = torch.cat([three[part] for part in "qkv" if part in three])
    return joined


def _joined_mlp(tensors: dict[str, Tensor], rotary: bool) -> dict[str, Tensor]:
    """Gated layers: timm packs DINOv2's two input matrices into one and keeps DINOv3's apart."""
    made: dict[str, Tensor] = {}
    for key, value in tensors.items():
        gate = key.replace(".mlp.up_proj.", ".mlp.gate_proj.")
        if ".mlp.up_proj." in key and gate not in tensors:
            made[key.replace("up_proj", "fc1")] = value
        elif ".mlp.up_proj." in key and rotary:
            made[key.replace("up_proj", "fc1_x")] = value
            made[key.replace("up_proj", "fc1_g")] = tensors[gate]
        elif ".mlp.up_proj." in key:
            made[key.replace("up_proj", "fc1")] = torch.cat([tensors[gate], value])
        elif ".mlp.gate_proj." not in key:
            made[key] = value
    return made


def _registers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    registers = tensors.get("reg_token")
    if registers is not None and registers.shape[1] == 0:
        del tensors["reg_token"]
    elif registers is not None and "pos_embed" in tensors:  # timm adds the class token's position to the token
        positions = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    return tensors
