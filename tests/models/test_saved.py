"""A saved model comes back bit for bit with everything that its numbers mean; what is not a model is refused."""

import json
from pathlib import Path

import pytest
import torch

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.models import NoduleModel, Preprocess, build_model, load_model, save_model
from lidc_xai.models.saved import Undrawn
from lidc_xai.ratings import OUTPUTS


@pytest.fixture
def model() -> NoduleModel:
    """A model with every kind of setting changed from its default."""
    made = build_model(
        "vit_small64_p8", OUTPUTS, head="bottleneck", size=32, dropout=0.1, seed=3, preprocess=Preprocess(std=123.4)
    )
    made.target_scaling["margin"] = (3.3, 0.7)
    made.calibration["malignancy"] = (1.7, -0.3)
    made.training_info = {"train_patients": ["A"], "validation_patients": ["B"], "seed": 3, "simulated": True}
    made.training_info["metrics"] = {"validation auc": 0.91}
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_restores_exactly(model: NoduleModel, dtype: torch.dtype, tmp_path: Path) -> None:
    model.to(dtype)
    again = load_model(save_model(model, tmp_path / "model"))
    assert not again.training
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    assert torch.equal(model(images), again(images))
    assert torch.equal(model.in_units(model(images)), again.in_units(again(images)))
    for name in ("output_names", "output_kinds", "preprocess", "target_scaling", "calibration", "training_info"):
        assert getattr(again, name) == getattr(model, name), name


def test_folder_says_what_it_is(model: NoduleModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"weights.safetensors", "model.json", "MODEL_CARD.md", "LICENSE"}
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "Research use only" in card
    assert "agreement with radiologists' ratings" in card
    assert "SIMULATED CT" in card
    assert "validation auc | 0.910" in card
    assert "Apache-2.0" in (tmp_path / "model" / "LICENSE").read_text()


def test_licence_of_the_published_weights_travels_along(tmp_path: Path) -> None:
    network = build_model("vit_tiny_patch16_224", size=32)
    network.recipe["backbone"] = "swag_vitb16"
    network.initial_weights = {"source": "vit_b_16_swag.pth", "sha256": "ab" * 32, "licence": "CC-BY-NC-4.0"}
    save_model(network, tmp_path / "model")
    licence = (tmp_path / "model" / "LICENSE").read_text()
    assert "SPDX-License-Identifier: CC-BY-NC-4.0" in licence
    assert "2201.08371" in licence


def test_run_folder_leads_to_its_model_and_saving_again_replaces(model: NoduleModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "run" / "model")
    model.calibration["malignancy"] = (2.0, 0.5)
    save_model(model, tmp_path / "run" / "model")
    assert load_model(tmp_path / "run").calibration["malignancy"] == (2.0, 0.5)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value != "remove"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 0}, "field 'format_version' is 0"),
        ({"format_version": 99}, "reads format version 1"),
        ({"format": "other"}, "field 'format' is not"),
        ({"calibration": "remove"}, "lacks the field(s) calibration"),
        ({"weights_sha256": "0" * 64}, "SHA-256 differs"),
        ({"recipe": {"backbone": "nothing"}}, "does not describe the weights"),
    ],
)
def test_models_that_cannot_be_trusted_are_refused(
    model: NoduleModel, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder = save_model(model, tmp_path / "model")
    _edit(folder, **changes)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_model(tmp_path: Path, model: NoduleModel) -> None:
    with pytest.raises(UsageError, match="no such model folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(UsageError, match="name of a backbone"):
        load_model("dino_vits8")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="a saved model is a folder"):
        load_model(tmp_path / "file")
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="not a saved model"):
        save_model(model, tmp_path)
    folder = save_model(model, tmp_path / "model")
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(folder)
    (folder / "weights.safetensors").unlink()
    save_model(model, folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        load_model(folder)


def test_random_numbers_alone_are_not_drawn_where_weights_follow() -> None:
    with Undrawn():
        assert torch.equal(torch.zeros(3).normal_(), torch.zeros(3))
        assert torch.equal(torch.nn.init.kaiming_uniform_(torch.ones(2, 2)), torch.ones(2, 2))
        assert torch.equal(torch.ones(3).mul_(2).add_(1).clamp_(max=2.5), torch.full((3,), 2.5))
        shape = torch.empty(3, device="meta").mul_(2)
        assert (shape.is_meta, shape.shape) == (True, (3,))
    assert torch.zeros(100).normal_().std() > 0.5
