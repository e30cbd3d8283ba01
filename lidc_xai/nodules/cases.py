"""Nodules of a store as cases of the benchmark: planes as model input, with masks, readers and known causes.

``evaluation`` knows nothing of stores; this is where the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from joblib import Parallel, delayed
from torch import Tensor

from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import BenchmarkRun, prepare_benchmark, run_benchmark
from lidc_xai.evaluation.cases import Case, LazyCase
from lidc_xai.evaluation.map_functions import MapFunction
from lidc_xai.evaluation.statistics import diameter_stratum
from lidc_xai.imaging.planes import crop_plane, planes_of
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.nodules.scans import other_scans

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
    scans: bool = False,
) -> list[LazyCase]:
    """One case per nodule, read when its turn comes: its middle plane in each view.

    The patient is the cluster, the size group (by the readers' diameter) the group. ``without``: biomarker → a store of
    the same nodules simulated without its cause. ``scans``: also the images of ``other_scans``, for the metric of that
    name.

    >>> len(store_cases(model, store)) == len(store)
    True
    """
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    chosen, others = tuple(views or model.preprocess.views), dict(without or {})
    return [LazyCase(name, partial(nodule_case, model, store, name, chosen, others, scans)) for name in ids]


def nodule_case(
    model: NoduleModel,
    store: CropStore,
    nodule_id: str,
    views: Sequence[str],
    without: Mapping[str, CropStore],
    scans: bool = False,
) -> Case:
    """One nodule of ``store`` as a case.

    >>> nodule_case(model, store, store.nodule_ids[0], ("axial",), {}).images.shape
    torch.Size([1, 3, 32, 32])
    """
    crop, row, causes = store.load(nodule_id), store.row(nodule_id), store.causes(nodule_id)
    readers = None
    lung = torch.from_numpy(planes_of(crop, views)[:, 0] < PARENCHYMA_BELOW_HU)
    if crop.reader_masks is not None:
        readers = torch.stack([_mask(crop, views, reader) for reader in range(len(crop.reader_masks))], dim=1)
        lung &= ~readers.any(1)
    return Case(
        images=nodule_images(model, crop, views),
        masks=None if crop.consensus is None else _mask(crop, views, "consensus"),
        case_id=nodule_id,
        cluster=str(row["patient_id"]),
        group=diameter_stratum(float(row["diameter"])),
        spacing_mm=crop_plane(crop, views[0]).spacing_mm,  # cubes of cubic voxels: the same in every view
        planes=tuple(views),
        readers=readers,
        parenchyma=lung,
        causes={name: _mask(replace(crop, consensus=mask), views, "consensus") for name, mask in causes.items()},
        without={name: nodule_images(model, other.load(nodule_id), views) for name, other in without.items()},
        altered={name: nodule_images(model, one, views) for name, one in other_scans(crop).items()} if scans else {},
    )


def _mask(crop: NoduleCrop, views: Sequence[str], of: str | int) -> Tensor:
    """(V, h, w) bool: the middle planes of a mask."""
    return torch.from_numpy(planes_of(crop, views, of=of)[:, 0])


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
    model_masked: NoduleModel | None = None,
    jobs: int = 1,
) -> BenchmarkRun:
    """``run_benchmark`` on nodules of a store, in ``jobs`` processes that share the work case by case.

    ``map_functions``: methods of the caller's own. ``model_masked``: as ``run_benchmark`` takes it. Results
    of cases that lie in ``out`` already are kept; a killed run goes on with the same call.

    >>> options = BenchmarkOptions(methods=("cdam",), metrics=("compactness",))
    >>> benchmark_store(model, store, folder / "store-benchmark", options, nodule_ids=store.nodule_ids[:1]).measured
    1
    """
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    chosen = tuple(views or model.preprocess.views)
    given = (dict(without or {}), map_functions, model_masked)
    work = partial(_benchmark_shard, model, store, Path(out), options, ids, chosen, *given)
    if jobs == 1:
        return work((0, 1))
    prepare_benchmark(model, out, options, map_functions, model_masked)
    runs = Parallel(n_jobs=jobs)(delayed(work)((index, jobs)) for index in range(jobs))
    return BenchmarkRun(
        out=Path(out),
        measured=sum(run.measured for run in runs),
        already_there=sum(run.already_there for run in runs),
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
    model_masked: NoduleModel | None,
    shard: tuple[int, int],
) -> BenchmarkRun:
    if shard[1] > 1:
        torch.set_num_threads(1)
    scans = options is not None and "scan" in options.metrics
    cases = store_cases(model, store, ids, views, without, scans)
    total = -(-len(cases) // shard[1])
    return run_benchmark(
        model, cases, out, options, map_functions=map_functions, model_masked=model_masked, total=total, shard=shard
    )
