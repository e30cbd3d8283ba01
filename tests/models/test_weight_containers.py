"""Checkpoints as training code and other libraries leave them: transformers' names, EMA, Namespace, numpy, PEFT."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.models import load_weights

State = dict[str, Tensor]
FILE_NAMES = {
    "q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value",
    "proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
    "norm1": "layernorm_before", "norm2": "layernorm_after", "block": "encoder.layer",
}  # fmt: skip
MODULE_NAMES = FILE_NAMES | {
    "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj", "proj": "attention.o_proj",
    "fc1": "mlp.fc1", "fc2": "mlp.fc2", "block": "layers",
}  # fmt: skip
DINO_NAMES = {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}
DINOV3_NAMES = MODULE_NAMES | DINO_NAMES | {"block": "layer", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
OUTER = {
    "cls_token": "embeddings.cls_token", "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
}  # fmt: skip


def network(name: str, **options: int) -> nn.Module:
    """A shallow, narrow network of the architecture, with every parameter drawn."""
    made = timm.create_model(name, num_classes=0, depth=2, embed_dim=64, num_heads=2, **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return made.eval()


def as_transformers(state: State, names: dict[str, str], prefix: str = "") -> State:
    """A timm state dict under transformers' names: the inverse of what is tested, written the other way round."""
    made: State = {}
    for key, value in state.items():
        if not key.startswith("blocks."):
            stem = next((stem for stem in OUTER if key == stem or key.startswith(f"{stem}.")), key)
            made[prefix + key.replace(stem, OUTER.get(stem, stem), 1)] = value
            continue
        _, number, *rest, kind = key.split(".")
        place, layer = f"{prefix}{names['block']}.{number}.", ".".join(rest)
        if layer == "attn.qkv":
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                made[f"{place}{names[part]}.{kind}"] = piece.clone()
        elif kind in ("q_bias", "v_bias"):
            made[f"{place}{names[kind[0]]}.bias"] = value
        elif layer in ("ls1", "ls2") or kind in ("gamma_1", "gamma_2"):
            made[f"{place}layer_scale{(layer or kind)[-1]}.lambda1"] = value
        else:
            made[f"{place}{names[rest[-1]]}.{kind}"] = value
    return made


