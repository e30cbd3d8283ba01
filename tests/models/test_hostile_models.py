"""Model folders that are damaged or hostile: one line each, and no memory for what the file does not hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lidc_xai.errors import ModelError
from lidc_xai.models import build_model, load_model, save_model
from lidc_xai.models.weights import sha256_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(build_model("vit_small64_p8", ["malignancy", "texture"], size=32, seed=0), tmp_path / "model")


def change(folder: Path, **values: Any) -> None:
    path = folder / "model.json"
    description = json.loads(path.read_text())
    for name, value in values.items():
        place, _, field = name.rpartition("__")
        (description[place] if place else description)[field] = value
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"recipe__backbone": "vit_giant_patch14_224"}, "does not describe the weights beside it"),
        ({"recipe__size": 4096}, "the file has"),
        ({"recipe__size": 10**9}, "does not describe the weights beside it"),
        ({"recipe__hidden": 10**9, "recipe__head": "mlp"}, "does not describe the weights beside it"),
        ({"recipe__backbone": ["x"]}, "does not describe the weights beside it"),
        ({"recipe__outputs": ["malignancy"]}, "the file has"),
        ({"recipe": []}, "field 'recipe' is no group"),
        ({"training_info": None}, "field 'training_info' is no group"),
        ({"training_info__train_patients": "LIDC"}, "is no list of patients"),
        ({"preprocess__std": float("nan")}, "std > 0"),
        ({"preprocess__mean": float("inf")}, "finite numbers"),
        ({"preprocess__size": 100_000}, "size from 1 to 4096"),
        ({"calibration__malignancy": [float("nan"), 0.0]}, "calibration of 'malignancy' is not finite"),
        ({"target_scaling__texture": [0.0, float("inf")]}, "of 'texture' is not finite"),
        ({"target_scaling__texture": "ab"}, "does not describe the weights beside it"),
        ({"dtype": "Tensor"}, "does not describe the weights beside it"),
    ],
)
def test_a_changed_description_is_one_line(folder: Path, values: dict[str, Any], words: str) -> None:
    change(folder, **values)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["head.weight", "backbone.blocks.3.mlp.fc1.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_nan_is_refused(folder: Path, name: str, value: float) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    save_model(model, folder)
    with pytest.raises(ModelError, match=rf"{name} holds NaN or infinite values; .* train it again"):
        load_model(folder)


def test_nothing_is_built_for_a_giant_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a billion weights (4 GB) is compared with the file's shapes on a device without memory."""
    from lidc_xai.models import saved

    built = []
    original = saved.build_model

    def watched(*args: Any, **options: Any) -> Any:
        model = original(*args, **options)
        built.append({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr(saved, "build_model", watched)
    change(folder, recipe__backbone="vit_giant_patch14_224", recipe__size=224)
    with pytest.raises(ModelError):
        load_model(folder)
    assert built == [{"meta"}]


def test_deep_json_and_foreign_weights(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"\xff" * 64)
    change(folder, weights_sha256=sha256_of(weights))
    with pytest.raises(ModelError, match="is no safetensors file"):
        load_model(folder)
    (folder / "model.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(folder)
