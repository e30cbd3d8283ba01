"""The table says what the networks are, needs no torch, and every entry builds."""

import json
import subprocess
import sys

import pytest
import torch

from lidc_xai.errors import UsageError
from lidc_xai.models import BACKBONES, build_backbone, build_model, list_backbones

ISSUED = {
    "dino_vits8", "dino_vits16", "dino_vitb8", "dino_vitb16", "deit_tiny", "deit_small", "deit_base",
    "deit_tiny_distilled", "deit_small_distilled", "deit_base_distilled", "dinov2_vits14", "dinov2_vitb14",
    "dinov2_vits14_reg", "dinov2_vitb14_reg", "swag_vitb16", "vgg16", "resnet50", "vit_small64_p8",
}  # fmt: skip


def test_table_holds_every_named_backbone() -> None:
    assert set(list_backbones()) >= ISSUED


def test_table_needs_neither_torch_nor_timm() -> None:
    code = (
        "import sys, json; from lidc_xai.models import BACKBONES; "
        "print(json.dumps([e.as_row() for e in BACKBONES.values()])[:1]); "
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list_backbones())
def test_entry_describes_the_network_that_is_built(name: str) -> None:
    entry = BACKBONES[name]
    with torch.device("meta"):
        network = build_backbone(name)
    assert sum(p.numel() for p in network.parameters()) == entry.parameters
    assert network.head_hidden_size == entry.width
    assert getattr(network, "num_prefix_tokens", 0) == entry.prefix_tokens
    assert json.dumps(entry.as_row())
    if entry.kind == "vit":
        assert network.patch_embed.patch_size == (entry.patch, entry.patch)
        assert network.patch_embed.img_size == (entry.input_size, entry.input_size)
        assert len(network.blocks) == entry.depth


def test_swag_is_not_for_commerce_and_others_name_their_licence() -> None:
    assert BACKBONES["swag_vitb16"].licence == "CC-BY-NC-4.0"
    assert {BACKBONES[name].licence for name in ISSUED if name.startswith("d")} == {"Apache-2.0"}


def test_demo_network_has_the_parts_of_the_large_ones() -> None:
    network = build_backbone("vit_small64_p8")
    assert (network.num_prefix_tokens, network.embed_dim, len(network.blocks)) == (1, 192, 6)
    assert network.blocks[0].attn.num_heads == 3
    assert network.global_pool == "token"


def test_any_timm_name_builds_and_size_changes_the_grid() -> None:
    model = build_model("vit_tiny_patch16_224", size=64)
    assert model.preprocess.size == 64
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1)
    assert build_backbone("dino_vits8", size=64).patch_embed.grid_size == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backbone": "dino_vits9"}, "did you mean dino_vits8"),
        ({"backbone": "no such thing at all"}, "known: dino_vits8"),
        ({"backbone": "dino_vits8", "size": 100}, "try 96 or 104"),
        ({"backbone": "vit_small64_p8", "outputs": ["cancer"]}, "unknown output 'cancer'"),
        ({"backbone": "vit_small64_p8", "outputs": ["margin", "margin"]}, "different names"),
        ({"backbone": "vit_small64_p8", "head": "cubic"}, "unknown head 'cubic'"),
        ({"backbone": "vit_small64_p8", "head": "bottleneck"}, "at least one biomarker"),
        ({"backbone": "resnet50", "backbone_dropout": 0.1}, "does not take proj_drop_rate"),
        ({"backbone": "vit_small64_p8", "weights": "pretrained"}, "no published weights"),
        ({"backbone": "vit_small64_p8", "weights": "absent.pth"}, "absent.pth: no such weights file"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
