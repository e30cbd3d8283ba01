"""Checkpoints of PEFT: LoRA's pairs of matrices merged into the weights that they adapt, W + scale · B A.

Two kinds are met: an adapter alone (``adapter_model.safetensors`` with ``adapter_config.json``, which names its base),
and the state dict of a wrapped model (``….base_layer.weight`` beside ``….lora_A.default.weight``). Both need
``adapter_config.json`` beside them: rank and alpha, which make the scale, stand nowhere else.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lidc_xai.errors import ModelError
from lidc_xai.models.weight_formats import timm_name

CONFIG = "adapter_config.json"
_WRAPPER = "base_model.model."
_LORA = re.compile(r"^(.*)\.lora_([AB])(?:\.[^.]+)?\.weight$")


def is_peft(tensors: dict[str, Tensor]) -> bool:
    """Whether these tensors are an adapter, or a model wrapped by one."""
    return any(".lora_" in key for key in tensors)


def adapter_base(path: Path) -> Path | None:
    """The base that the adapter at ``path`` (its file) names, where that is a path here."""
    name = _config(path).get("base_model_name_or_path")
    if not name:
        return None
    here = [Path(str(name)), path.parent / str(name)]
    return next((folder for folder in here if folder.exists()), None)


def without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A wrapped model's own tensors under their own names; the trained copy of a module that was saved whole."""
    kept = {}
    for key, value in tensors.items():
        if ".lora_" in key or ".original_module." in key:
            continue
        name = key.removeprefix(_WRAPPER).replace(".base_layer.", ".")
        kept[re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)] = value
    return kept


def merged(adapter: dict[str, Tensor], base: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``base`` with every adapted weight replaced by W + scale · B A, and the adapter's whole modules put in."""
    config = _config(path)
    if any("lora_magnitude" in key for key in adapter):
        raise ModelError(f"{path}: is a DoRA adapter, which is not read; merge it with PEFT (merge_and_unload) first")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in adapter.items():
        match = _LORA.match(key.removeprefix(_WRAPPER))
        if match:
            pairs.setdefault(match[1], {})[match[2]] = value
        elif ".lora_" in key:
            raise ModelError(f"{path}: adapts {key}, which is no linear layer; merge it with PEFT first")
    result = {**base, **without_wrapper(adapter)}
    # Files and modules of transformers spell the same layer in two ways.
    places = {timm_name(key): key for key in result}
    for name, pair in pairs.items():
        place = places.get(timm_name(f"{name}.weight"))
        if place is None or set(pair) != {"A", "B"}:
            raise ModelError(f"{path}: adapts {name}, which its base has not; give the base that it was trained on")
        weight = result[place]
        delta = pair["B"].float() @ pair["A"].float()
        if delta.shape != weight.shape:
            sizes = f"{tuple(delta.shape)} there and {tuple(weight.shape)} in its base"
            raise ModelError(f"{path}: adapts {name}, which is {sizes}; give the base that it was trained on")
        result[place] = (weight.float() + _scale(config, name, path) * delta).to(weight.dtype)
    return result


def _scale(config: dict[str, Any], name: str, path: Path) -> float:
    """alpha / rank, of this module where the configuration has patterns; alpha / √rank under ``use_rslora``."""
    rank, alpha = (_pattern(config, part, name) for part in ("rank_pattern", "alpha_pattern"))
    rank, alpha = rank or config.get("r"), alpha or config.get("lora_alpha")
    if not rank or alpha is None:
        raise ModelError(f"{path.parent / CONFIG}: lacks r or lora_alpha, so the adapter's scale is unknown")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))


def _pattern(config: dict[str, Any], field: str, name: str) -> float | None:
    patterns = config.get(field) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), None)


def _config(path: Path) -> dict[str, Any]:
    file = path.parent / CONFIG
    if not file.is_file():
        raise ModelError(f"{path}: is a PEFT checkpoint without {CONFIG} beside it, so its scale is unknown; add it")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from error
