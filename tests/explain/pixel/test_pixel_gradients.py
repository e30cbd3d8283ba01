"""Gradient methods against naive loops in float64, and their identities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain import (
    LogOdds,
    LogProbability,
    MaxContrast,
    MeanContrast,
    Probability,
    explain,
)

KINDS = {
    "logit": int,
    "probability": Probability,
    "log_probability": LogProbability,
    "log_odds": LogOdds,
    "mean_contrast": MeanContrast,
    "max_contrast": MaxContrast,
}
CLASSES = (3, 0)
CLOSE = {"rtol": 0, "atol": 1e-9}


def net(request: pytest.FixtureRequest, name: str) -> nn.Module:
    return request.getfixturevalue(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["cnn", "resnet", "vit"])
def test_gradient_and_its_products_equal_a_loop(
    request: pytest.FixtureRequest, naive: SimpleNamespace, images: Tensor, model: str, kind: str
) -> None:
    network = net(request, model)
    asked = [KINDS[kind](t) for t in CLASSES]
    found = explain(network, images, asked, ["saliency", "input_x_gradient"], max_batch=2)
    for b, image in enumerate(images):
        for k, t in enumerate(CLASSES):
            slope = naive.gradient(network, image[None], naive.score(kind, t))
            torch.testing.assert_close(found["saliency"].relevance[b, k], slope.sum(0), **CLOSE)
            torch.testing.assert_close(found["input_x_gradient"].relevance[b, k], (slope * image).sum(0), **CLOSE)
            value = naive.score(kind, t)(network(image[None]))
            torch.testing.assert_close(found["saliency"].values[b, k], value.detach(), **CLOSE)


@pytest.mark.parametrize(
    ("reduce", "join"), [("abs_sum", lambda g: g.abs().sum(0)), ("max_abs", lambda g: g.abs().amax(0))]
)
def test_channels_may_be_joined_by_size(
    naive: SimpleNamespace, cnn: nn.Module, images: Tensor, reduce: str, join: object
) -> None:
    assert callable(join)
    found = explain(cnn, images, 1, "saliency", reduce=reduce).relevance
    for b, image in enumerate(images):
        slope = naive.gradient(cnn, image[None], naive.score("logit", 1))
        torch.testing.assert_close(found[b, 0], join(slope), **CLOSE)
    if reduce == "abs_sum":
        found = explain(cnn, images, 1, "input_x_gradient", reduce=reduce).relevance
        torch.testing.assert_close(found[-1, 0], join(slope * images[-1]), **CLOSE)


def test_each_image_has_its_own_targets(naive: SimpleNamespace, cnn: nn.Module, images: Tensor) -> None:
    classes = torch.tensor([[4, 1], [0, 2], [3, 3]])
    found = explain(cnn, images, classes, "saliency", max_batch=2)
    for b, image in enumerate(images):
        for k in range(2):
            slope = naive.gradient(cnn, image[None], naive.score("logit", int(classes[b, k])))
            torch.testing.assert_close(found.relevance[b, k], slope.sum(0), **CLOSE)
    assert found.columns.equal(classes)


def test_no_target_is_the_predicted_class(cnn: nn.Module, images: Tensor) -> None:
    predicted = cnn(images).argmax(-1)
    found = explain(cnn, images, None, "saliency")
    assert found.columns[:, 0].equal(predicted)
    torch.testing.assert_close(found.relevance, explain(cnn, images, predicted, "saliency").relevance, **CLOSE)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_smoothgrad_is_the_mean_over_the_same_noise_for_every_image(
    naive: SimpleNamespace, cnn: nn.Module, images: Tensor, relative: bool, max_batch: int
) -> None:
    found = explain(
        cnn,
        images,
        [2, Probability(0)],
        "smoothgrad",
        samples=5,
        sigma=0.3,
        relative=relative,
        seed=7,
        max_batch=max_batch,
    )
    generator = torch.Generator().manual_seed(7)
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator, dtype=torch.float64) for _ in range(5)])
    for b, image in enumerate(images):
        sigma = 0.3 * float(image.max() - image.min()) if relative else 0.3
        for k, (kind, t) in enumerate([("logit", 2), ("probability", 0)]):
            wanted = naive.smoothgrad(cnn, image[None], naive.score(kind, t), sigma, noise)
            torch.testing.assert_close(found.relevance[b, k], wanted, **CLOSE)
        torch.testing.assert_close(found.extras["sigma"][b], torch.tensor(sigma, dtype=torch.float64))


def test_smoothgrad_depends_on_its_seed_alone(cnn: nn.Module, images: Tensor) -> None:
    first = explain(cnn, images, 1, "smoothgrad", samples=3, seed=1).relevance
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert explain(cnn, images, 1, "smoothgrad", samples=3, seed=1).relevance.equal(first)
    assert torch.get_rng_state().equal(state)
    assert not explain(cnn, images, 1, "smoothgrad", samples=3, seed=2).relevance.equal(first)


def test_smoothgrad_without_noise_is_the_gradient(vit: nn.Module, images: Tensor) -> None:
    smooth = explain(vit, images, 1, "smoothgrad", samples=2, sigma=0.0).relevance
    torch.testing.assert_close(smooth, explain(vit, images, 1, "saliency").relevance, **CLOSE)


RULES = {
    "right": ([0.25, 0.5, 0.75, 1.0], [0.25] * 4),
    "left": ([0.0, 0.25, 0.5, 0.75], [0.25] * 4),
    "midpoint": ([0.125, 0.375, 0.625, 0.875], [0.25] * 4),
    "trapezoid": ([0.0, 1 / 3, 2 / 3, 1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "gauss-legendre": (
        [0.0694318442029737, 0.3300094782075719, 0.6699905217924281, 0.9305681557970263],
        [0.1739274225687269, 0.3260725774312731, 0.3260725774312731, 0.1739274225687269],
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_is_the_weighted_sum_over_the_path(
    naive: SimpleNamespace, vit: nn.Module, images: Tensor, rule: str
) -> None:
    start = torch.full((3, 1, 1), -0.4, dtype=torch.float64)
    found = explain(
        vit,
        images,
        [MaxContrast(1), LogOdds(4)],
        "integrated_gradients",
        steps=4,
        rule=rule,
        baseline=start,
        max_batch=2,
    )
    nodes, weights = RULES[rule]
    full = start.expand(1, 3, 16, 24)
    for b, image in enumerate(images):
        for k, (kind, t) in enumerate([("max_contrast", 1), ("log_odds", 4)]):
            value = naive.score(kind, t)
            wanted = naive.integrated_gradients(vit, image[None], value, full, nodes, weights)
            torch.testing.assert_close(found.relevance[b, k], wanted, **CLOSE)
            change = value(vit(image[None])) - value(vit(full))
            torch.testing.assert_close(found.extras["residual"][b, k], (wanted.sum() - change).detach(), **CLOSE)


def test_integrated_gradients_are_complete(vit: nn.Module, images: Tensor) -> None:
    found = explain(vit, images, [0, LogOdds(2)], "integrated_gradients", steps=60)
    change = found.values - found.extras["baseline_values"]
    assert found.extras["residual"].abs().max() < 1e-6 * change.abs().max()
    coarse = explain(vit, images, [0, LogOdds(2)], "integrated_gradients", steps=10, rule="right")
    assert coarse.extras["residual"].abs().max() > found.extras["residual"].abs().max()


def test_a_baseline_may_differ_by_image(cnn: nn.Module, images: Tensor) -> None:
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = explain(cnn, images, 1, "integrated_gradients", steps=3, baseline=start, max_batch=2)
    for b in range(len(images)):
        alone = explain(cnn, images[b : b + 1], 1, "integrated_gradients", steps=3, baseline=start[b])
        torch.testing.assert_close(found.relevance[b], alone.relevance[0], **CLOSE)


def test_black_is_what_the_model_says(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "pretrained_cfg", {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}, raising=False)
    black = torch.tensor([-2.0, -2.0, -2.0], dtype=torch.float64).view(3, 1, 1)
    found = explain(vit, images, 1, "integrated_gradients", steps=3, baseline="black").relevance
    torch.testing.assert_close(
        found, explain(vit, images, 1, "integrated_gradients", steps=3, baseline=black).relevance
    )


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("black", "does not say how its input was normalised"),
        ("grey", "baseline is None, 'zero', 'black' or an image"),
        (torch.zeros(2, 5), r"baseline has the shape \(2, 5\)"),
        (torch.full((3, 1, 1), torch.nan), "NaN or infinite"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(cnn: nn.Module, images: Tensor, baseline: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain(cnn, images, 1, "integrated_gradients", baseline=baseline)


@pytest.mark.parametrize("method", ["saliency", "smoothgrad", "integrated_gradients"])
def test_a_binary_output(naive: SimpleNamespace, binary_cnn: nn.Module, images: Tensor, method: str) -> None:
    found = explain(binary_cnn, images, [0, Probability(0), LogOdds(0)], method)
    torch.testing.assert_close(found.relevance[:, 0], found.relevance[:, 2], **CLOSE)
    torch.testing.assert_close(found.values[:, 1], binary_cnn(images)[:, 0].sigmoid().detach(), **CLOSE)
    if method == "saliency":
        p = found.values[:, 1, None, None]
        torch.testing.assert_close(found.relevance[:, 1], p * (1 - p) * found.relevance[:, 0], **CLOSE)
