"""Photograph sets and weights of the studies' layout, small and made up: coloured rectangles, networks at random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}
RETRIEVER, TABBY = 207, 281  # two classes of ImageNet, far apart


def two_rectangles(rng: np.random.Generator, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(40, 60, 3) grey noise with two coloured rectangles, and (40, 60) 1 + class where they are."""
    pixels = rng.integers(90, 140, (40, 60, 3)).astype(np.uint8)
    codes = np.zeros((40, 60), np.uint8)
    for side, label in enumerate(pair):
        top, left = int(rng.integers(2, 14)), int(rng.integers(2, 8)) + 30 * side
        pixels[top : top + 22, left : left + 20] = list(COLOURS.values())[label]
        codes[top : top + 22, left : left + 20] = 1 + label
    return pixels, codes


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with msrc/ (20 photographs of two of three classes) and ilsvrc_val/ (15 photographs of two classes)."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("msrc/images", "msrc/masks", "ilsvrc_val/images"):
        (folder / name).mkdir(parents=True)
    (folder / "msrc" / "classes.json").write_text(json.dumps({str(k + 1): name for k, name in enumerate(COLOURS)}))
    pairs = list(combinations(range(3), 2))
    for number in range(20):
        pixels, codes = two_rectangles(rng, pairs[number % 3])
        Image.fromarray(pixels).save(folder / "msrc" / "images" / f"{number}.jpg")
        Image.fromarray(codes).save(folder / "msrc" / "masks" / f"{number}.png")
    lines = ["file,label,n_real"]
    for number in range(30):
        pixels, _ = two_rectangles(rng, (number % 2, 2))
        Image.fromarray(pixels).save(folder / "ilsvrc_val" / "images" / f"{number}.JPEG")
        lines.append(f"{number}.JPEG,{(RETRIEVER, TABBY)[number % 2]},{number % 3}")
    (folder / "ilsvrc_val" / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session", autouse=True)
def small_photographs() -> Iterator[None]:
    """EfficientNet-Lite0 reads images of 96 px here instead of 224: with random weights, more would say no more."""
    import timm

    create = timm.create_model

    def small(name: str, *given: Any, **options: Any) -> Any:
        model = create(name, *given, **options)
        if name == "tf_efficientnet_lite0":
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 96, 96)}
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two networks' files, with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    from lidc_xai.models.nodule_model import build_backbone

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    save_file(build_backbone("dinov2_vits14", size=56).state_dict(), folder / "dinov2_vits14.safetensors")
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "efficientnet_lite0.safetensors")
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies keep what they compute once."""
    return tmp_path_factory.mktemp("features")
