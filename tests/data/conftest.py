"""Shared by the data tests: a small store of crops whose voxels say which crop, slice and axis they belong to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lidc_xai.annotations import ROW_COLUMNS
from lidc_xai.imaging import CropStore, NoduleCrop, StoreWriter
from lidc_xai.ratings import BIOMARKERS

SIZE = 16


def crop_of(nodule_id: str, number: int, shape: tuple[int, int, int] = (SIZE, SIZE, SIZE)) -> NoduleCrop:
    z, y, x = np.indices(shape)
    ct = (-900 + 40 * number + 20 * z + 3 * y + x).astype(np.float32)
    return NoduleCrop(ct=ct, affine=np.eye(4), nodule_id=nodule_id, series_uid="1.2")


def row_of(patient: str, nodule: int, number: int, label: int | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROW_COLUMNS, float("nan"))
    row |= {name: 1.0 + (number * (place + 3)) % 5 for place, name in enumerate(BIOMARKERS)}
    row |= {
        "nodule_id": f"{patient}-s1-n{nodule}", "patient_id": patient, "series_uid": "1.2", "study_uid": "1.3",
        "scan_index": 1, "cluster_index": nodule, "annotation_ids": (1, 2, 3), "n_readers": 3, "ambiguous": False,
        "is_from_initial": None, "contrast_used": None, "label": label, "diameter": 5.0 + number,
    }  # fmt: skip
    return row


@pytest.fixture(scope="session")
def write_store() -> Callable[..., CropStore]:
    def write(
        path: Path, patients: int = 12, shape: tuple[int, int, int] = (SIZE, SIZE, SIZE), **columns: Any
    ) -> CropStore:
        """Two nodules a patient; labels by patient, every sixth patient's second nodule indeterminate."""
        writer = StoreWriter(path, size_mm=SIZE, spacing_mm=1.0, rule="test")
        number = 0
        for patient in range(patients):
            for nodule in range(2):
                name = f"P{patient:02d}"
                label = None if patient % 6 == 5 and nodule else (patient + nodule) % 2
                row = row_of(name, nodule, number, label) | columns
                writer.write(crop_of(row["nodule_id"], number, shape), row, [])
                number += 1
        return writer.finish()

    return write


@pytest.fixture(scope="session")
def store(write_store: Callable[..., CropStore], tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    return write_store(tmp_path_factory.mktemp("data") / "store")
