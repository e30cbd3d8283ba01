"""Nodules of a store as cases of the benchmark: planes as model input, with masks, readers and known causes.

``evaluation`` knows nothing of stores; this is where the two meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import BenchmarkRun, prepare_benchmark, run_benchmark
from lidc_xai.evaluation.cases import Case, LazyCase
from lidc_xai.evaluation.map_functions import MapFunction
from lidc_xai.evaluation.statistics import diameter_stratum
from lidc_xai.imaging.planes import Plane, extract_plane
from lidc_xai.nodules.maps import nodule_images

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel

PARENCHYMA_BELOW_HU = -500.0
"""Darker voxels outside every reader's mask are lung: what replaces the nodule where lung replacement is asked for."""


def store_cases(
    model: NoduleModel,
    store: CropStore,
    nodule_ids: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    without: Mapping[str, CropStore] | None = None,
) -> list[LazyCase]:
    """One case per nodule, read when its turn comes: its middle plane in each view.

    The patient is the cluster, the size group (by the readers' diameter) the group. ``without``: biomarker → a store of
    the same nodules simulated without its cause.
    """
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    chosen, others = tuple(views or model.preprocess.views), dict(without or {})
    return [LazyCase(name, partial(nodule_case, model, store, name, chosen, others)) for name in ids]


def nodule_case(
    model: NoduleModel, store: CropStore, nodule_id: str, views: Sequence[str], without: Mapping[str, CropStore]
) -> Case:
    """One nodule of ``store`` as a case."""
    crop, row, causes = store.load(nodule_id), store.row(nodule_id), store.causes(nodule_id)
    planes = [extract_plane(crop.ct, crop.affine, view) for view in views]
    masked = crop.consensus is not None
    readers = None if crop.reader_masks is None else _cut(crop.reader_masks, crop, views)
    outside = torch.ones(len(views), *planes[0].image.shape, dtype=torch.bool)
    if readers is not None:
        outside &= ~readers.any(1)
    lung = _stack(plane.image < PARENCHYMA_BELOW_HU for plane in planes) & outside
    return Case(
        images=nodule_images(model, crop, views),
        masks=_cut([crop.consensus], crop, views)[:, 0] if masked else None,
        case_id=nodule_id,
        cluster=str(row["patient_id"]),
        group=diameter_stratum(float(row["diameter"])),
        spacing_mm=_one_spacing(planes),
        planes=tuple(views),
        readers=readers,
        parenchyma=lung,
        causes={name: _cut([mask], crop, views)[:, 0] for name, mask in causes.items()},
        without={name: nodule_images(model, other.load(nodule_id), views) for name, other in without.items()},
    )


def _cut(volumes: Iterable[np.ndarray | None], crop: NoduleCrop, views: Sequence[str]) -> Tensor:
    """(V, n, h, w) bool: the middle planes of n masks on the crop's grid."""
    masks = [volume for volume in volumes if volume is not None]
    return torch.stack(
        [_stack(extract_plane(mask, crop.affine, view).image.astype(bool) for mask in masks) for view in views]
    )


def _stack(planes: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([np.ascontiguousarray(plane) for plane in planes]))


def _one_spacing(planes: Sequence[Plane]) -> tuple[float, float]:
    """(between rows, between columns) in mm: crops are cubes of cubic voxels, so that every view has the same."""
    return planes[0].spacing_mm


def benchmark_store(
    model: NoduleModel,
    store: CropStore,
    out: Path | str,
    options: BenchmarkOptions | None = None,
    *,
    nodule_ids: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    without: Mapping[str, CropStore] | None = None,
    map_functions: Mapping[str, MapFunction] | None = None,
    jobs: int = 1,
) -> BenchmarkRun:
    """``run_benchmark`` on nodules of a store, in ``jobs`` processes that share the work case by case.

    ``map_functions``: methods of the caller's own. Results of cases that lie in ``out`` already are kept; a killed run
    goes on with the same call.
    """
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    chosen = tuple(views or model.preprocess.views)
    work = partial(_benchmark_shard, model, store, Path(out), options, ids, chosen, dict(without or {}), map_functions)
    if jobs == 1:
        return work((0, 1))
    prepare_benchmark(model, out, options, map_functions)
    runs = Parallel(n_jobs=jobs)(delayed(work)((index, jobs)) for index in range(jobs))
    return BenchmarkRun(
        out=Path(out),
        measured=sum(run.measured for run in runs),
        found=sum(run.found for run in runs),
        skipped=[row for run in runs for row in run.skipped],
    )


def _benchmark_shard(
    model: NoduleModel,
    store: CropStore,
    out: Path,
    options: BenchmarkOptions | None,
    ids: Sequence[str],
    views: Sequence[str],
    without: Mapping[str, CropStore],
    map_functions: Mapping[str, MapFunction] | None,
    shard: tuple[int, int],
) -> BenchmarkRun:
    if shard[1] > 1:
        torch.set_num_threads(1)
    cases = store_cases(model, store, ids, views, without)
    total = -(-len(cases) // shard[1])
    return run_benchmark(model, cases, out, options, map_functions=map_functions, total=total, shard=shard)
