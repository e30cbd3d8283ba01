"""Any classifier of timm or torchvision by name, with weights from a file, from its publisher, or none at all."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.files import sha256_of
from lidc_xai.imagenet.class_names import ClassNames
from lidc_xai.imagenet.classifier_weights import fetch_published, insert_weights, pretrained_tag
from lidc_xai.imagenet.photographs import InputSpec
from lidc_xai.models.backbones import BACKBONES
from lidc_xai.models.nodule_model import build_backbone
from lidc_xai.models.weight_formats import unwrapped
from lidc_xai.models.weights import read_tensors

RANDOM = "random weights: these maps say nothing about any photograph"


@dataclass(frozen=True)
class Classifier:
    """A classifier in evaluation mode. ``weights``: their source and SHA-256. ``random``: they were never trained."""

    name: str
    model: nn.Module
    spec: InputSpec
    classes: ClassNames | None
    count: int
    weights: dict[str, Any]
    random: bool

    def label(self, index: int) -> str:
        """A class's name, or its number where it has none."""
        return self.classes.short(index) if self.classes else f"class {index}"


def load_classifier(
    name: str,
    weights: str | Path = "pretrained",
    *,
    size: int | None = None,
    labels: Path | None = None,
    seed: int = 0,
) -> Classifier:
    """``name``: a timm name, one of torchvision's, or either with "timm:" or "torchvision:" before it.

    ``weights``: "pretrained" (the publisher's, from the local cache or the network), the path of a file of tensors, or
    "random" (seeded by ``seed``). The number of classes is read from the file. ``size``: side of the input in pixels
    (None: the model's own). ``labels``: a file with one class name per line. Raises ``UsageError`` for an unknown name
    or a missing file, ``ModelError`` for weights that do not fit.

    >>> load_classifier("test_vit", "random").random
    True
    """
    library, short = find_architecture(name)
    content: dict[str, Tensor] | None = None
    path = None
    if str(weights) not in ("random", "pretrained"):
        path = Path(weights)
        if not path.is_file():
            raise UsageError(f"{path}: no such weights file; give a file, 'pretrained' or 'random'")
        content = unwrapped(read_tensors(path))[0]
    own_count = _own_count(library, short)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(library, short, own_count or 1000, size)
        class_count = _classes_in(model, content)
        if class_count is None and own_count == 0:
            raise UsageError(f"model {name!r} has features but no classifier; give a file that holds one as --weights")
        if class_count is not None and class_count != (own_count or 1000):
            model = _build(library, short, class_count, size)
    origin: dict[str, Any] = {"source": "random", "seed": seed, "sha256": None}
    if path is not None and content is not None:
        insert_weights(library, short, model, content, path)
        origin = {"source": path.name, "sha256": sha256_of(path)}
    elif str(weights) == "pretrained":
        origin = fetch_published(library, short, model)
    model.eval()
    spec = input_spec(library, short, model, size)
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, *spec.size))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] == 0:
        raise UsageError(f"model {name!r} is no classifier: it gives no row of class scores")
    count = outputs.shape[1]
    classes = ClassNames.from_file(labels, count) if labels is not None else ClassNames.of_imagenet(count)
    return Classifier(f"{library}:{short}", model, spec, classes, count, origin, str(weights) == "random")


def find_architecture(name: str) -> tuple[str, str]:
    """("timm" | "torchvision", name there); ``UsageError`` with near names where neither knows it."""
    library, _, short = name.rpartition(":")
    theirs = torchvision.models.list_models(module=torchvision.models)
    if library in ("", "timm") and (timm.is_model(short) or short in BACKBONES):
        return "timm", short
    if library in ("", "torchvision") and short in theirs:
        return "torchvision", short
    near = difflib.get_close_matches(short, [*timm.list_models(), *theirs], n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models() and torchvision.models.list_models()"
    raise UsageError(f"unknown model {name!r}; {hint}")


def _own_count(library: str, name: str) -> int:
    """How many classes the publisher's weights have; 0 where they are features alone."""
    if library == "torchvision":
        return 1000
    config = timm.get_pretrained_cfg(pretrained_tag(name))
    return 1000 if config is None or config.num_classes is None else int(config.num_classes)


def _build(library: str, name: str, count: int, size: int | None) -> nn.Module:
    if library == "timm":
        return build_backbone(name, size=size, num_classes=count)
    arguments: dict[str, Any] = {"num_classes": count}
    if size is not None and name.startswith("vit_"):
        arguments["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True
    try:
        return torchvision.models.get_model(name, weights=None, **arguments)
    except ValueError as error:
        raise UsageError(f"model {name!r} cannot be built with {arguments}: {error}") from error


def _classes_in(model: nn.Module, content: dict[str, Tensor] | None) -> int | None:
    """How many classes the file's classifier has, where it is found under the model's own name for it."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if content is None or not layers:
        return None
    last_weight = f"{layers[-1]}.weight"
    key = next((key for key in content if key == last_weight or key.endswith(f".{last_weight}")), None)
    return None if key is None else int(content[key].shape[0])


def input_spec(library: str, name: str, model: nn.Module, size: int | None) -> InputSpec:
    """How photographs are prepared for this model; ImageNet's usual way where it does not say."""
    if library == "torchvision":
        preset: Any = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        side = size or int(preset.crop_size[0])
        ratio = preset.resize_size[0] / preset.crop_size[0]
        short = round(side * ratio)
        return InputSpec((side, side), short, tuple(preset.mean), tuple(preset.std), _kind(preset.interpolation.value))
    config = _data_config(name, model)
    model_size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    rows, columns = (size, size) if size is not None else (int(model_size[0]), int(model_size[1]))
    short = int(min(rows, columns) / (config.get("crop_pct") or 0.875))
    return InputSpec((rows, columns), short, config["mean"], config["std"], _kind(config.get("interpolation", "")))


def _data_config(name: str, model: nn.Module) -> dict[str, Any]:
    """timm's, and for a backbone of the table that of its published weights: one architecture has several."""
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    entry = BACKBONES.get(name)
    if entry is None or entry.official_url is None:
        return config
    if entry.pretrained is None:  # SWAG is torchvision's, evaluated without cutting a border off
        return config | {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "crop_pct": 1.0}
    published = timm.get_pretrained_cfg(entry.pretrained)
    return config | {field: getattr(published, field) for field in ("mean", "std", "crop_pct", "interpolation")}


def _kind(interpolation: str) -> str:
    return "bilinear" if interpolation == "bilinear" else "bicubic"


def class_logits(classifier: Classifier, image: Tensor, path: Path) -> Tensor:
    """(classes,) outputs for one photograph (1, 3, H, W), on the CPU; ``ModelError`` where they are no numbers."""
    with torch.no_grad():
        logits = classifier.model(image)[0].float().cpu()
    if not logits.isfinite().all():
        raise ModelError(f"{classifier.name}: outputs are NaN or infinite for {path}; check the weights")
    return logits
