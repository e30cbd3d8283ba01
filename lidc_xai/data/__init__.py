"""From stores to training data: patient splits, normalisation from the training part, MONAI datasets, downloads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.data.dataset import NoduleDataset, fold_datasets
    from lidc_xai.data.idc import DownloadResult, download
    from lidc_xai.data.splits import FoldIds, Splits, load_splits, make_splits, split_store
    from lidc_xai.data.statistics import target_scaling, window_statistics
    from lidc_xai.data.transforms import Augmentation

_WHERE = {
    "Augmentation": "transforms",
    "DownloadResult": "idc",
    "FoldIds": "splits",
    "NoduleDataset": "dataset",
    "Splits": "splits",
    "download": "idc",
    "fold_datasets": "dataset",
    "load_splits": "splits",
    "make_splits": "splits",
    "split_store": "splits",
    "target_scaling": "statistics",
    "window_statistics": "statistics",
}

__all__ = [
    "Augmentation",
    "DownloadResult",
    "FoldIds",
    "NoduleDataset",
    "Splits",
    "download",
    "fold_datasets",
    "load_splits",
    "make_splits",
    "split_store",
    "target_scaling",
    "window_statistics",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
