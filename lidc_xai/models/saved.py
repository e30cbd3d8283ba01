"""Saved models: a folder with weights.safetensors, model.json, MODEL_CARD.md and LICENSE that restores exactly."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import lidc_xai
from lidc_xai.errors import DataError, LidcXaiError, ModelError, UsageError
from lidc_xai.files import atomic_path, read_json, sha256_of
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.card import licence_notice, model_card
from lidc_xai.models.nodule_model import RECIPE_FIELDS, NoduleModel, build_model
from lidc_xai.models.preprocess import Preprocess

FORMAT = "lidc_xai.model"
FORMAT_VERSION = 1
ADAPTER = "adapter.safetensors"
"""Beside the weights of a model fine-tuned by LoRA: its update of the initial weights."""
SHIPPED = Path(__file__).parent / "shipped"
"""Small models that come with the package, each a saved model's folder."""

_FIELDS = (
    "format", "format_version", "recipe", "output_kinds", "preprocess", "target_scaling", "calibration",
    "training_info", "initial_weights", "weights_sha256", "dtype",
)  # fmt: skip
_GROUPS = ("recipe", "preprocess", "target_scaling", "calibration", "training_info", "initial_weights")


def save_model(model: NoduleModel, folder: Path | str) -> Path:
    """Write ``model`` to ``folder`` (replaced as a whole if it exists); a kill leaves the old folder or the new one.

    >>> path = save_model(model, folder / "saved")
    >>> load_model(path).output_names
    ('malignancy', 'spiculation', 'margin')
    """
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; a saved model is a folder, choose another path")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").is_file():
        raise UsageError(f"{folder}: holds something that is not a saved model; choose another path")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary / "weights.safetensors", metadata={"format": "pt"})
        if model.adapter is not None:
            adapter = {name: tensor.cpu().contiguous() for name, tensor in model.adapter.items()}
            save_file(adapter, temporary / ADAPTER, metadata={"format": "pt"})
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
    ``UsageError`` where the path does not exist and ``ModelError`` where it is no model, of another format version,
    damaged, or holds NaN.

    >>> load_model("lidc-small").output_names[0]
    'malignancy'
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
        recipe = {name: description["recipe"][name] for name in RECIPE_FIELDS}
        preprocess = Preprocess.from_json(description["preprocess"])
        _check_shapes(recipe, weights)
        tensors = load_file(weights)
        model = build_model(**recipe, preprocess=preprocess)
        model.to(_dtype(description["dtype"]))
        model.load_state_dict(tensors)
        model.adapter = load_file(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
        model.target_scaling = _pairs(description["target_scaling"])
        model.calibration = _pairs(description["calibration"])
    except SafetensorError as error:
        raise ModelError(f"{weights}: is no safetensors file ({error}); copy the folder again") from error
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError, LidcXaiError) as error:
        raise ModelError(f"{folder / 'model.json'}: does not describe the weights beside it ({error})") from error
    check_finite(model, str(weights))
    model.initial_weights = description["initial_weights"]
    model.training_info = description["training_info"]
    return model.eval()


def check_finite(model: NoduleModel, where: str) -> None:
    """``ModelError`` where a weight, a scale or a calibration is NaN or infinite: such a model predicts nothing."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{where}: {name} holds NaN or infinite values; its training diverged, train it again")
    numbers = {**model.target_scaling, **model.calibration}
    for name, pair in numbers.items():
        if not all(math.isfinite(value) for value in pair):
            raise ModelError(f"{where}: scale or calibration of {name!r} is not finite ({pair}); train it again")


def _pairs(values: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(pair[0]), float(pair[1])) for name, pair in values.items()}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype {name!r} is none")
    return dtype


def _check_shapes(recipe: dict[str, Any], weights: Path) -> None:
    """The network that ``recipe`` names has the tensors of the file: compared before any memory is taken for it."""
    with safe_open(weights, "pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in build_model(**recipe).state_dict().items()}
    for name, shape in wanted.items():
        if there.get(name) != shape:
            raise ValueError(f"{recipe['backbone']!r} has {name} of shape {shape}, the file has {there.get(name)}")
    if len(there) > len(wanted):
        more = next(name for name in there if name not in wanted)
        raise ValueError(f"{recipe['backbone']!r} has no {more}, which the file has")


def shipped_models() -> list[str]:
    """Names of the models that come with the package: ``load_model("lidc-small")``.

    >>> "lidc-small" in shipped_models()
    True
    """
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
        description = read_json(path)
    except DataError as error:
        raise ModelError(f"{error}; copy the folder again") from error
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
    groups = [name for name in _GROUPS if not isinstance(description[name], dict)]
    if groups:
        raise ModelError(f"{path}: field {groups[0]!r} is no group of fields; copy the folder again")
    for name in ("train_patients", "validation_patients"):
        patients = description["training_info"].get(name, [])
        if not isinstance(patients, list) or not all(isinstance(one, str) for one in patients):
            raise ModelError(f"{path}: field 'training_info.{name}' is no list of patients; copy the folder again")
    return description
