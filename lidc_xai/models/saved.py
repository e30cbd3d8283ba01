"""Saved models: a folder with weights.safetensors, model.json, MODEL_CARD.md and LICENSE that restores exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import lidc_xai
from lidc_xai.errors import LidcXaiError, ModelError, UsageError
from lidc_xai.files import atomic_path
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.card import licence_notice, model_card
from lidc_xai.models.nodule_model import RECIPE_FIELDS, NoduleModel, build_model
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.models.weights import sha256_of

FORMAT = "lidc_xai.model"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "shipped"
"""Small models that come with the package, each a saved model's folder."""

_FIELDS = (
    "format", "format_version", "recipe", "output_kinds", "preprocess", "target_scaling", "calibration",
    "training_info", "initial_weights", "weights_sha256", "dtype",
)  # fmt: skip


def save_model(model: NoduleModel, folder: Path | str) -> Path:
    """Write ``model`` to ``folder`` (replaced as a whole if it exists); a kill leaves the old folder or the new one."""
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; a saved model is a folder, choose another path")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").is_file():
        raise UsageError(f"{folder}: holds something that is not a saved model; choose another path")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary / "weights.safetensors", metadata={"format": "pt"})
        description = describe(model) | {"weights_sha256": sha256_of(temporary / "weights.safetensors")}
        text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / "model.json").write_text(text + "\n", encoding="utf-8")
        # safetensors writes for the owner alone; colleagues read the other files
        shutil.copymode(temporary / "model.json", temporary / "weights.safetensors")
        (temporary / "MODEL_CARD.md").write_text(model_card(model), encoding="utf-8")
        (temporary / "LICENSE").write_text(licence_notice(model), encoding="utf-8")
    return folder


def describe(model: NoduleModel) -> dict[str, Any]:
    """What ``model.json`` holds, less the hash of the weights."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": lidc_xai.__version__,
        "recipe": model.recipe,
        "output_kinds": list(model.output_kinds),
        "preprocess": model.preprocess.to_json(),
        "target_scaling": {name: list(pair) for name, pair in model.target_scaling.items()},
        "calibration": {name: list(pair) for name, pair in model.calibration.items()},
        "initial_weights": model.initial_weights,
        "training_info": model.training_info,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def load_model(path: Path | str) -> NoduleModel:
    """Restore a saved model in evaluation mode on the CPU, bit for bit.

    ``path``: a model folder, a run folder that holds ``model/``, or a name of ``shipped_models()``. Raises
    ``UsageError`` where the path does not exist and ``ModelError`` where it is no model, of another format version, or
    damaged.
    """
    folder = _model_folder(Path(path))
    description = _read_description(folder / "model.json")
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise ModelError(f"{weights}: is missing, so {folder} is no complete saved model; save it again")
    if sha256_of(weights) != description["weights_sha256"]:
        raise ModelError(
            f"{weights}: SHA-256 differs from model.json (damaged or replaced file); copy the folder again"
        )
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ModelError(f"{weights}: is no safetensors file ({error}); copy the folder again") from error
    try:
        recipe = {name: description["recipe"][name] for name in RECIPE_FIELDS}
        model = build_model(**recipe, preprocess=Preprocess.from_json(description["preprocess"]))
        model.to(getattr(torch, description["dtype"]))
        model.load_state_dict(tensors)
        model.target_scaling = {name: (pair[0], pair[1]) for name, pair in description["target_scaling"].items()}
        model.calibration = {name: (pair[0], pair[1]) for name, pair in description["calibration"].items()}
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError, LidcXaiError) as error:
        raise ModelError(f"{folder / 'model.json'}: does not describe the weights beside it ({error})") from error
    model.initial_weights = description["initial_weights"]
    model.training_info = description["training_info"]
    return model.eval()


def shipped_models() -> list[str]:
    """Names of the models that come with the package: ``load_model("lidc-small")``."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model.json"))


def _model_folder(path: Path) -> Path:
    if not path.exists():
        if str(path) in shipped_models():
            return SHIPPED / str(path)
        hint = "; it is the name of a backbone, use build_model" if str(path) in BACKBONES else ""
        raise UsageError(f"{path}: no such model folder{hint} (shipped: {', '.join(shipped_models())})")
    if path.is_file():
        raise ModelError(f"{path}: is a file; a saved model is a folder with model.json and weights.safetensors")
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            return folder
    raise ModelError(f"{path}: holds no model.json, so it is not a saved model; give the model/ folder of a run")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the folder again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{path}: field 'format' is not {FORMAT!r}, so this is no model of this package")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        known = f"this package ({lidc_xai.__version__}) reads format version {FORMAT_VERSION}"
        raise ModelError(
            f"{path}: field 'format_version' is {version!r} and {known}, whose fields mean other things; "
            f"load it with the package version {description.get('package_version', 'that wrote it')} or train again"
        )
    missing = [name for name in _FIELDS if name not in description]
    if missing:
        raise ModelError(f"{path}: lacks the field(s) {', '.join(missing)}; copy the folder again")
    return description
