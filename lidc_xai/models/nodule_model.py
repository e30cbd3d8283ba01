"""``NoduleModel``: a timm backbone, a head with named outputs, and what is needed to read its numbers in clinical
units.

forward = head(backbone.forward_head(backbone.forward_features(x), pre_logits=True)); for a CLS-pooled ViT the head
reads norm(CLS). A binary output is a logit, calibrated as sigmoid(slope · logit + intercept); a regression output is
standardised, and value = mean + sd · output in its own unit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.models.backbones import BACKBONES, unknown_backbone
from lidc_xai.models.conv_stem import ConvStem, place_tokens
from lidc_xai.models.heads import build_head
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.models.weights import load_weights
from lidc_xai.ratings import OUTPUTS

Kind = Literal["binary", "regression"]


class NoduleModel(nn.Module):
    """A network with named outputs.

    ``output_names`` / ``output_kinds``: one each per column of the result. ``target_scaling``: (mean, sd) in own units
    of each regression output. ``calibration``: (slope, intercept) on the logit of each binary output.
    ``training_info``: what the model learned from (patients, folds, seed, simulated or not); empty for an untrained
    one. ``initial_weights``: source, SHA-256 and licence of the weights that it started from. ``recipe``: the arguments
    of ``build_model`` that rebuild the same architecture. ``adapter``: of a model fine-tuned by LoRA, what turns its
    initial weights into its own (``models.lora``), else None.

    >>> model.output_names, model.preprocess.size
    (('malignancy', 'spiculation', 'margin'), 32)
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        output_names: Sequence[str],
        preprocess: Preprocess,
        recipe: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.output_names: tuple[str, ...] = tuple(output_names)
        self.output_kinds: tuple[Kind, ...] = tuple(output_kind(name) for name in output_names)
        self.preprocess = preprocess
        self.recipe = dict(recipe)
        self.target_scaling: dict[str, tuple[float, float]] = {
            name: (0.0, 1.0) for name in self.output_names if output_kind(name) == "regression"
        }
        self.calibration: dict[str, tuple[float, float]] = {
            name: (1.0, 0.0) for name in self.output_names if output_kind(name) == "binary"
        }
        self.training_info: dict[str, Any] = {}
        self.initial_weights: dict[str, Any] = {"source": None}
        self.adapter: dict[str, Tensor] | None = None

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed images -> (B, width), the vector that the head reads."""
        network: Any = self.backbone
        return network.forward_head(network.forward_features(images), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed images -> (B, outputs): a logit or a standardised value each."""
        return self.head(self.features(images))

    def tokens_and_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives, and before it the backbone's normalised features: (B, T, width) tokens of a ViT."""
        network: Any = self.backbone
        tokens = network.forward_features(images)
        return tokens, self.head(network.forward_head(tokens, pre_logits=True))

    def in_units(self, outputs: Tensor) -> Tensor:
        """(..., outputs) raw -> the same shape: calibrated probabilities, and regression values in their own units."""
        columns = []
        for index, (name, kind) in enumerate(zip(self.output_names, self.output_kinds, strict=True)):
            raw = outputs[..., index]
            if kind == "binary":
                slope, intercept = self.calibration[name]
                columns.append(torch.sigmoid(slope * raw + intercept))
            else:
                mean, sd = self.target_scaling[name]
                columns.append(mean + sd * raw)
        return torch.stack(columns, dim=-1)


def output_kind(name: str) -> Kind:
    """``binary`` for malignancy (median rating above 3 against below 3), ``regression`` for a biomarker."""
    if name not in OUTPUTS:
        raise UsageError(f"unknown output {name!r}; known: {', '.join(OUTPUTS)}")
    return "binary" if name == "malignancy" else "regression"