@pytest.mark.parametrize(
    ("name", "names", "prefix"),
    [
        ("vit_tiny_patch16_224", FILE_NAMES, "vit."),
        ("vit_tiny_patch16_224", MODULE_NAMES, ""),
        ("deit_tiny_distilled_patch16_224", FILE_NAMES, "deit."),
        ("vit_small_patch14_dinov2", FILE_NAMES | DINO_NAMES, "dinov2."),
        ("vit_small_patch14_dinov2", MODULE_NAMES | DINO_NAMES | {"block": "encoder.layer"}, ""),
        ("vit_small_patch14_reg4_dinov2", FILE_NAMES | DINO_NAMES, ""),
        ("vit_small_patch16_dinov3_qkvb", DINOV3_NAMES, ""),
    ],
)
def test_transformers_folder_gives_the_same_tensors(
    name: str, names: dict[str, str], prefix: str, tmp_path: Path
) -> None:
    wanted = network(name, img_size=56 if "14" in name else 64)
    state = wanted.state_dict()
    saved = as_transformers(state, names, prefix)
    if "reg4_dinov2" in name:  # transformers keeps the class token's position apart
        first = torch.full((1, 1, 64), 0.25)
        saved[f"{prefix}embeddings.position_embeddings"] = torch.cat([first, state["pos_embed"]], 1)
        saved[f"{prefix}embeddings.cls_token"] = state["cls_token"] - first
    if "dinov3" in name:
        saved = {key.replace("patch_embeddings.projection", "patch_embeddings"): value for key, value in saved.items()}
        saved = {key.replace("layernorm.", "norm."): value for key, value in saved.items()}
    saved |= {f"{prefix}embeddings.mask_token": torch.zeros(1, 64), "classifier.weight": torch.zeros(2, 64)}
    save_file({key: value.contiguous() for key, value in saved.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    empty = network(name, img_size=56 if "14" in name else 64)
    for parameter in empty.parameters():
        parameter.data.zero_()
    load_weights(empty, tmp_path, name)
    assert all(torch.allclose(value, state[key], atol=1e-7) for key, value in empty.state_dict().items())


@pytest.fixture
def tiny() -> Callable[[], nn.Module]:
    return lambda: network("vit_tiny_patch16_224", img_size=32)


def zeroed(state: State) -> State:
    return {key: value * 0 for key, value in state.items()}


@pytest.mark.parametrize(
    ("part", "wrap"),
    [
        ("state_dict_ema", lambda s: {"state_dict": zeroed(s), "state_dict_ema": s, "metric": np.float64(81.2)}),
        ("model_ema", lambda s: {"model": zeroed(s), "model_ema": s, "args": argparse.Namespace(lr=1e-3)}),
        ("teacher", lambda s: {"student": zeroed(s), "teacher": s, "args": argparse.Namespace(arch="vit", seed=0)}),
        ("state_dict", lambda s: {"state_dict": s, "epoch": np.int64(3), "best": np.float32(0.5)}),
    ],
)
def test_training_checkpoints_load_and_say_which_weights(
    part: str, wrap: Callable[[State], dict], tmp_path: Path, tiny: Callable[[], nn.Module]
) -> None:
    state = tiny().state_dict()
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    empty = tiny()
    for parameter in empty.parameters():
        parameter.data.zero_()
    record = load_weights(empty, tmp_path / "checkpoint.pth", "vit_tiny_patch16_224")
    assert record["part"] == part
    assert all(torch.equal(value, state[key]) for key, value in empty.state_dict().items())


def write_adapter(folder: Path, base: Path, state: State, scale: dict) -> State:
    """An adapter of every block's ``attn.qkv``; the weights that it should give."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(9)
    adapter, wanted = {}, dict(state)
    factor = 8 / 2 ** (0.5 if scale.get("use_rslora") else 1)
    for number in range(2):
        a, b = (torch.randn(shape, generator=generator) for shape in ((2, 64), (192, 2)))
        place = f"base_model.model.blocks.{number}.attn.qkv"
        adapter |= {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
        wanted[f"blocks.{number}.attn.qkv.weight"] = state[f"blocks.{number}.attn.qkv.weight"] + factor * b @ a
    save_file(adapter, folder / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 8, "base_model_name_or_path": str(base), **scale}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return wanted


@pytest.mark.parametrize("scale", [{}, {"use_rslora": True}, {"r": 4, "rank_pattern": {"qkv": 2}}])
def test_adapters_are_merged(scale: dict, tmp_path: Path, tiny: Callable[[], nn.Module]) -> None:
    state = tiny().state_dict()
    save_file(state, tmp_path / "base.safetensors")
    wanted = write_adapter(tmp_path / "adapter", tmp_path / "base.safetensors", state, scale)
    model = tiny()
    assert load_weights(model, tmp_path / "adapter", "vit_tiny_patch16_224")["part"] == "merged adapter"
    assert all(torch.allclose(value, wanted[key], atol=1e-5) for key, value in model.state_dict().items())


def test_a_wrapped_models_state_dict_is_merged_too(tmp_path: Path, tiny: Callable[[], nn.Module]) -> None:
    state = tiny().state_dict()
    wanted = write_adapter(tmp_path / "run", tmp_path / "none", state, {})
    from safetensors.torch import load_file

    pairs = load_file(tmp_path / "run" / "adapter_model.safetensors")
    whole = {key.replace(".weight", ".default.weight"): value for key, value in pairs.items()}
    for key, value in state.items():
        whole[f"base_model.model.{key.replace('attn.qkv.', 'attn.qkv.base_layer.')}"] = value
    torch.save(whole, tmp_path / "run" / "whole.pth")
    model = tiny()
    load_weights(model, tmp_path / "run" / "whole.pth", "vit_tiny_patch16_224")
    assert all(torch.allclose(value, wanted[key], atol=1e-5) for key, value in model.state_dict().items())


def test_what_cannot_be_merged_is_one_line(tmp_path: Path, tiny: Callable[[], nn.Module]) -> None:
    state = tiny().state_dict()
    write_adapter(tmp_path / "lost", tmp_path / "absent", state, {})
    write_adapter(tmp_path / "scaleless", tmp_path / "absent", state, {"r": None})
    narrow = {key: value[..., :32] if key.endswith("qkv.weight") else value for key, value in state.items()}
    save_file({key: value.contiguous() for key, value in narrow.items()}, tmp_path / "narrow.safetensors")
    write_adapter(tmp_path / "wide", tmp_path / "narrow.safetensors", state, {})
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_model.safetensors").write_bytes(
        (tmp_path / "lost" / "adapter_model.safetensors").read_bytes()
    )
    for folder, words in (("lost", "adapter without its base"), ("alone", "without adapter_config.json"),
                          ("wide", "in its base")):  # fmt: skip
        with pytest.raises(ModelError, match=words) as caught:
            load_weights(tiny(), tmp_path / folder, "vit_tiny_patch16_224")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("blocks.1.")}, "12 missing, first blocks.1."),
        (lambda s: s | {k.replace("blocks.1.", "blocks.2."): v for k, v in s.items()}, "12 not known here"),
        (lambda s: {k: torch.zeros(*v.shape[:-1], 2 * v.shape[-1]) for k, v in s.items()}, "there and"),
    ],
)
def test_wrong_depth_or_width_is_one_line(
    change: Callable[[State], State], words: str, tmp_path: Path, tiny: Callable[[], nn.Module]
) -> None:
    torch.save(change(tiny().state_dict()), tmp_path / "file.pth")
    with pytest.raises(ModelError, match=words) as caught:
        load_weights(tiny(), tmp_path / "file.pth", "vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def test_a_pickled_model_is_refused_without_colours(tmp_path: Path, tiny: Callable[[], nn.Module]) -> None:
    torch.save(tiny(), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"holds more than tensors, which is not read \(a timm\.") as caught:
        load_weights(tiny(), tmp_path / "whole.pth", "vit_tiny_patch16_224")
    assert "\x1b" not in str(caught.value)


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from time import monotonic

    import huggingface_hub.constants

    from lidc_xai.models import build_backbone

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = monotonic()
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9 cannot be reached .*; give the path"):
        build_backbone("dino_vits8", weights="pretrained")
    assert monotonic() - start < 10
