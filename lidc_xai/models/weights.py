"""Weights from their publishers' own files into a timm network, or one line that says why they do not fit.

Read: DINO's and DINOv2's ``.pth``, DeiT's checkpoint, torchvision's ViT, VGG and ResNet, Lightning checkpoints,
safetensors, and a saved model's folder (its backbone). Positions of another input size are interpolated (bicubic,
antialiased).
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.weight_formats import to_timm_layout

_CLASSIFIERS = ("head.", "head_dist.", "fc.")


def load_weights(module: nn.Module, weights: str | Path, name: str) -> dict[str, Any]:
    """Load ``weights`` ("pretrained" or a path) into ``module``, a timm network of architecture ``name``, in place.

    Returns where they came from: source, sha256 of the file (None from a hub), licence. The classifier in a file is
    dropped where the module has none. Raises ``UsageError`` for a missing path and ``ModelError`` for a file that does
    not fit.
    """
    entry = BACKBONES.get(name)
    licence = entry.licence if entry else _timm_licence(name)
    if weights == "pretrained":
        tensors, source = _from_hub(name)
        _insert(module, tensors, source, name)
        return {"source": source, "sha256": None, "licence": licence}
    path = Path(weights)
    if path.is_dir():
        path = next((p for p in (path, path / "model") if (p / "model.json").is_file()), path) / "weights.safetensors"
    if not path.is_file():
        raise UsageError(f'{path}: no such weights file; give "pretrained" or the path of the publisher\'s file')
    digest = sha256_of(path)
    _refuse_damaged(path, digest, name)
    _insert(module, to_timm_layout(read_tensors(path), path), str(path), name)
    return {"source": path.name, "sha256": digest, "licence": licence}


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The content of a weights file as it lies there, without running any code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelError(
            f"{path}: holds more than tensors, which is not read ({reason}); save its state dict alone as safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: is no weights file that can be read ({str(error).splitlines()[0][:160]})") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__} and no dictionary of tensors; give a state dict")
    return content


def _insert(module: nn.Module, tensors: dict[str, Tensor], source: str, name: str) -> None:
    wanted = module.state_dict()
    given = {key: value for key, value in tensors.items() if key in wanted or not key.startswith(_CLASSIFIERS)}
    if "pos_embed" in given and "pos_embed" in wanted:
        given["pos_embed"] = _resized_positions(module, given["pos_embed"])
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [key for key in wanted if key in given and wanted[key].shape != given[key].shape]
    if not (missing or unexpected or shapes):
        module.load_state_dict(given)
        return
    if missing and not unexpected and not shapes and all(key.startswith(_CLASSIFIERS) for key in missing):
        raise ModelError(f"{source}: has no classifier ({missing[0]}); build {name!r} with num_classes=0")
    faults = []
    if shapes:
        key = shapes[0]
        faults.append(f"{key} is {tuple(given[key].shape)} there and {tuple(wanted[key].shape)} here")
    if missing:
        faults.append(f"{len(missing)} missing, first {missing[0]}")
    if unexpected:
        faults.append(f"{len(unexpected)} not known here, first {unexpected[0]}")
    raise ModelError(f"{source}: weights of another architecture than {name!r}: {'; '.join(faults)}")


def _resized_positions(module: nn.Module, positions: Tensor) -> Tensor:
    """Positions for the module's token grid; a table that is not a square grid plus prefix is left for the shape
    check.
    """
    prefix = 0 if getattr(module, "no_embed_class", False) else int(getattr(module, "num_prefix_tokens", 1))
    patch_embed: Any = module.patch_embed
    rows, columns = patch_embed.grid_size
    patches = positions.shape[1] - prefix
    if patches == rows * columns or patches < 1 or int(patches**0.5) ** 2 != patches:
        return positions
    return resample_abs_pos_embed(positions, new_size=[rows, columns], num_prefix_tokens=prefix)


def _from_hub(name: str) -> tuple[dict[str, Tensor], str]:
    entry = BACKBONES.get(name)
    tag = entry.pretrained if entry else name
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    remedy = "give the path of a downloaded file instead, or train from random weights with weights=None"
    if tag is not None:
        try:
            return timm.create_model(tag, pretrained=True).state_dict(), f"hub:{tag}"
        except Exception as error:  # the hub's client raises several unrelated families, all of them "could not fetch"
            where = "not in the cache and HF_HUB_OFFLINE is set" if offline else str(error).splitlines()[0][:160]
            raise ModelError(f"pretrained weights of {name!r} ({tag}) could not be had: {where}; {remedy}") from error
    if entry is None or entry.official_url is None:
        raise UsageError(f"backbone {name!r} has no published weights; use weights=None or a file of your own")
    file = entry.official_url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if offline and not cached.is_file():
        raise ModelError(f"pretrained weights of {name!r}: {cached} is absent and HF_HUB_OFFLINE is set; {remedy}")
    try:
        torch.hub.load_state_dict_from_url(entry.official_url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"pretrained weights of {name!r} ({entry.official_url}): {error}; {remedy}") from error
    return to_timm_layout(read_tensors(cached), cached), entry.official_url


def _timm_licence(name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    return str(config.license) if config is not None and config.license else "unknown"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_damaged(path: Path, digest: str, name: str) -> None:
    """A file that carries the publisher's name must carry the publisher's bytes where their hash is known."""
    entry = BACKBONES.get(name)
    if entry is None or entry.official_sha256 is None or entry.official_url is None:
        return
    if path.name == entry.official_url.rsplit("/", 1)[-1] and not digest.startswith(entry.official_sha256):
        published = entry.official_sha256
        raise ModelError(f"{path}: SHA-256 {digest[:8]}… is not the published {published}…; download it again")
