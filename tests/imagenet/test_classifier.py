"""Classifiers by name, and their weights."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.imagenet import classifier_weights, load_classifier
from lidc_xai.imagenet.classifier import find_architecture, input_spec
from lidc_xai.models.nodule_model import build_backbone


def test_weights_of_a_file_are_those_of_the_model(vit_file: Path) -> None:
    found = load_classifier("test_vit", vit_file)
    wanted = load_file(vit_file)
    assert all(tensor.equal(wanted[name]) for name, tensor in found.model.state_dict().items())
    assert found.weights["source"] == "vit.safetensors"
    assert len(found.weights["sha256"]) == 64
    assert not found.random
    assert not found.model.training
    assert found.count == 1000
    assert found.label(243) == "bull mastiff"
    assert found.spec.size == (160, 160)


def test_random_weights_are_asked_for_by_name_and_seeded() -> None:
    state = torch.get_rng_state()
    first, again, other = (load_classifier("test_resnet", "random", seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert first.random
    assert first.weights == {"source": "random", "seed": 1, "sha256": None}
    parts = [next(iter(found.model.parameters())) for found in (first, again, other)]
    assert parts[0].equal(parts[1])
    assert not parts[0].equal(parts[2])


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: {"state_dict": d}, lambda d: {"model": {f"module.{k}": v for k, v in d.items()}}]
)
def test_training_code_may_have_wrapped_the_weights(tmp_path: Path, wrap: Any) -> None:
    torch.manual_seed(2)
    model = timm.create_model("test_convnext", num_classes=7)
    torch.save(wrap(model.state_dict()), tmp_path / "own.pth")
    found = load_classifier("test_convnext", tmp_path / "own.pth")
    assert found.count == 7
    assert found.classes is None
    assert found.label(3) == "class 3"
    assert found.model.state_dict()["head.fc.weight"].equal(model.state_dict()["head.fc.weight"])


def test_torchvision_models_and_their_files(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "squeeze.pth")
    found = load_classifier("squeezenet1_1", tmp_path / "squeeze.pth")
    assert found.name == "torchvision:squeezenet1_1"
    assert found.spec.short_side == 256
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ModelError, match=r"another architecture than torchvision's 'squeezenet1_1': \d+ missing, 0 of"):
        load_classifier("squeezenet1_1", tmp_path / "vit.pth")


def test_a_name_tells_the_library() -> None:
    assert find_architecture("resnet18") == ("timm", "resnet18")
    assert find_architecture("torchvision:resnet18") == ("torchvision", "resnet18")
    assert find_architecture("vit_b_16") == ("torchvision", "vit_b_16")
    assert find_architecture("timm:test_vit") == ("timm", "test_vit")
    with pytest.raises(UsageError, match="unknown model 'restnet18'; did you mean resnet18"):
        find_architecture("restnet18")
    with pytest.raises(UsageError, match="unknown model 'torchvision:test_vit'"):
        find_architecture("torchvision:test_vit")


def test_the_input_may_be_larger(vit_file: Path) -> None:
    found = load_classifier("test_vit", vit_file, size=192)
    assert found.spec.size == (192, 192)
    assert found.model(torch.zeros(1, 3, 192, 192)).shape == (1, 1000)


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no route"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("test_vit", "test_vit.r160_in1k/resolve/main/model.safetensors"),
        ("vit_b_16", "vit_b_16-c867db91.pth"),
    ],
)
def test_without_network_the_message_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, name: str, file: str
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(classifier_weights, "getproxies", dict)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if how == "HF_HUB_OFFLINE" else "0")
    with pytest.raises(
        ModelError, match=rf"could not be fetched \({how}.* download https.*{file} .* as --weights FILE"
    ):
        load_classifier(name)


def test_a_cached_file_is_used_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    model = torchvision.models.squeezenet1_1()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    found = load_classifier("squeezenet1_1")
    assert next(iter(found.model.parameters())).equal(next(iter(model.parameters())))


def test_files_that_do_not_fit_are_refused(tmp_path: Path, vit_file: Path) -> None:
    with pytest.raises(UsageError, match="no such weights file"):
        load_classifier("test_vit", tmp_path / "absent.pth")
    with pytest.raises(ModelError, match=r"another architecture|first layer"):
        load_classifier("test_resnet", vit_file)
    torch.save({"model": object()}, tmp_path / "object.pth")
    with pytest.raises(ModelError, match="holds more than tensors"):
        load_classifier("test_vit", tmp_path / "object.pth")
    tensors = load_file(vit_file)
    tensors.pop("norm.weight")
    save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(ModelError, match=r"1 missing, first norm.weight"):
        load_classifier("test_vit", tmp_path / "short.safetensors")
    with pytest.raises(UsageError, match="features but no classifier"):
        load_classifier("dino_vits16", "random")


@pytest.mark.parametrize("name", ["dino_vits16", "swag_vitb16"])
def test_a_backbone_of_the_table_gets_the_normalisation_of_its_own_weights(name: str) -> None:
    """timm's default for these architectures is another publisher's: mean 0.5."""
    spec = input_spec("timm", name, build_backbone(name), 64)
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert spec.std == pytest.approx((0.229, 0.224, 0.225))
