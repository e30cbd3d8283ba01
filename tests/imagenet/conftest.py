"""A photograph drawn here, and timm's smallest classifiers with weights that this test made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from studies.made_photos import MadePhotos, make_photos


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
    torch.manual_seed(5)
    model = timm.create_model("test_vit", pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadePhotos:
    """A few made photographs: 6 classes, 4 to train on and 2 kept apart of each, 8 pairs; in STUDY/made/photos."""
    folder = tmp_path_factory.mktemp("study") / "made" / "photos"
    return make_photos(folder, train=4, val=2, pairs=8, seed=0)
