"""Weights from their publishers' own files into a timm network, or one line that says why they do not fit.

Read: DINO's, DINOv2's and DINOv3's ``.pth`` and full training checkpoints, DeiT's checkpoint, torchvision's ViT, VGG
and ResNet, transformers' ViTs (file or folder), timm's and Lightning's checkpoints (averaged weights where there are
some), PEFT's adapters (merged), safetensors, and a saved model's folder (its backbone). Positions of another input size
are interpolated (bicubic, antialiased).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.files import sha256_of
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.peft_checkpoint import adapter_base, is_peft, merged, without_wrapper
from lidc_xai.models.weight_formats import to_timm_layout, unwrapped

_CLASSIFIERS = ("head.", "head_dist.", "fc.")
_FILES = (
    "weights.safetensors",
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""What holds the weights in a folder of ours, of transformers and of PEFT."""
_SHARDS = "model.safetensors.index.json"
_CONNECT_S = 4


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What training code leaves beside its tensors and what cannot act: ``argparse.Namespace`` (DINO's and timm's
    ``args``) and numpy's scalars (a metric), under the names of numpy 1 and 2.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefdFD", "S", "U")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *((scalar, name) for name in names), *kinds]


def load_weights(module: nn.Module, weights: str | Path, name: str) -> dict[str, Any]:
    """Load ``weights`` ("pretrained" or a path) into ``module``, a timm network of architecture ``name``, in place.

    Returns where they came from: source, sha256 of the file (None from a hub), licence. The classifier in a file is
    dropped where the module has none. Raises ``UsageError`` for a missing path and ``ModelError`` for a file that does
    not fit.

    >>> from safetensors.torch import save_file
    >>> save_file(vit.state_dict(), folder / "vit.safetensors")
    >>> info = load_weights(vit, folder / "vit.safetensors", "vit")
    """
    entry = BACKBONES.get(name)
    config = None if entry else timm.get_pretrained_cfg(name)
    licence = entry.licence if entry else str(config.license) if config and config.license else "unknown"
    if weights == "pretrained":
        tensors, source = _from_hub(name)
        _insert(module, tensors, source, name)
        return {"source": source, "sha256": None, "licence": licence}
    path = weights_file(Path(weights))
    digest = sha256_of(path)
    _refuse_damaged(path, digest, name)
    tensors, part = _file_tensors(path)
    _insert(module, to_timm_layout(tensors, path), str(path), name)
    return {"source": path.name, "sha256": digest, "licence": licence} | ({"part": part} if part else {})


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a folder that holds the weights (of a large model, the index of its parts)."""
    if path.is_dir():
        folders = (path, path / "model") if (path / "model" / "model.json").is_file() else (path,)
        files = [f / name for f in folders for name in (*_FILES, _SHARDS) if (f / name).is_file()]
        if not files:
            raise UsageError(f"{path}: holds none of {', '.join(_FILES)}; give the folder or file of the weights")
        return files[0]
    if not path.is_file():
        raise UsageError(f'{path}: no such weights file; give "pretrained" or the path of the publisher\'s file')
    return path


def _file_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """A file's tensors under their own names, adapters merged; which entry of the file they are, where it has more."""
    tensors, part = unwrapped(read_tensors(path))
    if not is_peft(tensors):
        return tensors, part
    base = without_wrapper(tensors)
    if not any(key.endswith((".weight", "cls_token")) and "classifier" not in key for key in base):  # an adapter alone
        where = adapter_base(path)
        if where is None:
            raise ModelError(
                f"{path}: is an adapter without its base, which its adapter_config.json names but is not here; "
                "put the base's path there, or merge it with PEFT (merge_and_unload) first"
            )
        base = _file_tensors(weights_file(where))[0]
    return merged(tensors, base, path), "merged adapter" if part is None else f"{part}, merged adapter"


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The content of a weights file as it lies there, without running any code from it."""
    try:
        if path.name == _SHARDS:
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign_class = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {foreign_class[1]}" if foreign_class else _one_line(error)
        raise ModelError(
            f"{path}: holds more than tensors, which is not read ({what}); save its state dict alone as safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: is no weights file that can be read ({_one_line(error)})") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__} and no dictionary of tensors; give a state dict")
    return content


def _read_shards(path: Path) -> dict[str, Tensor]:
    names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    return {key: value for name in names for key, value in load_file(path.parent / Path(name).name).items()}


def _one_line(error: Exception) -> str:
    """An error's first line, without the colours that some libraries put into it."""
    return (re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() or [type(error).__name__])[0][:160]


