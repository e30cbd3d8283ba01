"""Shared by several rooms: one thread for torch, the real data beside the project, annotated nodules, a photograph."""

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidc_xai.annotations import Nodule, load_nodules

gc.set_threshold(20_000, 10, 10)  # importing torch, timm and monai spends a fifth of its time on collecting nothing
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LIDC_XAI_PSEUDONYM_KEY", str(Path(tempfile.gettempdir()) / f"lidc_xai-tests-{os.getuid()}.key"))

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real LIDC slices, photographs and ReaL labels; a test that wants it skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (real LIDC slices, photographs), which is not here")
    return folder


@pytest.fixture(scope="session")
def nodules() -> list[Nodule]:
    return load_nodules()


@pytest.fixture(scope="session")
def by_id(nodules: list[Nodule]) -> dict[str, Nodule]:
    return {nodule.nodule_id: nodule for nodule in nodules}


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 × 160 pixels, red on the left, blue on the right."""
    pixels = np.zeros((160, 240, 3), np.uint8)
    pixels[:, :120, 0] = 200
    pixels[:, 120:, 2] = 200
    path = tmp_path_factory.mktemp("photos") / "halves.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's test_vit."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    model = timm.create_model("test_vit", pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path
