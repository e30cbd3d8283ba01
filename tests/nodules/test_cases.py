"""A store's nodules as cases: planes, masks and causes meet on one grid, patients are clusters, jobs change nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config

from lidc_xai.annotations import load_nodules
from lidc_xai.evaluation import BenchmarkOptions
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, build_model
from lidc_xai.nodules.cases import benchmark_store, other_scans, store_cases
from lidc_xai.simulate import simulate_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[CropStore, CropStore]:
    """Three simulated nodules, and the same ones without spicules."""
    folder = tmp_path_factory.mktemp("stores")
    nodules = [nodule for nodule in load_nodules() if nodule.n_readers == 4][:3]
    options = {"seed": 0, "independent": True}
    whole = simulate_store(folder / "a", nodules, **options)
    return whole, simulate_store(folder / "b", nodules, without=("spiculation",), **options)


@pytest.fixture(scope="module")
def model() -> NoduleModel:
    return build_model("vit_small64_p8", ["malignancy", "spiculation"], seed=0)


def test_a_case_holds_the_crops_planes_with_their_masks(
    stores: tuple[CropStore, CropStore], model: NoduleModel
) -> None:
    store, without = stores
    lazy = store_cases(model, store, views=("axial", "sagittal"), without={"spiculation": without})
    assert [case.case_id for case in lazy] == store.nodule_ids
    case, crop = lazy[1].load(), store.load(store.nodule_ids[1])
    assert case.images.shape == (2, 3, 64, 64)
    assert case.planes == ("axial", "sagittal")
    assert case.spacing_mm == pytest.approx((1.0, 1.0))
    middle = crop.ct.shape[0] // 2
    np.testing.assert_array_equal(case.masks[0], crop.consensus[middle])
    np.testing.assert_array_equal(case.masks[1], crop.consensus[:, :, middle])
    np.testing.assert_array_equal(case.readers[0, 2], crop.reader_masks[2, middle])
    causes = store.causes(case.case_id)
    assert set(case.causes) == set(causes)
    for name, volume in causes.items():
        np.testing.assert_array_equal(case.causes[name][0], volume[middle])
    lung = case.parenchyma[0].numpy()
    assert (crop.ct[middle][lung] < -500).all()
    assert not (lung & crop.reader_masks[:, middle].any(0)).any()
    assert lung.mean() > 0.1
    assert case.cluster == case.case_id[:14]
    assert torch.equal(case.without["spiculation"], store_cases(model, without, views=case.planes)[1].load().images)


def test_results_of_several_processes_are_those_of_one(
    stores: tuple[CropStore, CropStore], model: NoduleModel, tmp_path: Path
) -> None:
    store, without = stores
    options = BenchmarkOptions(
        methods=("cdam",), metrics=("fidelity", "localisation", "causes"), replacements=("lung",), points=3
    )
    common = {"views": ("axial",), "without": {"spiculation": without}}
    one = benchmark_store(model, store, tmp_path / "one", options, **common)
    with parallel_config(backend="sequential"):  # what a process does is the same; starting one costs seconds
        two = benchmark_store(model, store, tmp_path / "two", options, jobs=2, **common)
    assert (one.measured, two.measured) == (3, 3)
    keys = ["case", "method", "output", "metric", "x"]
    tables = [run.table().sort_values(keys).reset_index(drop=True) for run in (one, two)]
    pd.testing.assert_frame_equal(*(table[keys].astype(str) for table in tables))
    np.testing.assert_allclose(tables[0]["value"], tables[1]["value"], atol=1e-4)
    rows = tables[0]
    moved = rows[rows.metric == "causes/moved"]
    assert set(moved["output"].astype(str)) == {"spiculation"}
    assert len(moved) == 3
    with parallel_config(backend="sequential"):
        again = benchmark_store(model, store, tmp_path / "two", options, jobs=2, **common)
    assert (again.measured, again.already_there) == (0, 3)


def test_nodules_bring_their_other_scans_where_they_are_asked_for(
    stores: tuple[CropStore, CropStore], model: NoduleModel, tmp_path: Path
) -> None:
    store, _ = stores
    crop = store.load(store.nodule_ids[0])
    scans = other_scans(crop)
    rough = {name: float(np.diff(one.ct, axis=2).std()) for name, one in scans.items()}
    assert rough["kernel_smooth"] < float(np.diff(crop.ct, axis=2).std()) < rough["kernel_sharp"]
    assert abs(float(scans["kernel_sharp"].ct.mean() - crop.ct.mean())) < 5
    assert float((crop.ct - scans["window_up_20hu"].ct).mean()) == pytest.approx(20, abs=1e-3)
    options = BenchmarkOptions(methods=("cdam",), metrics=("scan",), disc=False)
    rows = benchmark_store(model, store, tmp_path, options, nodule_ids=store.nodule_ids[:1]).table()
    assert {metric.split("/")[0] for metric in rows["metric"].astype(str)} == set(scans)
    assert not store_cases(model, store)[0].load().altered
