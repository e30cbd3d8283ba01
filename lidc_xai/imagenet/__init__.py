"""Photographs and ImageNet classifiers: the same estimators outside the lung."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.imagenet.class_names import ClassNames
    from lidc_xai.imagenet.classifier import Classifier, load_classifier
    from lidc_xai.imagenet.photo_maps import ExplainedImages, explain_images
    from lidc_xai.imagenet.photographs import Photo, read_photo

_WHERE = {
    "ClassNames": "class_names",
    "Classifier": "classifier",
    "ExplainedImages": "photo_maps",
    "Photo": "photographs",
    "explain_images": "photo_maps",
    "load_classifier": "classifier",
    "read_photo": "photographs",
}

__all__ = [
    "ClassNames",
    "Classifier",
    "ExplainedImages",
    "Photo",
    "explain_images",
    "load_classifier",
    "read_photo",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
