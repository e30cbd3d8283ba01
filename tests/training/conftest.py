"""A store of simple synthetic crops whose ratings can be read off the pixels, and options that train in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.ratings import READER_RATINGS
from lidc_xai.training.options import FitOptions

SIDE = 16


def ball(radius: float, hu: float, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ball of ``radius`` mm and density ``hu`` in lung, with noise; the volume and the ball's mask."""
    axis = np.arange(SIDE) - (SIDE - 1) / 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    mask = distance <= radius
    volume = np.where(mask, hu, -850.0) + noise.normal(0, 25, mask.shape)
    return volume.astype(np.float32), mask


def write_toy_store(path: Path, patients: int, seed: int = 0) -> CropStore:
    """Two nodules per patient: large dense balls are rated malignant, small faint ones benign; 4 readers each."""
    noise = np.random.default_rng(seed)
    writer = StoreWriter(path, size_mm=SIDE, spacing_mm=1.0, rule="toy")
    for patient in range(patients):
        for nodule in range(2):
            radius = noise.uniform(1.5, 6.5)
            density = noise.uniform(-500, 100)
            suspicion = radius / 4 + density / 600 + noise.normal(0, 0.15)
            volume, mask = ball(radius, density, noise)
            votes = [_vote(radius, density, suspicion, reader, noise) for reader in range(1, 5)]
            nodule_id = f"TOY-{patient:04d}-s1-n{nodule}"
            crop = NoduleCrop(volume, np.diag([1.0, 1.0, 1.0, 1.0]), np.stack([mask] * 4), mask, [], nodule_id, "1.2.3")
            row = _row(f"TOY-{patient:04d}", nodule, votes)
            writer.write(crop, row, [{**vote, "nodule_id": nodule_id} for vote in votes])
    return writer.finish()


def _vote(radius: float, density: float, suspicion: float, reader: int, noise: np.random.Generator) -> dict[str, Any]:
    texture = np.clip(np.round(3 + density / 150 + noise.normal(0, 0.4)), 1, 5)
    vote = {name: int(noise.integers(1, 6)) for name in READER_RATINGS}
    vote |= {"texture": int(texture), "malignancy": 5 if suspicion > 0.65 else 1}
    return {**vote, "reader": reader, "annotation_id": reader, "diameter_mm": 2 * radius + noise.normal(0, 0.3)}


def _row(patient: str, nodule: int, votes: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"patient_id": patient, "scan_index": 1, "cluster_index": nodule, "n_readers": len(votes)}
    for name in READER_RATINGS:
        row[name] = float(np.mean([vote[name] for vote in votes]))
        row[f"{name}_sd"] = float(np.std([vote[name] for vote in votes], ddof=1))
    diameters = [vote["diameter_mm"] for vote in votes]
    row |= {"diameter": float(np.mean(diameters)), "diameter_sd": float(np.std(diameters, ddof=1))}
    return row | {"label": int(row["malignancy"] > 3), "malignancy_median": row["malignancy"], "simulated": True}


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    """24 patients, 48 nodules of 16 mm."""
    return write_toy_store(tmp_path_factory.mktemp("toy") / "store", patients=24)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., CropStore]:
    """Write another toy store: ``make_store(path, patients, seed)``."""
    return write_toy_store


@pytest.fixture
def quick() -> Callable[..., FitOptions]:
    """Options of a very small ViT at 16 px: ``quick(epochs=2, outputs=[...])``."""

    def options(outputs: tuple[str, ...] = ("malignancy", "texture", "diameter"), **values: Any) -> FitOptions:
        model = {"backbone": "vit_small64_p8", "outputs": list(outputs), "size": 16, **values.pop("model", {})}
        base: dict[str, Any] = {"epochs": 2, "batch_size": 16, "device": "cpu", "logs": False}
        return FitOptions.model_validate({**base, "model": model, **values})

    return options
