"""Weights of a classifier: from a file in its own or a publisher's layout, or from the publisher."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
import torchvision
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.weight_formats import unwrapped
from lidc_xai.models.weights import load_weights, read_tensors

_REACH_SECONDS = 5


def pretrained_tag(name: str) -> str:
    """The name under which timm knows the published weights of a backbone or timm model."""
    entry = BACKBONES.get(name)
    return (entry.pretrained or entry.timm_name) if entry else name


def insert_weights(library: str, name: str, model: nn.Module, content: dict[str, Tensor], path: Path) -> None:
    """Load a file's tensors: under the model's own names, behind a prefix, or in a publisher's layout for timm."""
    wanted = model.state_dict()
    first = next(iter(wanted))
    prefixes = [key.removesuffix(first) for key in content if key == first or key.endswith(f".{first}")]
    for prefix in sorted(prefixes, key=len):
        tensors = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
        if tensors.keys() == wanted.keys() and all(tensors[key].shape == wanted[key].shape for key in wanted):
            model.load_state_dict(tensors)
            return
    if library == "timm":
        load_weights(model, path, name)
        return
    missing = [key for key in wanted if key not in content]
    shapes = [key for key in wanted if key in content and content[key].shape != wanted[key].shape]
    extra = [key for key in content if key not in wanted]
    raise ModelError(
        f"{path}: weights of another architecture than torchvision's {name!r}: {len(missing)} missing, "
        f"{len(shapes)} of another shape, {len(extra)} not known here, first {(missing + shapes + extra)[0]}"
    )


def fetch_published(library: str, name: str, model: nn.Module) -> dict[str, Any]:
    """The publisher's weights, from the local cache or the network; returns where they came from.

    ``ModelError``, without a wait for a network that is not there, says which file to bring.
    """
    address, cached = published_address(library, name)
    if address is None:
        raise UsageError(f"model {name!r} has no published weights; give a file as --weights, or --weights random")
    origin = {"source": address, "sha256": None}
    if cached is not None:
        insert_weights(library, name, model, unwrapped(read_tensors(cached))[0], cached)
        return origin
    try:
        _reach(urlsplit(address).hostname or "")
        if library == "timm":
            load_weights(model, "pretrained", name)
        else:
            published = torchvision.models.get_model_weights(name).DEFAULT
            model.load_state_dict(published.get_state_dict(progress=False, check_hash=True))
    except (ModelError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the pretrained weights of {name!r} are not in the cache and could not be fetched "
            f"({str(error).splitlines()[0][:120]}); download {address} where there is a network and give the file as "
            "--weights FILE, or see the mechanics with --weights random"
        ) from None
    return origin


def published_address(library: str, name: str) -> tuple[str | None, Path | None]:
    """(address, cached file) of the publisher's weights, either None where there is none."""
    if library == "torchvision":
        address = str(torchvision.models.get_model_weights(name).DEFAULT.url)
        file = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1]
        return address, file if file.is_file() else None
    config = timm.get_pretrained_cfg(pretrained_tag(name))
    if config is None:
        return None, None
    if not config.hf_hub_id:
        return (config.url if isinstance(config.url, str) and config.url else None), None
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    file_name = config.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(config.hf_hub_id, file_name)
    return hf_hub_url(config.hf_hub_id, file_name), Path(cached) if isinstance(cached, str) else None


def _reach(host: str) -> None:
    """``OSError`` at once where ``host`` cannot be reached; the hub's own client would try for a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError("HF_HUB_OFFLINE is set")
    if getproxies():
        return
    with socket.create_connection((host, 443), timeout=_REACH_SECONDS):
        pass
