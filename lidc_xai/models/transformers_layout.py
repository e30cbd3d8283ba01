"""transformers' key names of ViT, DeiT, DINOv2 (with and without registers) and DINOv3, turned into timm's.

Both spellings are read: that of files on the hub (``encoder.layer.0.attention.attention.query``) and that of the
modules since version 5 (``layers.0.attention.q_proj``). query, key and value become one matrix; DINOv3 has no bias of
the key, which timm keeps as ``q_bias`` and ``v_bias``.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

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
