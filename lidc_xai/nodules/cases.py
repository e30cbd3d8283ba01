"""Nodules of a store as cases of the benchmark: planes as model input, with masks, readers and known causes.

``evaluation`` knows nothing of stores; this is where the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import BenchmarkRun, prepare_benchmark, run_benchmark
from lidc_xai.evaluation.cases import Case, LazyCase
from lidc_xai.evaluation.map_functions import MapFunction
from lidc_xai.evaluation.statistics import diameter_stratum
from lidc_xai.imaging.planes import crop_plane, planes_of
from lidc_xai.nodules.maps import nodule_images

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel

SHIFT_HU = 20.0
KERNEL_MM = 0.7
"""Sigma of the blur in the plane that a smoother kernel adds, and that a sharper one takes the difference to."""
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


def other_scans(crop: NoduleCrop) -> dict[str, NoduleCrop]:
    """The same nodule as another scan would have shown it.

    window_up_20hu and window_down_20hu: read through a window that lies 20 HU higher or lower; kernel_smooth:
    G ∗ ct, and kernel_sharp: 2 ct − G ∗ ct, with G a Gaussian of σ = 0.7 mm in every axial slice.

    >>> scans = other_scans(crop)
    >>> float((crop.ct - scans["window_up_20hu"].ct).mean().round(3)), sorted(scans)[:2]
    (20.0, ['kernel_sharp', 'kernel_smooth'])
    """
    _, y, x = crop.spacing_mm
    smooth = gaussian_filter(crop.ct, (0, KERNEL_MM / y, KERNEL_MM / x), mode="nearest").astype(np.float32)
    volumes = {
        f"window_up_{SHIFT_HU:.0f}hu": crop.ct - np.float32(SHIFT_HU),
        f"window_down_{SHIFT_HU:.0f}hu": crop.ct + np.float32(SHIFT_HU),
        "kernel_sharp": 2 * crop.ct - smooth,
        "kernel_smooth": smooth,
    }
    return {name: replace(crop, ct=ct) for name, ct in volumes.items()}


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
    cases = store_cases(model, store, nodule_ids, views, without, options is not None and "scan" in options.metrics)

    def measure(index: int) -> BenchmarkRun:
        if jobs > 1:
            torch.set_num_threads(1)
        return run_benchmark(
            model, cases, out, options, map_functions=map_functions, model_masked=model_masked,
            total=-(-len(cases) // jobs), shard=(index, jobs),
        )  # fmt: skip

    if jobs == 1:
        return measure(0)
    prepare_benchmark(model, out, options, map_functions, model_masked)
    runs = Parallel(n_jobs=jobs)(delayed(measure)(index) for index in range(jobs))
    return BenchmarkRun(
        out=Path(out),
        measured=sum(run.measured for run in runs),
        already_there=sum(run.already_there for run in runs),
        skipped=[row for run in runs for row in run.skipped],
    )
