"""Photographs and ImageNet classifiers: the same estimators outside the lung."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.imagenet.class_names import ClassNames
    from lidc_xai.imagenet.classifier import Classifier, load_classifier
    from lidc_xai.imagenet.contrasts import contrast_maps
    from lidc_xai.imagenet.epochs import EpochOptions
    from lidc_xai.imagenet.finetuning import finetune
    from lidc_xai.imagenet.folder import ImageFolder, read_image_folder
    from lidc_xai.imagenet.image_sets import ImageSet, read_image_set
    from lidc_xai.imagenet.linear_probe import train_probe
    from lidc_xai.imagenet.made_photos import MadePhotos, make_photos
    from lidc_xai.imagenet.multi_object import MultiSelection, random_numbers, select_multi
    from lidc_xai.imagenet.photo_maps import ExplainedImages, explain_images
    from lidc_xai.imagenet.photographs import Photo, read_photo
    from lidc_xai.imagenet.real_labels import read_real_labels
    from lidc_xai.imagenet.small_models import train_small
    from lidc_xai.imagenet.study import Study, StudyConfig
    from lidc_xai.imagenet.trained_classifier import TrainedClassifier

_WHERE = {
    "Classifier": "classifier",
    "ClassNames": "class_names",
    "contrast_maps": "contrasts",
    "EpochOptions": "epochs",
    "explain_images": "photo_maps",
    "ExplainedImages": "photo_maps",
    "finetune": "finetuning",
    "ImageFolder": "folder",
    "ImageSet": "image_sets",
    "load_classifier": "classifier",
    "MadePhotos": "made_photos",
    "make_photos": "made_photos",
    "MultiSelection": "multi_object",
    "Photo": "photographs",
    "random_numbers": "multi_object",
    "read_image_folder": "folder",
    "read_image_set": "image_sets",
    "read_photo": "photographs",
    "read_real_labels": "real_labels",
    "select_multi": "multi_object",
    "Study": "study",
    "StudyConfig": "study",
    "train_probe": "linear_probe",
    "train_small": "small_models",
    "TrainedClassifier": "trained_classifier",
}

__all__ = [
    "ClassNames",
    "Classifier",
    "EpochOptions",
    "ExplainedImages",
    "ImageFolder",
    "ImageSet",
    "MadePhotos",
    "MultiSelection",
    "Photo",
    "Study",
    "StudyConfig",
    "TrainedClassifier",
    "contrast_maps",
    "explain_images",
    "finetune",
    "load_classifier",
    "make_photos",
    "random_numbers",
    "read_image_folder",
    "read_image_set",
    "read_photo",
    "read_real_labels",
    "select_multi",
    "train_probe",
    "train_small",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
