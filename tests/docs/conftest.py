"""What the examples in docstrings may use without making it: named at the top of every API page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

ROOMS = (
    "annotations", "imaging", "simulate", "models", "explain", "evaluation", "data", "training", "nodules", "imagenet",
    "reporting",
)  # fmt: skip
NODULES = [
    f"LIDC-IDRI-{name}"
    for name in ("0475-s1-n0", "0010-s1-n2", "0013-s1-n1", "0055-s1-n1", "0004-s1-n0", "0017-s1-n0", "0027-s1-n3")
]


@pytest.fixture(scope="session")
def public() -> dict[str, Any]:
    """Every public name of every room."""
    rooms = [import_module(f"lidc_xai.{room}") for room in ROOMS]
    return {name: getattr(room, name) for room in rooms for name in room.__all__}


@pytest.fixture(scope="session")
def names(public: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``vit``, ``images``, ``labels``; ``nodule``, ``simulated``, ``dicom``, ``ct``, ``crop``; ``store``, ``model``."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()
    nodules = list(public["get_nodules"](NODULES).values())
    simulated = public["simulate_ct"](nodules[:1])
    dicom = public["write_dicom"](simulated, folder / "dicom")
    store = public["simulate_store"](folder / "store", nodules)
    outputs = ("malignancy", "spiculation", "margin")
    model = public["build_model"]("vit_nodule_p8", outputs, size=32, seed=0).eval()
    ct = public["read_ct"](dicom)
    crop = public["crop_nodule"](ct, nodules[0])
    given = {
        "np": np, "torch": torch, "Path": Path, "vit": vit, "images": torch.randn(2, 3, 32, 32),
        "labels": torch.tensor([0, 3]), "nodule": nodules[0], "simulated": simulated, "dicom": dicom, "ct": ct,
        "crop": crop, "store": store, "model": model,
    }  # fmt: skip
    return public | given
