"""Photographs by several classifiers: one mean map on the coarsest grid, and honest refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.evaluation import group_agreement
from lidc_xai.evaluation.repeatability import on_grid
from lidc_xai.imagenet import explain_images


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Weights of two seeds of test_vit, and of test_vit2, whose grid is another."""
    paths = []
    for seed, name in enumerate(["test_vit", "test_vit", "test_vit2"]):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp("weights") / f"{name}-{seed}.safetensors")
        save_file(timm.create_model(name, pretrained=False).state_dict(), paths[-1])
    return paths


def joined(files: list[Path]) -> str:
    return ",".join(map(str, files))


def test_the_mean_of_the_models_on_their_coarsest_grid(photo: Path, files: list[Path], tmp_path: Path) -> None:
    names = ["test_vit", "test_vit", "test_vit2"]
    common = {"targets": ["boxer", 3], "methods": ["cdam", "attention"], "fit": "whole"}
    explain_images([photo], ",".join(names), tmp_path / "all", weights=joined(files), **common)
    folder = tmp_path / "all" / photo.stem
    assert (folder / "panel.png").exists()
    values = json.loads((folder / "values.json").read_text())
    with np.load(folder / "maps.npz") as arrays:
        mean, each, error = (arrays[f"cdam{end}"] for end in ("", "_each", "_standard_error"))
    alone = []
    for k, (name, file) in enumerate(zip(names, files, strict=True)):
        explain_images([photo], name, tmp_path / str(k), weights=file, **common)
        with np.load(tmp_path / str(k) / photo.stem / "maps.npz") as arrays:
            alone.append(arrays["cdam"])
    grid = tuple(min(one.shape[axis] for one in alone) for axis in (-2, -1))
    expected = []
    for one in alone:
        scores = on_grid(one.astype(float), grid)
        expected.append(scores / np.abs(scores).sum((-1, -2), keepdims=True))
    assert mean.shape == (2, *grid)
    assert np.allclose(each, expected, atol=1e-5)
    assert np.allclose(mean, np.mean(expected, axis=0), atol=1e-5)
    assert np.allclose(error, np.std(expected, axis=0, ddof=1) / np.sqrt(3), atol=1e-5)
    rho = [group_agreement(each[:, t].reshape(3, -1)) for t in range(2)]
    assert values["methods"]["cdam"]["agreement"] == pytest.approx(rho)
    assert [len(target["probability"]) for target in values["targets"]] == [3, 3]


def test_without_a_target_the_mean_probability_decides(photo: Path, files: list[Path], tmp_path: Path) -> None:
    explain_images([photo], "test_vit,test_vit", tmp_path, weights=joined(files[:2]), top=1)
    (target,) = json.loads((tmp_path / photo.stem / "values.json").read_text())["targets"]
    assert 0 <= target["class"] < 1000


def test_what_is_refused(photo: Path, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same weights"):
        explain_images([photo], "test_vit,test_vit", tmp_path, weights=files[0])
    with pytest.raises(UsageError, match="3 were given for 2 models"):
        explain_images([photo], "test_vit,test_vit2", tmp_path, weights=joined(files))
    torch.manual_seed(9)
    other = tmp_path / "ten.safetensors"
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), other)
    with pytest.raises(UsageError, match=r"1000 classes and .* 10"):
        explain_images([photo], "test_vit,test_vit", tmp_path, weights=joined([files[0], other]))
    with pytest.raises(DataError, match="--fit whole"):
        explain_images([photo], "test_vit,vit_tiny_patch16_224", tmp_path, weights="random", targets=[1])


def test_a_model_without_numbers_is_named(photo: Path, files: list[Path], tmp_path: Path) -> None:
    broken = timm.create_model("test_vit", pretrained=False)
    torch.nn.init.constant_(broken.head.weight, 3e38)  # each weight is a number, no output is
    save_file(broken.state_dict(), tmp_path / "broken.safetensors")
    weights = f"{files[0]},{tmp_path / 'broken.safetensors'}"
    with pytest.raises(ModelError, match=r"outputs are NaN or infinite for .*; check the weights"):
        explain_images([photo], "test_vit,test_vit", tmp_path / "out", weights=weights)
