"""A nodule model on a convolutional backbone: outputs by name, black as the lower end of its window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.explain import LogOdds, Probability, explain, list_methods
from lidc_xai.models import NoduleModel, build_model


@pytest.fixture(scope="module")
def model() -> NoduleModel:
    return build_model("test_resnet", outputs=["malignancy", "diameter"], size=64, seed=3).double()


@pytest.fixture(scope="module")
def planes(model: NoduleModel) -> Tensor:
    hu = 400 * torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1))
    return model.preprocess.apply(hu).double()


def test_every_output_is_explained_by_default(model: NoduleModel, planes: Tensor) -> None:
    methods = ["gradcam", "xgradcam", "gradcam_plus_plus", "saliency", "fullgrad", "integrated_gradients"]
    assert set(methods) <= set(list_methods(model))
    found = explain(model, planes, method=methods, steps=40)
    for result in found.values():
        assert result.target_names == ("malignancy", "diameter")
        assert result.relevance.shape[:2] == (2, 2)
        torch.testing.assert_close(result.values, model(planes).detach(), rtol=0, atol=1e-9)
    assert found["gradcam"].extras["layer"].startswith("backbone.")
    assert found["fullgrad"].extras["residual"].abs().max() < 1e-9, "test_resnet is piecewise linear"
    named = explain(model, planes, ["diameter"], "gradcam")
    torch.testing.assert_close(named.relevance[:, 0], found["gradcam"].relevance[:, 1], rtol=0, atol=1e-12)


def test_a_layer_may_be_named_within_the_backbone(model: NoduleModel, planes: Tensor) -> None:
    short = explain(model, planes, method="gradcam", layer="layer3")
    full = explain(model, planes, method="gradcam", layer="backbone.layer3")
    assert short.relevance.equal(full.relevance)
    assert short.extras["layer"] == "backbone.layer3"


def test_black_is_air(model: NoduleModel, planes: Tensor) -> None:
    air = model.preprocess.apply(torch.full((1, 32, 32), -1000.0)).double()
    found = explain(model, planes, method="integrated_gradients", steps=4, baseline="black")
    wanted = explain(model, planes, method="integrated_gradients", steps=4, baseline=air[0])
    torch.testing.assert_close(found.relevance, wanted.relevance, rtol=0, atol=1e-6)
    path = explain(model, planes, ["malignancy"], "rsi_gradcam", steps=3)
    torch.testing.assert_close(
        path.extras["baseline_values"][0, 0], model(air)[0, 0].sigmoid().detach(), rtol=0, atol=1e-6
    )


def test_a_probability_belongs_to_the_binary_output(model: NoduleModel, planes: Tensor) -> None:
    found = explain(model, planes, [Probability("malignancy"), LogOdds("malignancy"), "malignancy"], "gradcam")
    p = found.values[:, 0, None, None]
    torch.testing.assert_close(found.relevance[:, 0], p * (1 - p) * found.relevance[:, 1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.relevance[:, 1], found.relevance[:, 2], rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="Probability has no meaning on the regression output 'diameter'"):
        explain(model, planes, Probability("diameter"), "gradcam")
