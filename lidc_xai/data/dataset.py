"""Crops of a store as a MONAI dataset: planes are read once and cached, random changes are made on every access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from monai.data import CacheDataset
from monai.transforms import Compose

from lidc_xai.data.statistics import WINDOW_HU, known_outputs, target_scaling, window_statistics
from lidc_xai.data.transforms import Augmentation, ReadPlanes, ToInput
from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.progress import progress_shown
from lidc_xai.ratings import BIOMARKERS, OUTPUTS

if TYPE_CHECKING:
    from lidc_xai.data.splits import Splits
    from lidc_xai.imaging.store.crop_store import CropStore

_SEEDS = 2**31


class NoduleDataset(CacheDataset):
    """Items: ``image``, ``targets`` (outputs,) float32 and ``nodule_id``.

    Training: ``image`` (3, S, S) is a random view and a random one of the middle slices, changed as ``augment`` says.
    Evaluation: ``image`` (V, 3, S, S) is the middle slice of every view. Targets: malignancy 0 or 1 (NaN where
    indeterminate), biomarkers standardised by ``scaling`` (NaN where absent).

    ``preprocess``: the model's, with mean and deviation from the training part. ``scaling``: (mean, deviation) per
    biomarker in its own unit, from the training part: computed here for a training set, to be given
    (``training.scaling``) for any other that has biomarkers. ``cache_rate``: share of the nodules kept in memory
    (60 KiB each). Random changes draw from torch's generator, so that ``torch.manual_seed`` repeats them and the
    workers of a DataLoader differ.
    """

    def __init__(
        self,
        store: CropStore,
        nodule_ids: Sequence[str],
        preprocess: Preprocess,
        outputs: Sequence[str] = OUTPUTS,
        train: bool = False,
        *,
        scaling: Mapping[str, tuple[float, float]] | None = None,
        augment: Augmentation | None = None,
        views: Sequence[str] = VIEWS,
        cache_rate: float = 1.0,
    ) -> None:
        _check(store, nodule_ids, outputs, train, scaling, augment)
        self.outputs, self.train = tuple(outputs), train
        self.scaling = dict(scaling or target_scaling(store.manifest, nodule_ids, outputs))
        augment = augment or Augmentation()
        targets = _targets(store, nodule_ids, self.outputs, self.scaling)
        items = [{"nodule_id": key, "targets": target} for key, target in zip(nodule_ids, targets, strict=True)]
        self._random = augment.transforms(self._diameter()) if train else None
        self._finish = ToInput(preprocess)
        read = ReadPlanes(store, views, augment.slices if train else 1)
        # copy_cache: nothing downstream writes into the cached planes, so that no copy is needed
        with _own_errors():
            super().__init__(items, Compose([read]), cache_rate=cache_rate, progress=progress_shown(), copy_cache=False)

    @property
    def nodule_ids(self) -> list[str]:
        """Ids in the order of the items."""
        return [item["nodule_id"] for item in self.data]

    def _diameter(self) -> tuple[int, float, float] | None:
        return (self.outputs.index("diameter"), *self.scaling["diameter"]) if "diameter" in self.outputs else None

    def _transform(self, index: int) -> dict[str, Any]:
        with _own_errors():
            item = super()._transform(index)
        if self._random is not None:
            self._random.set_random_state(seed=int(torch.randint(_SEEDS, ())))
            item = self._random(item)
        return self._finish(item)


class FoldDatasets(NamedTuple):
    """The three parts of a fold; ``test`` and ``validation`` use the statistics of ``train``."""

    train: NoduleDataset
    validation: NoduleDataset
    test: NoduleDataset
    preprocess: Preprocess


def fold_datasets(
    store: CropStore,
    splits: Splits,
    fold: int,
    outputs: Sequence[str] = OUTPUTS,
    *,
    size: int = 224,
    window: tuple[float, float] = WINDOW_HU,
    augment: Augmentation | None = None,
) -> FoldDatasets:
    """Datasets of one fold with window statistics and target scaling from its training part alone."""
    ids = splits.nodules(store.manifest, fold)
    mean, deviation = window_statistics(store, ids.train, window)
    preprocess = replace(Preprocess(), size=size, window=window, mean=mean, std=deviation)
    train = NoduleDataset(store, ids.train, preprocess, outputs, train=True, augment=augment)
    validation = NoduleDataset(store, ids.validation, preprocess, outputs, scaling=train.scaling)
    test = NoduleDataset(store, ids.test, preprocess, outputs, scaling=train.scaling)
    return FoldDatasets(train, validation, test, preprocess)


@contextmanager
def _own_errors() -> Iterator[None]:
    """MONAI wraps what a transform raises in a RuntimeError; a user's own error comes out as it is."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, LidcXaiError):
            raise error.__cause__ from None
        raise


def _check(
    store: CropStore,
    nodule_ids: Sequence[str],
    outputs: Sequence[str],
    train: bool,
    scaling: Mapping[str, tuple[float, float]] | None,
    augment: Augmentation | None,
) -> None:
    known_outputs(outputs)
    if not nodule_ids:
        raise UsageError(f"{store.path}: a dataset needs at least one nodule, got none")
    unknown = sorted(set(nodule_ids) - set(store.nodule_ids))
    if unknown:
        raise UsageError(f"{store.path}: has no nodule {unknown[0]!r} ({len(unknown)} unknown); see its manifest.csv")
    if augment is not None and not train:
        raise UsageError("augment is for training alone; leave it out for evaluation")
    biomarkers = [name for name in outputs if name in BIOMARKERS]
    if not train and biomarkers and scaling is None:
        raise UsageError(
            f"{biomarkers[0]}: evaluation needs the training part's scaling; give scaling=training.scaling"
        )
    absent = [name for name in biomarkers if scaling is not None and name not in scaling]
    if absent:
        raise UsageError(f"scaling has no entry for {absent[0]!r}; it has {', '.join(scaling or ()) or 'none'}")


def _targets(
    store: CropStore, nodule_ids: Sequence[str], outputs: Sequence[str], scaling: Mapping[str, tuple[float, float]]
) -> torch.Tensor:
    """(n, outputs) float32."""
    rows = store.manifest.set_index("nodule_id").loc[list(nodule_ids)]
    columns = []
    for name in outputs:
        column = rows["label" if name == "malignancy" else name]
        values = torch.from_numpy(column.astype("Float64").to_numpy(dtype="float64", na_value=float("nan")))
        mean, deviation = scaling.get(name, (0.0, 1.0))
        columns.append((values - mean) / deviation)
    return torch.stack(columns, dim=1).float() if columns else torch.empty(len(rows), 0)
