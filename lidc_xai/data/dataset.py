"""Crops of a store as MONAI datasets: planes are read once and cached, random changes are made on every access.

``PlaneDataset`` is what training, cross-validation and pre-training read. ``TrainingPlanes`` shows its nodules as they
are drawn for an epoch. ``NoduleDataset`` gives the same, finished for the network, to anyone's own training loop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from monai.data import CacheDataset
from torch import Tensor
from torch.utils.data import Dataset

from lidc_xai.data.augmentation import Augmentation
from lidc_xai.data.statistics import WINDOW_HU, known_outputs, target_scaling, window_statistics
from lidc_xai.data.transforms import Item, MovePlanes, ReadPlanes, ToInput
from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.progress import progress_shown
from lidc_xai.ratings import BIOMARKERS, OUTPUTS

if TYPE_CHECKING:
    from lidc_xai.data.splits import Splits
    from lidc_xai.imaging.store.crop_store import CropStore

_SEEDS = 2**31


class PlaneDataset(CacheDataset):
    """Items: ``nodule_id``, ``planes`` (V, K, h, w) float32 HU (the K slices about the middle of each of V views, the
    middle one at K // 2) and, where asked for, ``masks``, the readers' consensus in them (bool).

    ``manifest``: the nodules' rows in the same order (of the store, or the one given). ``targets``: (n, outputs)
    float32 in own units, malignancy as label 0 or 1, NaN where there is none. ``cache_rate``: share of the nodules kept
    in memory (60 KiB each).

    >>> data = PlaneDataset(store, store.nodule_ids, ["malignancy"], slices=3)
    >>> len(data), tuple(data[0]["planes"].shape)
    (7, (3, 3, 32, 32))
    """

    def __init__(
        self,
        store: CropStore,
        nodule_ids: Sequence[str],
        outputs: Sequence[str] = (),
        *,
        views: Sequence[str] = VIEWS,
        slices: int = 1,
        masks: bool = False,
        manifest: pd.DataFrame | None = None,
        cache_rate: float = 1.0,
    ) -> None:
        rows = (store.manifest if manifest is None else manifest).set_index("nodule_id", drop=False)
        unknown = [name for name in nodule_ids if name not in rows.index]
        if unknown:
            raise UsageError(
                f"{store.path}: has no nodule {unknown[0]!r} ({len(unknown)} unknown); see its manifest.csv"
            )
        if not len(nodule_ids):
            raise UsageError(f"{store.path}: a dataset needs at least one nodule, got none")
        self.outputs, self.views, self.slices = tuple(outputs), tuple(views), slices
        self.box_mm, self.spacing_mm = (float(store.fingerprint[name]) for name in ("size_mm", "spacing_mm"))
        self.manifest = rows.loc[list(nodule_ids)].reset_index(drop=True)
        self.targets = targets_of(self.manifest, self.outputs)
        items = [{"nodule_id": name} for name in nodule_ids]
        # copy_cache: nothing downstream writes into the cached planes, so that no copy is needed
        with _own_errors():
            super().__init__(
                items, [ReadPlanes(store, views, slices, masks)], cache_rate=cache_rate, num_workers=1,
                progress=progress_shown() and sys.stderr.isatty(), copy_cache=False,
            )  # fmt: skip
        shapes = {tuple(item["planes"].shape) for item in self._cache}
        if len(shapes) > 1:
            raise DataError(f"{store.path}: crops of different sizes {sorted(shapes)}; prepare them with one size_mm")

    @property
    def nodule_ids(self) -> list[str]:
        """Ids in the order of the items."""
        return self.manifest["nodule_id"].tolist()

    @property
    def patient_ids(self) -> list[str]:
        return self.manifest["patient_id"].tolist()

    @cached_property
    def planes(self) -> Tensor:
        """(n, V, K, h, w), all at once; the cache then holds pieces of it."""
        together = torch.stack([PlaneDataset._transform(self, index)["planes"] for index in range(len(self))])
        for item, planes in zip(self._cache, together, strict=False):
            item["planes"] = planes
        return together

    def rows(self, nodule_ids: Sequence[str]) -> Tensor:
        """Row numbers of these nodules, in their order."""
        place = {nodule_id: row for row, nodule_id in enumerate(self.nodule_ids)}
        missing = [nodule_id for nodule_id in nodule_ids if nodule_id not in place]
        if missing:
            raise UsageError(f"{len(missing)} nodules are not in the store, first {missing[0]!r}")
        return torch.tensor([place[nodule_id] for nodule_id in nodule_ids], dtype=torch.long)

    def _transform(self, index: int) -> Item:
        with _own_errors():
            return super()._transform(index)


class TrainingPlanes(Dataset):
    """The nodules ``rows`` of ``data`` as they are drawn for ``epoch`` (set it before the epoch begins).

    Items: ``row`` in ``data``; ``image`` (channels, h, w) HU, a random view and one of its middle slices (with its two
    neighbours where ``channels`` is 3); ``mask`` (h, w) where ``data`` has masks; ``numbers`` of the draw, for
    ``MovePlanes`` to carry out on the whole batch.

    >>> data = PlaneDataset(store, store.nodule_ids, ["malignancy"], slices=3)
    >>> tuple(TrainingPlanes(data, [0, 1], Augmentation(slices=3))[1]["image"].shape)
    (1, 32, 32)
    """

    def __init__(
        self, data: PlaneDataset, rows: Sequence[int], augment: Augmentation, seed: int = 0, channels: int = 1
    ) -> None:
        if data.slices < augment.slices + channels - 1:
            wanted = f"augment.slices {augment.slices} with {channels} channels needs {augment.slices + channels - 1}"
            raise UsageError(f"{wanted} slices of a view; the dataset reads {data.slices}")
        self.data, self.rows, self.augment, self.channels = data, list(rows), augment, channels
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.drawn(self.rows[index], self.seed, self.epoch)

    def drawn(self, row: int, seed: int, epoch: int) -> Item:
        """One nodule as ``seed`` and ``epoch`` show it."""
        item = PlaneDataset._transform(self.data, row)
        draw = self.augment.draw(item["nodule_id"], seed, epoch, len(self.data.views))
        middle = self.data.slices // 2 + draw.slice
        stack = slice(middle - self.channels // 2, middle + self.channels // 2 + 1)
        drawn_item = {"row": row, "image": item["planes"][draw.view, stack], "numbers": draw.numbers()}
        return drawn_item | ({"mask": item["masks"][draw.view, middle]} if "masks" in item else {})


class NoduleDataset(PlaneDataset):
    """Items: ``image``, ``targets`` (outputs,) float32 and ``nodule_id``.

    Training: ``image`` (3, S, S) is a random view and a random one of the middle slices, changed as ``augment`` says.
    Evaluation: ``image`` (V·slices, 3, S, S) is what the model reads of every view. Targets: malignancy 0 or 1 (NaN
    where indeterminate), biomarkers standardised by ``scaling`` (NaN where absent).

    ``preprocess``: the model's, with mean and deviation from the training part. ``scaling``: (mean, deviation) per
    biomarker in its own unit, from the training part: computed here for a training set, to be given
    (``training.scaling``) for any other that has biomarkers. ``seed``: random changes then depend on it, ``epoch`` (set
    it) and the nodule alone; without one they draw from torch's generator, so that ``torch.manual_seed`` repeats them
    and the workers of a DataLoader differ.

    >>> outputs = ["malignancy", "diameter"]
    >>> data = NoduleDataset(store, store.nodule_ids, model.preprocess, outputs, train=True)
    >>> tuple(data[0]["image"].shape), tuple(data[0]["targets"].shape)
    ((3, 32, 32), (2,))
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
        seed: int | None = None,
    ) -> None:
        _check(outputs, train, scaling, augment)
        self.train, self.seed, self.epoch = train, seed, 0
        channels = preprocess.planes_per_input
        augment = augment or Augmentation()
        slices = augment.slices + channels - 1 if train else preprocess.planes_read
        super().__init__(store, nodule_ids, outputs, views=views, slices=slices, cache_rate=cache_rate)
        self.scaling = dict(scaling or target_scaling(store.manifest, nodule_ids, outputs))
        self._standardised = standardised(self.targets, self.outputs, self.scaling)
        self._shown = TrainingPlanes(self, range(len(nodule_ids)), augment, channels=channels) if train else None
        self._move, self._finish = MovePlanes(preprocess.mean), ToInput(preprocess)

    def _transform(self, index: int) -> Item:
        item = super()._transform(index)
        targets = self._standardised[index]
        if self._shown is None:
            return self._finish({**item, "targets": targets})
        seed, epoch = (int(torch.randint(_SEEDS, ())), 0) if self.seed is None else (self.seed, self.epoch)
        drawn = self._shown.drawn(index, seed, epoch)
        image = self._move({"image": drawn["image"][None], "numbers": drawn["numbers"][None]})["image"][0]
        targets = zoomed_targets(targets[None], drawn["numbers"][None], self.outputs, self.scaling)[0]
        return self._finish({"image": image, "targets": targets, "nodule_id": item["nodule_id"]})


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
    """Datasets of one fold with window statistics and target scaling from its training part alone.

    >>> splits = make_splits(store.manifest, n_folds=2, kind="paper", validation_share=0)
    >>> parts = fold_datasets(store, splits, 0, ["diameter"], size=32)
    >>> len(parts.train) + len(parts.test)
    7
    """
    ids = splits.nodules(store.manifest, fold)
    mean, deviation = window_statistics(store, ids.train, window)
    preprocess = replace(Preprocess(), size=size, window=window, mean=mean, std=deviation)
    train = NoduleDataset(store, ids.train, preprocess, outputs, train=True, augment=augment)
    validation = NoduleDataset(store, ids.validation, preprocess, outputs, scaling=train.scaling)
    test = NoduleDataset(store, ids.test, preprocess, outputs, scaling=train.scaling)
    return FoldDatasets(train, validation, test, preprocess)


