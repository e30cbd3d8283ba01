"""The convolutional stem: patches where a plain ViT has them, and every closed form still holds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lidc_xai.errors import UsageError
from lidc_xai.explain import explain
from lidc_xai.models import build_model, load_model, save_model
from lidc_xai.models.conv_stem import ConvStem, sine_positions


@pytest.mark.parametrize(("name", "grid"), [("vit_nodule_p8", 8), ("vit_nodule_p4", 16)])
def test_one_token_per_patch_and_exact_equals_automatic_differentiation(name: str, grid: int) -> None:
    model = build_model(name, ["malignancy", "diameter"], seed=0).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = explain(model, images, method="cdam", engine="exact").relevance
    assert exact.shape == (2, 2, grid, grid)
    assert torch.allclose(exact, explain(model, images, method="cdam", engine="autograd").relevance, atol=1e-12)


def test_a_token_reads_only_its_surroundings() -> None:
    """Moving a pixel of the first patch leaves tokens two patches away as they are."""
    stem = ConvStem(img_size=64, patch_size=8, embed_dim=96).eval()
    images = torch.zeros(1, 3, 64, 64)
    moved = images.clone()
    moved[..., 2, 2] = 1.0
    changed = (stem(moved) - stem(images)).abs().amax(-1).reshape(8, 8)
    assert changed[0, 0] > 0
    assert changed[2:].max() == 0
    assert changed[:, 2:].max() == 0


def test_saved_and_restored_bit_for_bit(tmp_path: Path) -> None:
    model = build_model("vit_nodule_p8", ["malignancy"], seed=0)
    save_model(model, tmp_path / "model")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), load_model(tmp_path / "model")(images))
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1, "whoever reads one file can read all"


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(UsageError, match="power of two, got 14 px"):
        ConvStem(img_size=56, patch_size=14)


def test_a_model_starts_from_weights_of_its_kind(tmp_path: Path) -> None:
    """From a bare backbone as pre-training writes it, and from a trained model."""
    first, other = build_model("vit_nodule_p8", seed=0), build_model("vit_nodule_p8", seed=1)
    save_file(first.backbone.state_dict(), tmp_path / "backbone.safetensors")
    save_model(first, tmp_path / "model")
    for weights in (tmp_path / "backbone.safetensors", tmp_path / "model"):
        started = build_model("vit_nodule_p8", weights=weights, seed=1)
        wanted = first.backbone.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in started.backbone.state_dict().items())
        assert torch.equal(started.head.weight, other.head.weight)


def test_patches_know_where_they_lie_from_the_start() -> None:
    """Equal distances have equal products of positions, and the middle of the image lies at nought."""
    positions = sine_positions(8, 8, 96).double()
    products = (positions @ positions.T).reshape(8, 8, 8, 8)
    assert torch.allclose(products[0, 0, 0, 3], products[5, 2, 5, 5])
    assert products[2, 2, 2, 3] > products[2, 2, 2, 5] > products[2, 2, 7, 7]
    assert torch.allclose(products[0, 0, 0, 0], torch.tensor(0.5**2 * 48, dtype=torch.float64))
    model = build_model("vit_nodule_p4", seed=0)
    assert torch.equal(model.backbone.pos_embed[0, 1:], sine_positions(16, 16, 96))
