"""Backbones, pretrained weights, heads and saved models: everything that turns a plane of CT into outputs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.models.backbones import BACKBONES, Backbone, backbone_entry, list_backbones
    from lidc_xai.models.nodule_model import NoduleModel, build_backbone, build_model
    from lidc_xai.models.preprocess import Preprocess
    from lidc_xai.models.saved import load_model, save_model, shipped_models
    from lidc_xai.models.weights import load_weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "NoduleModel",
    "Preprocess",
    "backbone_entry",
    "build_backbone",
    "build_model",
    "list_backbones",
    "load_model",
    "load_weights",
    "save_model",
    "shipped_models",
]

_WHERE = {
    "BACKBONES": "backbones",
    "Backbone": "backbones",
    "backbone_entry": "backbones",
    "list_backbones": "backbones",
    "NoduleModel": "nodule_model",
    "build_backbone": "nodule_model",
    "build_model": "nodule_model",
    "Preprocess": "preprocess",
    "load_model": "saved",
    "save_model": "saved",
    "shipped_models": "saved",
    "load_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