def targets_of(manifest: pd.DataFrame, outputs: Sequence[str]) -> Tensor:
    """(n, outputs) float32 from a manifest: malignancy's label, the readers' mean of a biomarker, NaN if absent."""
    columns = []
    for name in outputs:
        column = "label" if name == "malignancy" else name
        if column not in manifest:
            raise DataError(f"the store's manifest has no column {column!r}, so {name!r} cannot be learned from it")
        values = pd.to_numeric(manifest[column]).astype("float64").to_numpy(dtype="float32", na_value=float("nan"))
        columns.append(torch.from_numpy(values))
    return torch.stack(columns, dim=1) if columns else torch.empty(len(manifest), 0)


def standardised(targets: Tensor, outputs: Sequence[str], scaling: Mapping[str, tuple[float, float]]) -> Tensor:
    """(n, outputs) in own units -> what the outputs are trained to be: labels stay, biomarkers become z-scores."""
    pairs = [scaling.get(name, (0.0, 1.0)) for name in outputs]
    columns = [(targets[:, column] - mean) / sd for column, (mean, sd) in enumerate(pairs)]
    return torch.stack(columns, dim=1) if columns else targets


def zoomed_targets(
    targets: Tensor, numbers: Tensor, outputs: Sequence[str], scaling: Mapping[str, tuple[float, float]]
) -> Tensor:
    """Standardised targets (B, outputs) under the draws ``numbers``: a zoomed nodule has a zoomed diameter."""
    if "diameter" not in outputs:
        return targets
    column, (mean, sd) = outputs.index("diameter"), scaling["diameter"]
    changed = targets.clone()
    changed[:, column] = ((targets[:, column] * sd + mean) * numbers[:, 2].to(targets) - mean) / sd
    return changed


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
    outputs: Sequence[str],
    train: bool,
    scaling: Mapping[str, tuple[float, float]] | None,
    augment: Augmentation | None,
) -> None:
    known_outputs(outputs)
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
