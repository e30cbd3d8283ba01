"""Official files load to the outputs that their publishers' own definitions give; anything else is refused in one
line.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.models import BACKBONES, build_backbone, build_model, load_weights, save_model

Make = Callable[..., dict[str, Tensor]]
Empty = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("name", "heads", "patch"),
    [("dino_vits16", 6, 16), ("dino_vits8", 6, 8), ("deit_tiny", 3, 16), ("deit_tiny_distilled", 3, 16)],
)
def test_vit_file_gives_the_publishers_outputs(
    name: str, heads: int, patch: int, tmp_path: Path, official_tensors: Make, plain_vit: Callable[..., Tensor]
) -> None:
    state = official_tensors(name)
    path = tmp_path / "official.pth"
    torch.save({"model": state} if name.startswith("deit") else state, path)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = build_backbone(name, weights=path)
    with torch.no_grad():
        tokens = plain_vit(state, images, heads, patch)
        assert torch.allclose(network.forward_features(images), tokens, atol=2e-5)
        if name.startswith("deit"):
            classifier = build_backbone(name, weights=path, num_classes=1000)
            wanted = tokens[:, 0] @ state["head.weight"].T + state["head.bias"]
            if "distilled" in name:
                wanted = (wanted + tokens[:, 1] @ state["head_dist.weight"].T + state["head_dist.bias"]) / 2
            assert torch.allclose(classifier(images), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_dinov2_file_at_its_own_size(
    name: str, tmp_path: Path, official_tensors: Make, plain_vit: Callable[..., Tensor]
) -> None:
    state = official_tensors(name)
    torch.save(state, tmp_path / "official.pth")
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    network = build_backbone(name, weights=tmp_path / "official.pth", size=518)
    network.blocks = network.blocks[:2]  # 1370 tokens take their time
    later = tuple(f"blocks.{number}." for number in range(2, 12))
    state = {key: value for key, value in state.items() if not key.startswith(later)}
    with torch.no_grad():
        assert torch.allclose(network.forward_features(images), plain_vit(state, images, 6, 14), atol=2e-5)


def test_positions_are_interpolated_as_the_registers_model_does(tmp_path: Path, official_tensors: Make) -> None:
    state = official_tensors("dinov2_vits14_reg")
    torch.save(state, tmp_path / "official.pth")
    network = build_backbone("dinov2_vits14_reg", weights=tmp_path / "official.pth", size=224)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (16, 16), mode="bicubic", antialias=True)
    assert torch.allclose(network.pos_embed, resized.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.equal(network.cls_token, state["cls_token"] + state["pos_embed"][:, :1])


@pytest.mark.parametrize("old_names", [False, True])
def test_swag_file_gives_torchvisions_logits(
    old_names: bool, tmp_path: Path, official_tensors: Make, empty_network: Empty
) -> None:
    state = official_tensors("swag_vitb16")
    state["encoder.pos_embedding"] = state["encoder.pos_embedding"][:, :17]
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(image_size=64).eval()
    theirs.load_state_dict(state, assign=True)
    if old_names:  # files written before torchvision's MLP lost its names
        state = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in state.items()}
    torch.save(state, tmp_path / "swag.pth")
    ours = empty_network("swag_vitb16", size=64, num_classes=1000)
    load_weights(ours, tmp_path / "swag.pth", "swag_vitb16")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs(images)
        assert wanted.abs().max() > 0.05
        assert torch.allclose(ours(images), wanted, atol=1e-5)


def test_torchvision_resnet_gives_torchvisions_logits(tmp_path: Path, official_tensors: Make) -> None:
    state = official_tensors("resnet50")
    theirs = torchvision.models.resnet50()
    theirs.load_state_dict(state)
    torch.save(state, tmp_path / "resnet.pth")
    ours = build_backbone("resnet50", num_classes=1000, weights=tmp_path / "resnet.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.eval()(images)
        assert torch.allclose(ours(images), wanted, atol=1e-5 * float(wanted.abs().max()))


def test_torchvision_vgg_gives_torchvisions_logits(
    tmp_path: Path, official_tensors: Make, empty_network: Empty
) -> None:
    state = official_tensors("vgg16")
    for key in ("classifier.0.weight", "classifier.3.weight"):  # one row for all: half a gigabyte less to write
        state[key] = state[key][:1].clone().expand(4096, -1)
    with torch.device("meta"):
        theirs = torchvision.models.vgg16()
    theirs.load_state_dict(state, assign=True)
    torch.save(state, tmp_path / "vgg.pth")
    ours = empty_network("vgg16", num_classes=1000)
    load_weights(ours, tmp_path / "vgg.pth", "vgg16")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.eval()(images)
        assert torch.allclose(ours(images), wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", [name for name, entry in BACKBONES.items() if entry.official_format])
def test_every_published_layout_loads(name: str, tmp_path: Path, official_tensors: Make, empty_network: Empty) -> None:
    path = tmp_path / "official.pth"
    torch.save(official_tensors(name, hollow=True), path)
    start = load_weights(empty_network(name), path, name)
    assert start["source"] == "official.pth"
    assert len(start["sha256"]) == 64
    assert start["licence"] == BACKBONES[name].licence


@pytest.mark.parametrize("container", ["safetensors", "lightning", "dino teacher", "dinov2 chunks", "saved model"])
def test_the_same_weights_in_other_containers(container: str, tmp_path: Path, official_tensors: Make) -> None:
    name = "dinov2_vits14" if container == "dinov2 chunks" else "deit_tiny"
    state = {key: value for key, value in official_tensors(name).items() if not key.startswith("head")}
    torch.save(state, tmp_path / "plain.pth")
    wanted = build_backbone(name, weights=tmp_path / "plain.pth").state_dict()
    path = tmp_path / "other.pth"
    if container == "safetensors":
        path = tmp_path / "other.safetensors"
        save_file(state, path)
    elif container == "lightning":
        inside = {f"model.backbone.{key}": value for key, value in state.items()}
        torch.save({"state_dict": {**inside, "model.head.bias": torch.zeros(1)}, "epoch": 3}, path)
    elif container == "dino teacher":
        teacher = {f"backbone.{key}": value for key, value in state.items()}
        student = {f"module.backbone.{key}": value * 0 for key, value in state.items()}
        torch.save({"student": student, "teacher": {**teacher, "head.mlp.0.weight": torch.zeros(2, 2)}}, path)
    elif container == "dinov2 chunks":
        chunked = {f"backbone.{key}".replace("blocks.", "blocks.0."): value for key, value in state.items()}
        torch.save({"teacher": chunked}, path)
    else:
        path = save_model(build_model(name, weights=tmp_path / "plain.pth"), tmp_path / "saved")
    loaded = build_backbone(name, weights=path).state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


class _Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("code from a weights file was run",))


def _write(kind: str, path: Path, state: dict[str, Tensor]) -> None:
    if kind == "another patch":
        state["patch_embed.proj.weight"] = torch.zeros(192, 3, 8, 8)
        torch.save(state, path)
    elif kind == "missing key":
        del state["blocks.3.attn.qkv.weight"]
        torch.save(state, path)
    elif kind == "unknown key":
        torch.save({**state, "blocks.0.gate": torch.zeros(1)}, path)
    elif kind == "code":
        path.write_bytes(pickle.dumps({"model": _Harmful()}))
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:200_000])
    elif kind == "text":
        path.write_text("not weights\n")
    elif kind == "a list":
        torch.save([torch.zeros(1)], path)
    elif kind == "strangers":
        torch.save({"something.weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another patch", "patch_embed.proj.weight is (192, 3, 8, 8) there and (192, 3, 16, 16) here"),
        ("missing key", "1 missing, first blocks.3.attn.qkv.weight"),
        ("unknown key", "1 not known here, first blocks.0.gate"),
        ("code", "holds more than tensors"),
        ("truncated", "no weights file"),
        ("text", "more than tensors"),
        ("a list", "no dictionary of tensors"),
        ("strangers", "first key is something.weight"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    kind: str, words: str, tmp_path: Path, official_tensors: Make, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "file.pth"
    _write(kind, path, official_tensors("deit_tiny"))
    with pytest.raises(ModelError) as caught:
        build_backbone("deit_tiny", weights=path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "was run" not in capsys.readouterr().out


def test_a_file_without_classifier_is_refused_for_a_classifier(tmp_path: Path, official_tensors: Make) -> None:
    state = {key: value for key, value in official_tensors("deit_tiny").items() if not key.startswith("head")}
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ModelError, match="has no classifier"):
        build_backbone("deit_tiny", weights=tmp_path / "file.pth", num_classes=1000)


def test_a_file_under_the_published_name_must_be_the_published_one(tmp_path: Path, official_tensors: Make) -> None:
    path = tmp_path / "deit_tiny_patch16_224-a1311bcf.pth"
    torch.save({"model": official_tensors("deit_tiny")}, path)
    with pytest.raises(ModelError, match=r"is not the published a1311bcf"):
        build_backbone("deit_tiny", weights=path)


@pytest.mark.parametrize("name", ["dino_vits8", "swag_vitb16"])
def test_pretrained_without_network_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; give the path"):
        build_backbone(name, weights="pretrained")
