"""Saved models: a folder with weights.safetensors, model.json, MODEL_CARD.md and LICENSE that restores exactly."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

import lidc_xai
from lidc_xai.errors import DataError, LidcXaiError, ModelError, UsageError
from lidc_xai.files import atomic_path, read_json, sha256_of
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.card import licence_notice, model_card
from lidc_xai.models.digest import base_digest
from lidc_xai.models.lora import apply_adapter
from lidc_xai.models.nodule_model import RECIPE_FIELDS, NoduleModel, build_model
from lidc_xai.models.preprocess import Preprocess

FORMAT = "lidc_xai.model"
FORMAT_VERSION = 1
ADAPTER = "adapter.safetensors"
"""Beside the weights of a model fine-tuned by LoRA: its update of the initial weights."""
SHIPPED = Path(__file__).parent / "shipped"
"""Small models that come with the package, each a saved model's folder."""

MEMBERS = "member-[0-9]*"
"""In the folder of an ensemble: its models."""

_FIELDS = (
    "format", "format_version", "recipe", "output_kinds", "preprocess", "target_scaling", "calibration",
    "training_info", "initial_weights", "weights_sha256", "dtype",
)  # fmt: skip
_GROUPS = ("recipe", "preprocess", "target_scaling", "calibration", "training_info", "initial_weights")
_RANDOM = {"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_"}
_SHAPE_KEPT = _RANDOM | {"add_", "clamp_", "constant_", "div_", "fill_", "mul_", "ones_", "sub_", "zero_", "zeros_"}


def save_model(model: NoduleModel, folder: Path | str, *, adapter_only: bool = False) -> Path:
    """Write ``model`` to ``folder`` (replaced as a whole if it exists); a kill leaves the old folder or the new one.

    ``adapter_only``: of a model fine-tuned by LoRA the update, norm and head alone, in half precision (.4 MB for rank 8
    in four blocks of a ViT-S); ``load_model`` then needs the published weights that it started from.

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
        files = _write_tensors(model, temporary, adapter_only)
        description = describe(model) | {"weights_sha256": sha256_of(files[0])}
        text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / "model.json").write_text(text + "\n", encoding="utf-8")
        # safetensors writes for the owner alone; colleagues read the other files
        for file in files:
            shutil.copymode(temporary / "model.json", file)
        (temporary / "MODEL_CARD.md").write_text(model_card(model), encoding="utf-8")
        (temporary / "LICENSE").write_text(licence_notice(model), encoding="utf-8")
    return folder


def _write_tensors(model: NoduleModel, folder: Path, adapter_only: bool) -> list[Path]:
    """Weights, and an adapter where there is one; the first is what the model is loaded from."""
    if adapter_only and model.adapter is None:
        raise UsageError("adapter_only is for a model fine-tuned by LoRA (fit.lora.rank); save this one whole")
    written: list[Path] = []
    groups = {} if adapter_only else {"weights.safetensors": model.state_dict()}
    for name, tensors in (groups | ({ADAPTER: model.adapter} if model.adapter is not None else {})).items():
        values = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        if adapter_only:
            values = {key: tensor.half() for key, tensor in values.items()}
        save_file(values, folder / name, metadata={"format": "pt"})
        written.append(folder / name)
    return written


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


def load_model(path: Path | str, weights: Path | str | None = None) -> NoduleModel:
    """Restore a saved model in evaluation mode on the CPU, bit for bit.

    ``path``: a model folder, a run folder that holds ``model/``, or a name of ``shipped_models()``. ``weights``: of a
    model saved as an adapter, the published weights that it is added to ("pretrained" or a path, as for
    ``build_model``; checked). Raises ``UsageError`` where a path does not exist and ``ModelError`` where it is no
    model, of another format version, damaged, holds NaN, or where ``weights`` are not those that the adapter was made
    for.

    >>> load_model("lidc-small").output_names[0]
    'malignancy'
    """
    folder = _model_folder(Path(path))
    description = _read_description(folder / "model.json")
    if is_adapter(folder):
        return _load_adapted(folder, description, weights)
    if weights is not None:
        raise UsageError(f"{folder}: holds its own weights; leave weights out, it is for models saved as adapters")
    return _load_whole(folder, description)


def _load_whole(folder: Path, description: dict[str, Any]) -> NoduleModel:
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
        with Undrawn():
            model = build_model(**recipe, preprocess=preprocess)
        model.to(_dtype(description["dtype"]))
        model.load_state_dict(tensors)
        model.adapter = load_file(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
        _describe(model, description)
    except SafetensorError as error:
        raise ModelError(f"{weights}: is no safetensors file ({error}); copy the folder again") from error
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError, LidcXaiError) as error:
        raise ModelError(f"{folder / 'model.json'}: does not describe the weights beside it ({error})") from error
    check_finite(model, str(weights))
    return model.eval()


def _load_adapted(folder: Path, description: dict[str, Any], weights: Path | str | None) -> NoduleModel:
    path, start = folder / ADAPTER, description["initial_weights"]
    backbone, source = description["recipe"].get("backbone"), start.get("source")
    if weights is None:
        raise ModelError(
            f"{folder}: is an adapter to the published weights of {backbone!r} ({source}), which do not come with it; "
            'give weights="pretrained" or the path of that file'
        )
    if sha256_of(path) != description["weights_sha256"]:
        raise ModelError(f"{path}: SHA-256 differs from model.json (damaged or replaced file); copy the folder again")
    recipe = {name: description["recipe"].get(name) for name in RECIPE_FIELDS}
    model = build_model(**recipe, weights=weights, preprocess=Preprocess.from_json(description["preprocess"]))
    if base_digest(model.backbone) != start.get("tensors_sha256"):
        made_for = f"{source}, SHA-256 {str(start.get('sha256'))[:8]}…"
        raise ModelError(
            f"{weights}: not the weights of {backbone!r} that {folder.name} was made for ({made_for}); give that file"
        )
    try:
        model.adapter = {name: tensor.float() for name, tensor in load_file(path).items()}
        apply_adapter(model, model.adapter)
        _describe(model, description)
    except (SafetensorError, UsageError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: does not fit the model beside it ({error}); copy the folder again") from error
    check_finite(model, str(path))
    return model.eval()


def _describe(model: NoduleModel, description: dict[str, Any]) -> None:
    model.target_scaling = _pairs(description["target_scaling"])
    model.calibration = _pairs(description["calibration"])
    model.initial_weights = description["initial_weights"]
    model.training_info = description["training_info"]


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
    with torch.device("meta"), Undrawn():
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
    one = {path.parent.name for path in SHIPPED.glob("*/model.json")}
    return sorted(one | {path.parent.parent.name for path in SHIPPED.glob(f"*/{MEMBERS}/model.json")})


def is_adapter(folder: Path) -> bool:
    """Whether a saved model's folder holds an adapter alone, so that it needs the published weights beside it."""
    return (folder / ADAPTER).is_file() and not (folder / "weights.safetensors").is_file()


