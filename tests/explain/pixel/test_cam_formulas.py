"""CAM methods against naive references in float64, their layers, and their refusals."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import ConceptSimilarity, LogOdds, LogProbability, MaxContrast, MeanContrast, Probability, explain
from lidc_xai.explain.pixels.cam import gradcam_plus_plus_map

KINDS: dict[str, Callable[[int], Any]] = {
    "logit": int,
    "probability": Probability,
    "log_probability": LogProbability,
    "log_odds": LogOdds,
    "mean_contrast": MeanContrast,
    "max_contrast": MaxContrast,
}
CLASSES = (3, 0)
METHODS = ("gradcam", "xgradcam", "linear_approximation")
CLOSE = {"rtol": 0, "atol": 1e-9}


def parts(
    naive: SimpleNamespace, model: nn.Module, image: Tensor, value: Any, layer: object = None
) -> tuple[Tensor, Tensor]:
    """Activations and gradients at the layer that is read by default (or the given index of a Sequential)."""
    if isinstance(model, nn.Sequential):
        cut = 7 if layer is None else int(layer) + 1  # type: ignore[call-overload]
        return naive.cam_parts(model[:cut], model[cut:], image[None], value)
    if hasattr(model, "blocks"):
        return naive.vit_parts(model, image[None], value, 2 if layer is None else layer)
    return naive.cam_parts(model.forward_features, model.forward_head, image[None], value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["cnn", "resnet", "vit"])
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_maps_equal_naive_ones(
    request: pytest.FixtureRequest, naive: SimpleNamespace, images: Tensor, model: str, kind: str, engine: str
) -> None:
    network = request.getfixturevalue(model)
    asked = [KINDS[kind](t) for t in CLASSES]
    found = explain(network, images, asked, METHODS, engine=engine, max_batch=2)
    rectified = explain(network, images, asked, METHODS, engine=engine, relu=True)
    for b, image in enumerate(images):
        for k, t in enumerate(CLASSES):
            a, g = parts(naive, network, image, naive.score(kind, t))
            for name in METHODS:
                wanted = getattr(naive, name)(a, g)
                torch.testing.assert_close(found[name].relevance[b, k], wanted, **CLOSE)
                torch.testing.assert_close(rectified[name].relevance[b, k], wanted.clamp_min(0), **CLOSE)
    expected = "exact" if model == "vit" and engine == "auto" else "autograd"
    assert {result.engine for result in found.values()} == {expected}
    assert min(float(result.relevance.min()) for result in found.values()) < 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relu", [False, True])
def test_gradcam_plus_plus_reads_the_relu(
    naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor, kind: str, relu: bool
) -> None:
    found = explain(cnn, images, [KINDS[kind](t) for t in CLASSES], "gradcam_plus_plus", relu=relu)
    assert found.extras["layer"] == "8"
    for b, image in enumerate(images):
        for k, t in enumerate(CLASSES):
            a, g = parts(naive, cnn, image, naive.score(kind, t), 8)
            assert a.min() >= 0
            wanted = naive.gradcam_plus_plus(a, g, relu)
            torch.testing.assert_close(
                found.relevance[b, k], wanted.clamp_min(0) if relu else wanted, rtol=0, atol=1e-9
            )


def test_gradcam_plus_plus_is_not_homogeneous(cnn: nn.Sequential, images: Tensor) -> None:
    found = explain(cnn, images, [Probability(1), LogOdds(1)], "gradcam_plus_plus").relevance.flatten(2)
    ratio = found[:, 0].norm(dim=1) / found[:, 1].norm(dim=1)
    assert (found[:, 0] - ratio[:, None] * found[:, 1]).abs().max() > 1e-6
    linear = explain(cnn, images, [Probability(1), LogOdds(1)], "gradcam")
    p = linear.values[:, 0, None, None]
    torch.testing.assert_close(linear.relevance[:, 0], p * (1 - p) * linear.relevance[:, 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["gradcam_plus_plus", "rsi_gradcam"])
def test_methods_of_convolutions_are_refused_on_tokens(vit: nn.Module, images: Tensor, method: str) -> None:
    with pytest.raises(ModelError, match=rf"{method} cannot explain this model: .*(negative|leads around)"):
        explain(vit, images, 1, method)


def test_a_layer_may_be_named_in_three_ways(naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor) -> None:
    a, g = parts(naive, cnn, images[0], naive.score("logit", 2), 4)
    for layer in (cnn[4], "4", -2, 1):
        found = explain(cnn, images[:1], 2, "gradcam", layer=layer)
        torch.testing.assert_close(found.relevance[0, 0], naive.gradcam(a, g), **CLOSE)
        assert found.extras["layer"] == "4"
        assert found.image_size == (16, 24)
        assert found.to_pixels().shape == (1, 1, 16, 24)


def test_a_block_of_a_vit_is_a_layer(naive: SimpleNamespace, vit: nn.Module, images: Tensor) -> None:
    a, g = parts(naive, vit, images[1], naive.score("log_odds", 2), 1)
    module = vit.get_submodule("blocks.1.norm1")
    for layer in (1, -2, "blocks.1.norm1", module):
        found = explain(vit, images[1:2], LogOdds(2), "xgradcam", layer=layer)
        torch.testing.assert_close(found.relevance[0, 0], naive.xgradcam(a, g), **CLOSE)
        assert found.engine == "autograd"


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        (7, UsageError, "layer 7 does not exist; this model runs 3 convolutions"),
        ("features.7", UsageError, "unknown layer 'features.7'; there are 0, 1"),
        (nn.Conv2d(3, 3, 1), UsageError, "a Conv2d that is not part of this model"),
        (2.5, UsageError, "not float"),
        (True, UsageError, "not bool"),
        ("11", ModelError, "not on an image grid"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(
    cnn: nn.Sequential, images: Tensor, layer: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        explain(cnn, images, 1, "gradcam", layer=layer)


@pytest.mark.parametrize("method", METHODS)
def test_patches_without_gradient_are_an_error_that_says_why(vit: nn.Module, images: Tensor, method: str) -> None:
    for layer in ("blocks.2.attn", "blocks.2", "norm"):
        with pytest.raises(ModelError, match=r"every gradient at the patches of .* is 0: .* choose an earlier layer"):
            explain(vit, images, 1, method, layer=layer)
    assert explain(vit, images, 1, method, layer="blocks.1").relevance.abs().sum() > 0


class TwiceUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.unused = nn.Conv2d(3, 3, 3)
        self.split = nn.MaxPool2d(2, return_indices=True)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.split(self.conv(self.conv(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("conv", "layer conv runs 2 times"),
        ("unused", "layer unused runs 0 times"),
        ("split", "layer split returns a tuple"),
    ],
)
def test_a_layer_that_cannot_be_read_is_refused(images: Tensor, layer: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        explain(TwiceUsed().double(), images, 1, "gradcam", layer=layer)


def test_in_place_relu_does_not_change_what_is_read(naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor) -> None:
    a, _ = parts(naive, cnn, images[0], naive.score("logit", 0), 7)
    assert a.min() < 0, "the layer before the in-place ReLU must be seen with its negative values"
    found = explain(cnn, images[:1], 0, "linear_approximation", layer="7").relevance[0, 0]
    a, g = parts(naive, cnn, images[0], naive.score("logit", 0), 7)
    torch.testing.assert_close(found, (a * g).sum(0), **CLOSE)


def test_contrast_by_maps_differs_only_after_a_relu(cnn: nn.Sequential, images: Tensor) -> None:
    asked = [LogOdds(1), LogOdds(1, contrast="maps")]
    linear = explain(cnn, images, asked, "gradcam").relevance
    torch.testing.assert_close(linear[:, 0], linear[:, 1], **CLOSE)
    rectified = explain(cnn, images, asked, "gradcam", relu=True).relevance
    assert (rectified[:, 0] - rectified[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("measure", ["dot", "cosine", "l2"])
def test_a_concept_is_a_target_of_a_cnn(
    naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor, measure: str
) -> None:
    """Its vector is what the last linear layer reads."""
    concept = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def likeness(vector: Tensor) -> Tensor:
        if measure == "dot":
            return vector[0] @ concept
        if measure == "cosine":
            return vector[0] @ concept / (vector.norm() * concept.norm())
        return -(vector[0] - concept).norm()

    found = explain(cnn, images, ConceptSimilarity(concept, measure), ["gradcam", "saliency", "fullgrad"])
    for b, image in enumerate(images):
        a, g = naive.cam_parts(cnn[:7], cnn[7:-1], image[None], likeness)
        torch.testing.assert_close(found["gradcam"].relevance[b, 0], naive.gradcam(a, g), **CLOSE)
        slope = naive.gradient(cnn[:-1], image[None], likeness)
        torch.testing.assert_close(found["saliency"].relevance[b, 0], slope.sum(0), **CLOSE)
    if measure == "dot":
        torch.testing.assert_close(
            found["fullgrad"].relevance.sum((-2, -1)) + found["fullgrad"].extras["flat"],
            found["fullgrad"].values,
            **CLOSE,
        )
    assert found["fullgrad"].extras["residual"].abs().max() < 1e-9


def test_gradcam_plus_plus_takes_every_positive_denominator() -> None:
    """2 + ΣA g of 1/2, 0 and −1/2: α is 2, and nothing where the denominator is not positive."""
    g = torch.tensor([-1.5, -2.0, -2.5]).view(3, 1, 1, 1)
    found = gradcam_plus_plus_map(torch.ones(3, 1, 1, 1), g, relu=False).flatten()
    assert found.tolist() == [-3.0, 0.0, 0.0]
