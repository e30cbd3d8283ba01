"""A small store of computed crops, with predictions and maps, made through the public writer."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.nodules.maps import NoduleMaps
from lidc_xai.ratings import BIOMARKERS, OUTPUTS, READER_RATINGS

VIEWS = ("axial", "coronal", "sagittal")


def make_crop(nodule_id: str, size: int = 32, readers: int = 4, seed: int = 0) -> NoduleCrop:
    """A ball 10 mm wide, off centre by (x, y, z) = (+4, −3, +2) mm, in noise at −850 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:size, :size, :size] - (size - 1) / 2
    radius = np.sqrt((x - 4) ** 2 + (y + 3) ** 2 + (z - 2) ** 2)
    ct = (-850 + 900 / (1 + np.exp(2 * (radius - 5))) + rng.normal(0, 25, radius.shape)).astype(np.float32)
    masks = np.stack([radius < 5 + 0.4 * (reader - 1.5) for reader in range(readers)]) if readers else None
    consensus = None if masks is None else masks.mean(axis=0) >= 0.5
    affine = np.eye(4)
    affine[:3, 3] = (-60.0, 20.0, -310.0)
    return NoduleCrop(ct, affine, masks, consensus, [], nodule_id, "1.2.3")


def make_votes(nodule_id: str, readers: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "nodule_id": nodule_id,
            "reader": reader + 1,
            "annotation_id": 100 * seed + reader,
            **{name: int(rng.integers(1, 6)) for name in READER_RATINGS},
            "diameter_mm": 10.0 + 0.5 * reader,
        }
        for reader in range(readers)
    ]


def make_maps(nodule_id: str, method: str = "cdam", grid: int = 8, seed: int = 0) -> NoduleMaps:
    relevance = np.random.default_rng(seed).normal(0, 0.02, (3, len(OUTPUTS), grid, grid)).astype(np.float32)
    values = np.zeros((3, len(OUTPUTS)), np.float32)
    return NoduleMaps(nodule_id, method, VIEWS, (16, 16, 16), OUTPUTS, relevance, values, (4.0, 4.0), "exact", {})


def make_store(path: Path, n: int = 3, simulated: bool = True, readers: int = 4, size: int = 32) -> CropStore:
    writer = StoreWriter(path, size_mm=size, spacing_mm=1, rule="test")
    for number in range(n):
        nodule_id = f"LIDC-IDRI-{number + 1:04d}-s1-n0"
        votes = make_votes(nodule_id, readers, seed=number)
        row = {
            "patient_id": nodule_id[:14], "scan_index": 1, "cluster_index": 0, "n_readers": readers,
            "malignancy_median": float(np.median([vote["malignancy"] for vote in votes])) if votes else None,
            "slice_thickness_mm": 2.5, "simulated": simulated,
        }  # fmt: skip
        writer.write(make_crop(nodule_id, size, readers, seed=number), row, votes)
    return writer.finish()


def make_predictions(nodule_ids: list[str], out_of_fold: bool = True) -> pd.DataFrame:
    rows = []
    for place, nodule_id in enumerate(nodule_ids):
        row = {"nodule_id": nodule_id, "malignancy_probability": 0.2 + 0.3 * place, "malignancy_logit": place - 1.0}
        row |= {"malignancy_probability_least": 0.1 + 0.3 * place, "malignancy_probability_greatest": 0.3 + 0.3 * place}
        for name in BIOMARKERS:
            row |= {name: 11.25 if name == "diameter" else 2.5 + place, f"{name}_models_disagree_by": 0.4}
        rows.append({**row, "out_of_fold": out_of_fold})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The makers above, for tests that want their own."""
    return SimpleNamespace(crop=make_crop, maps=make_maps, store=make_store, predictions=make_predictions)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three nodules with predictions, CDAM and attention maps."""
    store = make_store(tmp_path_factory.mktemp("study") / "store")
    ids = store.nodule_ids
    maps = {
        method: {nodule_id: make_maps(nodule_id, method, seed=place) for place, nodule_id in enumerate(ids)}
        for method in ("cdam", "attention")
    }
    return SimpleNamespace(store=store, ids=ids, predictions=make_predictions(ids), maps=maps)
