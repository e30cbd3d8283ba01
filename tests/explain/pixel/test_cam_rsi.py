"""RSI-GradCAM: the naive loop, completeness, and where the path begins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.explain import Logit, LogOdds, Probability, explain

CLOSE = {"rtol": 0, "atol": 1e-9}
BLACK = torch.tensor([-2.1, -2.0, -1.8], dtype=torch.float64).view(3, 1, 1)


@pytest.mark.parametrize("max_batch", [1, 2, 6])
@pytest.mark.parametrize("positive", [False, True])
def test_maps_equal_a_loop_over_the_path(
    naive: SimpleNamespace, cnn: nn.Sequential, images: Tensor, max_batch: int, positive: bool
) -> None:
    found = explain(
        cnn, images, [Probability(1), LogOdds(3)], "rsi_gradcam",
        steps=5, baseline=BLACK, positive_gradients=positive, max_batch=max_batch,
    )  # fmt: skip
    for b, image in enumerate(images):
        for k, (kind, t) in enumerate([("probability", 1), ("log_odds", 3)]):
            value = naive.score(kind, t)
            start = BLACK.expand(1, 3, 16, 24)
            weighted, terms = naive.rsi_gradcam(cnn[:7], cnn[7:], image[None], start, value, 5, positive)
            torch.testing.assert_close(found.relevance[b, k], weighted / len(terms), **CLOSE)
            if not positive:
                change = value(cnn(image[None])) - value(cnn(start))
                torch.testing.assert_close(found.extras["residual"][b, k], (terms.sum() - change).detach(), **CLOSE)


def test_a_bare_class_is_its_probability(cnn: nn.Sequential, images: Tensor) -> None:
    first = explain(cnn, images, [2], "rsi_gradcam", steps=3, baseline=BLACK)
    second = explain(cnn, images, [Probability(2)], "rsi_gradcam", steps=3, baseline=BLACK)
    assert first.relevance.equal(second.relevance)
    assert not first.relevance.equal(explain(cnn, images, Logit(2), "rsi_gradcam", steps=3, baseline=BLACK).relevance)


@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_the_terms_approach_the_change_of_the_score(request: pytest.FixtureRequest, images: Tensor, model: str) -> None:
    network = request.getfixturevalue(model)
    residuals = []
    for steps in (10, 300):
        found = explain(network, images, [0, 3], "rsi_gradcam", steps=steps, baseline=BLACK, max_batch=64)
        change = (found.values - found.extras["baseline_values"]).abs().amax()
        residuals.append(float(found.extras["residual"].abs().amax() / change))
    assert residuals[1] < 2e-2
    assert residuals[1] < residuals[0] / 5


def test_a_shortcut_around_the_layer_breaks_completeness(resnet: nn.Module, images: Tensor) -> None:
    """Why the default layer of a ResNet is the last block, not the convolution inside it."""
    inside = explain(resnet, images, 0, "rsi_gradcam", steps=200, baseline=BLACK, layer="layer4.0.conv2", max_batch=64)
    around = explain(resnet, images, 0, "rsi_gradcam", steps=200, baseline=BLACK, max_batch=64)
    assert around.extras["layer"] == "layer4.0"
    assert inside.extras["residual"].abs().max() > 10 * around.extras["residual"].abs().max()


def test_the_path_begins_at_black_where_the_model_says_what_that_is(
    cnn: nn.Sequential, resnet: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="begins at zeros in normalised space"):
        found = explain(cnn, images, 1, "rsi_gradcam", steps=2)
    assert found.relevance.equal(explain(cnn, images, 1, "rsi_gradcam", steps=2, baseline="zero").relevance)
    config = {"mean": (0.42, 0.5, 0.36), "std": (0.2, 0.25, 0.2)}
    monkeypatch.setattr(resnet, "pretrained_cfg", config, raising=False)
    found = explain(resnet, images, 1, "rsi_gradcam", steps=2)
    torch.testing.assert_close(
        found.relevance, explain(resnet, images, 1, "rsi_gradcam", steps=2, baseline=BLACK).relevance
    )