def _insert(module: nn.Module, tensors: dict[str, Tensor], source: str, name: str) -> None:
    wanted = module.state_dict()
    given = {key: value for key, value in tensors.items() if key in wanted or not _dispensable(key, value)}
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


def _dispensable(key: str, value: Tensor) -> bool:
    """What a network without it may leave out: a classifier, and DINOv3's biases where training left them at zero."""
    return key.startswith(_CLASSIFIERS) or (key.endswith((".attn.q_bias", ".attn.v_bias")) and not value.any())


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
    remedy = "give the path of a downloaded file instead, or train from random weights with weights=None"
    if tag is not None:
        return _from_timm(name, tag, remedy), f"hub:{tag}"
    if entry is None or entry.official_url is None:
        raise UsageError(f"backbone {name!r} has no published weights; use weights=None or a file of your own")
    file = entry.official_url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not cached.is_file() and (reason := _unreachable(entry.official_url)):
        raise ModelError(f"pretrained weights of {name!r}: {cached} is absent and {reason}; {remedy}")
    try:
        torch.hub.load_state_dict_from_url(entry.official_url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"pretrained weights of {name!r} ({entry.official_url}): {error}; {remedy}") from error
    return to_timm_layout(unwrapped(read_tensors(cached))[0], cached), entry.official_url


def _from_timm(name: str, tag: str, remedy: str) -> dict[str, Tensor]:
    """timm's weights from the hub's cache or the hub. One quick look says whether it can be reached: its client would
    try again for most of a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(tag)
    repository = config.hf_hub_id if config else None
    cached = try_to_load_from_cache(repository, "model.safetensors") if repository else None
    try:
        if isinstance(cached, str):
            return timm.create_model(tag, pretrained=True, pretrained_cfg_overlay={"file": cached}).state_dict()
        if reason := _unreachable(constants.ENDPOINT):
            raise ModelError(f"pretrained weights of {name!r} ({tag}) could not be had: not in the cache and {reason}")
        return timm.create_model(tag, pretrained=True).state_dict()
    except ModelError as error:
        raise ModelError(f"{error}; {remedy}") from error
    except Exception as error:  # the hub's client raises several unrelated families, all of them "could not fetch"
        where = f"pretrained weights of {name!r} ({tag}) could not be had: {_one_line(error)}"
        raise ModelError(f"{where}; {remedy}") from error


def _unreachable(url: str) -> str | None:
    """Why nothing can be fetched from ``url``, or None where something answers there."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_CONNECT_S):
            return None
    except HTTPError:
        return None  # something answers
    except (OSError, ValueError) as error:
        return f"{urlsplit(url).netloc} cannot be reached ({_one_line(error)})"


def _refuse_damaged(path: Path, digest: str, name: str) -> None:
    """A file that carries the publisher's name must carry the publisher's bytes where their hash is known."""
    entry = BACKBONES.get(name)
    if entry is None or entry.official_sha256 is None or entry.official_url is None:
        return
    if path.name == entry.official_url.rsplit("/", 1)[-1] and not digest.startswith(entry.official_sha256):
        published = entry.official_sha256
        raise ModelError(f"{path}: SHA-256 {digest[:8]}… is not the published {published}…; download it again")