def build_backbone(
    name: str,
    *,
    size: int | None = None,
    num_classes: int = 0,
    weights: str | Path | None = None,
    dropout: float = 0.0,
    head_dropout: float = 0.0,
    any_size: bool = False,
) -> nn.Module:
    """A bare timm network by a name of ``list_backbones()`` or any timm name.

    ``num_classes=0`` gives features only; with classes the published classifier is loaded too where the file has one.
    ``weights``: None (random) | "pretrained" | path to the official file. ``dropout`` acts inside the blocks of a ViT,
    ``head_dropout`` before the classifier. ``any_size`` lets a ViT take images of other sizes too, with interpolated
    positions.

    >>> network = build_backbone("vit_nodule_p8", size=32)
    >>> network(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 96])
    """
    entry = BACKBONES.get(name)
    timm_name = entry.timm_name if entry else name
    if not timm.is_model(timm_name):
        raise unknown_backbone(name)
    arguments: dict[str, Any] = dict(entry.timm_arguments) if entry else {}
    arguments |= _size_arguments(name, timm_name, size)
    if entry and entry.stem == "conv":
        arguments["embed_layer"] = ConvStem
    if dropout:
        arguments["proj_drop_rate"] = dropout
    if head_dropout:
        arguments["drop_rate"] = head_dropout
    if any_size and "img_size" in arguments:
        arguments["dynamic_img_size"] = True
    try:
        module = timm.create_model(timm_name, pretrained=False, num_classes=num_classes, **arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UsageError(f"backbone {name!r} does not take {given} ({error}); leave the option out for it") from error
    except AssertionError as error:
        raise UsageError(f"backbone {name!r} cannot be built with {arguments}: {error}") from error
    if entry and entry.stem == "conv":
        place_tokens(module)
    if weights is not None:
        load_weights(module, weights, name)
    return module.eval()


def _size_arguments(name: str, timm_name: str, size: int | None) -> dict[str, int]:
    """``img_size`` where the architecture has one (a CNN takes any size); a size that is no multiple of the patch is
    refused.
    """
    entry = BACKBONES.get(name)
    config = timm.get_pretrained_cfg(timm_name)
    fixed = bool(config and config.fixed_input_size)
    if not fixed:
        return {}
    size = size or (entry.input_size if entry else None)
    if size is None:
        return {}
    if entry and entry.patch and size % entry.patch:
        lower = max(size // entry.patch, 1) * entry.patch
        nearest = f"{lower} or {lower + entry.patch}"
        raise UsageError(f"size {size} is no multiple of the {entry.patch} px patch of {name!r}; try {nearest}")
    return {"img_size": size}


def _input_size(module: nn.Module, name: str, size: int | None) -> int:
    if size is not None:
        return size
    patches = getattr(module, "patch_embed", None)
    if patches is not None and getattr(patches, "img_size", None) is not None:
        return int(patches.img_size[0])
    entry = BACKBONES.get(name)
    return entry.input_size if entry else 224


def build_model(
    backbone: str,
    outputs: Sequence[str] = ("malignancy",),
    weights: str | Path | None = None,
    *,
    head: str = "linear",
    size: int | None = None,
    hidden: int | None = None,
    dropout: float = 0.0,
    backbone_dropout: float = 0.0,
    preprocess: Preprocess | None = None,
    seed: int | None = None,
) -> NoduleModel:
    """A ``NoduleModel`` in evaluation mode.

    ``backbone``: a name of ``list_backbones()`` or any timm name; ``outputs``: names of ``ratings.OUTPUTS``;
    ``weights``: None (random) | "pretrained" | path to the publisher's file; ``head``: "linear" | "mlp" (middle width
    ``hidden``) | "bottleneck"; ``size``: side of the input in pixels (None: the backbone's own); ``seed`` fixes random
    initial weights without touching the global generator.

    >>> model = build_model("vit_nodule_p8", ["malignancy", "spiculation"], size=32, seed=0)
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.output_kinds
    (torch.Size([2, 2]), ('binary', 'regression'))
    """
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"outputs must be one or more different names, got {list(names)}")
    for name in names:
        output_kind(name)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        module = build_backbone(backbone, size=size, dropout=backbone_dropout)
        width = int(getattr(module, "head_hidden_size", None) or module.num_features)  # type: ignore[arg-type]
        built = build_head(head, width, names, hidden, dropout)
        start = load_weights(module, weights, backbone) if weights is not None else {"source": None}
    own_size = _input_size(module, backbone, size)
    recipe = {
        "backbone": backbone, "outputs": list(names), "head": head, "size": own_size, "hidden": hidden, "dropout":
        dropout, "backbone_dropout": backbone_dropout,
    }  # fmt: skip
    ready = (preprocess or Preprocess()).with_size(own_size)
    model = NoduleModel(module, built, names, ready, recipe)
    model.initial_weights = start
    return model.eval()


RECIPE_FIELDS = tuple(
    name for name in inspect.signature(build_model).parameters if name not in ("weights", "preprocess", "seed")
)
"""What ``NoduleModel.recipe`` holds."""