def member_folders(path: Path | str) -> list[Path]:
    """The saved models behind a path or a shipped name: a cross-validated run's folds, an ensemble's members, or it.

    >>> [folder.name for folder in member_folders("lidc-small")]
    ['lidc-small']
    """
    folder = Path(path)
    if not folder.exists() and str(path) in shipped_models():
        folder = SHIPPED / str(path)
    members = [*folder.glob("fold-*/model"), *folder.glob(MEMBERS)]
    return sorted(members, key=lambda one: int(re.sub(r"\D", "", str(one.relative_to(folder))))) or [folder]


def _model_folder(path: Path) -> Path:
    if not path.exists():
        if path.parts[0] in shipped_models() and (SHIPPED / path).is_dir():
            return _model_folder(SHIPPED / path)
        hint = "; it is the name of a backbone, use build_model" if str(path) in BACKBONES else ""
        raise UsageError(f"{path}: no such model folder{hint} (shipped: {', '.join(shipped_models())})")
    if path.is_file():
        raise ModelError(f"{path}: is a file; a saved model is a folder with model.json and weights.safetensors")
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            return folder
    if list(path.glob(MEMBERS)):
        raise UsageError(
            f"{path}: is an ensemble; give one of its members ({path.name}/member-1) where one model is wanted"
        )
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


class Undrawn(TorchFunctionMode):
    """A context in which filling a tensor with random numbers leaves it as it is, and on the meta device, where only
    shapes are asked for, so does arithmetic in place. Half of the time of loading a small ViT went there.

    For networks all of whose weights are replaced before they are used.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _SHAPE_KEPT:
            tensor = args[0] if args else options.get("tensor")
            if tensor is not None and (name in _RANDOM or tensor.is_meta):
                return tensor
        return func(*args, **options)
