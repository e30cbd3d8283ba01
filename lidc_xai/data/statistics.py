"""Numbers that must come from the training part alone: normalisation of HU and of the biomarkers' scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lidc_xai.errors import DataError, UsageError
from lidc_xai.progress import track
from lidc_xai.ratings import BIOMARKERS, OUTPUTS

if TYPE_CHECKING:
    import pandas

    from lidc_xai.imaging.store.crop_store import CropStore

WINDOW_HU = (-1000.0, 400.0)


def window_statistics(
    store: CropStore, nodule_ids: Sequence[str], window: tuple[float, float] = WINDOW_HU
) -> tuple[float, float]:
    """Mean and standard deviation in HU of all voxels of these crops after clamping to ``window``.

    Give the training part's ids. Raises UsageError for none, DataError where all voxels are equal.

    >>> mean, deviation = window_statistics(store, store.nodule_ids)
    >>> deviation > 0
    True
    """
    if not nodule_ids:
        raise UsageError(f"{store.path}: no nodule to take the HU statistics from; the training part is empty")
    count, total, squares = 0, 0.0, 0.0
    for nodule_id in track(nodule_ids, "HU statistics"):
        values = np.clip(store.load(nodule_id).ct.astype(np.float64), *window)
        count += values.size
        total += float(values.sum())
        squares += float(np.square(values).sum())
    mean = total / count
    variance = squares / count - mean**2
    if variance < 1e-6:
        raise DataError(f"{store.path}: all voxels are {mean:g} HU within the window {window}; choose another window")
    return mean, float(np.sqrt(variance))


def target_scaling(
    manifest: pandas.DataFrame, nodule_ids: Sequence[str], outputs: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation, in own units, of every biomarker among ``outputs`` over these nodules.

    Give the training part's ids; absent ratings do not count, a biomarker that never varies gets deviation 1.

    >>> mean, deviation = target_scaling(store.manifest, store.nodule_ids, ["diameter"])["diameter"]
    >>> mean > 0
    True
    """
    known_outputs(outputs)
    rows = manifest.set_index("nodule_id").loc[list(nodule_ids)]
    scaling = {}
    for name in outputs:
        if name not in BIOMARKERS:
            continue
        values = rows[name].dropna().to_numpy(dtype=np.float64)
        if not len(values):
            raise DataError(f"no nodule of the training part has a rating of {name}; leave that output out")
        scaling[name] = (float(values.mean()), float(values.std()) or 1.0)
    return scaling


def known_outputs(outputs: Sequence[str]) -> None:
    """UsageError for the first name that is not an output."""
    for name in outputs:
        if name not in OUTPUTS:
            raise UsageError(f"output {name!r} is not known; choose from {', '.join(OUTPUTS)}")
