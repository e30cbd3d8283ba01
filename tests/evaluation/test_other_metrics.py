"""Compactness, deletion and insertion, ε-perturbation, blur/mask test, ADCC: definitions and undefined cases."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import (
    adcc,
    blur_mask_test,
    compactness,
    deletion_insertion,
    epsilon_perturbation,
    two_probable,
)
from lidc_xai.evaluation.metrics._blur_mask_test import _counts as counts_removed
from lidc_xai.evaluation.metrics._sensitivity_n import SensitivityNOptions
from lidc_xai.evaluation.metrics._sensitivity_n import _counts as pixels_of
from lidc_xai.explain import Logit, Probability, explain


def test_compactness_counts_cells_below_a_twentieth_of_the_maximum() -> None:
    maps = torch.tensor([[[1.0, 0.04, -0.04], [0.05, -0.9, 0.0]], [[-1.0, -2, -3], [-1, -1, -1]], [[2.0] * 3] * 2])
    found = compactness(maps)
    assert found.value.tolist() == pytest.approx([3 / 6, 0, 0])
    assert found.reasons == ("", "no positive relevance: 0 by definition", "")
    assert compactness(torch.tensor([[[0.01, -1.0]]]), of="max_abs").value.tolist() == [0.5]
    assert compactness(maps, threshold=0.95).value[0] == pytest.approx(5 / 6)


def test_compactness_of_pixels_tokens_and_patch_means() -> None:
    tokens = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = tokens.repeat_interleave(8, 1).repeat_interleave(8, 2)
    np.testing.assert_array_equal(compactness(tokens).value, compactness(pixels).value)
    np.testing.assert_allclose(compactness(pixels, grid=(4, 4)).on_grid, compactness(tokens).value)
    with pytest.raises(DataError, match="does not divide"):
        compactness(pixels, grid=(5, 4))
    broken = tokens.clone()
    broken[0, 0, 0] = torch.inf
    found = compactness(broken)
    assert np.isnan(found.value[0])
    assert found.undefined == 1


def test_deletion_and_insertion_equal_the_definition_cell_by_cell(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = deletion_insertion(vit, images, relevance, 3, cell=56, max_batch=6)
    assert found.share.tolist() == pytest.approx(np.arange(17) / 16)
    for b in (0, 3):
        order = relevance[b].flatten().argsort(descending=True).tolist()
        means = images[b].mean((1, 2), keepdim=True).expand(3, 32, 32)
        deleted, inserted = images[b].clone(), means.clone()
        curves = [[], []]
        for cell in [None, *order]:
            if cell is not None:
                r, c = cell // 4 * 8, cell % 4 * 8
                deleted[:, r : r + 8, c : c + 8] = means[:, r : r + 8, c : c + 8]
                inserted[:, r : r + 8, c : c + 8] = images[b, :, r : r + 8, c : c + 8]
            for curve, image in zip(curves, (deleted, inserted), strict=True):
                curve.append(vit(image[None]).softmax(-1)[0, 3].item())
        np.testing.assert_allclose(found.deletion[b], curves[0], atol=1e-10)
        np.testing.assert_allclose(found.insertion[b], curves[1], atol=1e-10)
        assert found.area_deletion[b] == pytest.approx(np.trapezoid(curves[0], dx=1 / 16))
    raw = deletion_insertion(vit, images, relevance, Logit(3), cell=56)
    np.testing.assert_allclose(raw.deletion[:, 0], vit(images)[:, 3].detach(), atol=1e-10)


def test_deletion_of_a_binary_and_a_regression_output(named: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    outputs = named(images).detach()
    binary = deletion_insertion(named, images, relevance, "malignancy")
    np.testing.assert_allclose(binary.deletion[:, 0], outputs[:, 0].sigmoid(), atol=1e-10)
    regression = deletion_insertion(named, images, relevance, "margin")
    np.testing.assert_allclose(regression.insertion[:, -1], outputs[:, 2], atol=1e-10)


def naive_epsilon(model: nn.Module, image: Tensor, label: int, name: str, steps: int) -> Tensor:
    mean, std, epsilon = 0.5, 0.25, 3e-3
    start = (image * std + mean).clamp(0, 1)
    x = start.clone()
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        y = model(((x - mean) / std)[None])[0]
        others = torch.cat([y[:label], y[label + 1 :]])
        score = {
            "logit": y[label],
            "mean": y[label] - others.mean(),
            "max": y[label] - others.max(),
            "weighted": torch.log_softmax(y, 0)[label] - torch.log1p(-torch.softmax(y, 0)[label]),
        }[name]
        x = x + torch.autograd.grad(score, x)[0].sign() * epsilon / steps
        x = torch.minimum(torch.maximum(x, start - epsilon), start + epsilon).clamp(0, 1)
    return ((x.detach() - mean) / std)[None]


def test_epsilon_perturbation_equals_the_definition(vit: nn.Module, images: Tensor) -> None:
    images = images.clamp(-1.9, 1.9)
    labels = torch.tensor([0, 1, 2, 3])
    found = epsilon_perturbation(vit, images, labels, mean=[0.5], std=[0.25], max_batch=3)
    assert (found.contrasts, found.steps) == (("logit", "mean", "max", "weighted"), (1, 2, 10))
    for b, c, s in [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 1)]:
        after = vit(naive_epsilon(vit, images[b], b, found.contrasts[c], found.steps[s]))[0].detach()
        before = vit(images[b : b + 1])[0].detach()
        assert found.delta_logit[b, c, s] == pytest.approx((after - before)[b].item(), abs=1e-9)
        change = (after.softmax(0) - before.softmax(0))[b].item()
        assert found.delta_probability[b, c, s] == pytest.approx(change, abs=1e-9)
        assert found.correct[b, c, s] == float(after.argmax() == b)
    assert (found.delta_logit[:, 0] > 0).all()
    table = found.table()
    assert len(table) == 4 * 3 * 3
    assert (table["n"] == 4).all()
    first = table[(table.contrast == "max") & (table.steps == 10) & (table.figure == "delta_logit")].iloc[0]
    assert first["mean"] == pytest.approx(found.delta_logit[:, 2, 2].mean())
    assert first["low"] <= first["mean"] <= first["high"]
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_epsilon_perturbation_of_a_linear_model_is_exact(on_patch: nn.Module) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    found = epsilon_perturbation(on_patch, images, torch.tensor([0, 1]), mean=[0.5], std=[1.0], contrasts=["logit"])
    np.testing.assert_allclose(found.delta_logit[0], 40 * 3e-3, atol=1e-12)
    np.testing.assert_allclose(found.delta_logit[1], 25 * 3e-3, atol=1e-12)


def test_epsilon_perturbation_refuses_what_it_cannot_do(vit: nn.Module, named: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="give mean and std"):
        epsilon_perturbation(vit, images, torch.zeros(4, dtype=torch.long))
    with pytest.raises(UsageError, match="MeanContrast has no meaning on the binary output"):
        epsilon_perturbation(named, images, torch.zeros(4, dtype=torch.long), mean=[0.5], std=[0.2])
    with pytest.raises(UsageError, match="one class for each of 4 images"):
        epsilon_perturbation(vit, images, torch.zeros(3, dtype=torch.long), mean=[0.5], std=[0.2])
    bright = epsilon_perturbation(
        vit, images + 9, torch.zeros(4, dtype=torch.long), mean=[0.5], std=[0.2], steps=[1], contrasts=["max"]
    )
    assert bright.undefined == 4
    assert "leaves [0, 1]" in bright.reasons[0]


def test_two_probable_classes() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.85, 0.08, 0.07], [0.05, 0.45, 0.5]])
    rows, classes = two_probable(probabilities.log())
    assert rows.tolist() == [0, 2]
    assert classes.tolist() == [[0, 1], [2, 1]]


def test_blur_mask_removes_equally_many_pixels_of_the_other_sign(on_patch: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.1
    maps = [on_patch.oracle(images, column) - 0.02 * on_patch.oracle(images, 1 - column) for column in range(2)]
    shuffled = [m.flatten(1)[:, torch.randperm(1024, generator=torch.Generator().manual_seed(4))] for m in maps]
    relevance = {"oracle": tuple(maps), "shuffled": tuple(m.view(2, 32, 32) for m in shuffled)}
    classes = torch.tensor([[0, 1], [1, 0]])
    relevance = {  # the maps for the first and the second class of each image
        name: tuple(torch.stack([pair[classes[b, k]][b] for b in range(2)]) for k in range(2))
        for name, pair in relevance.items()
    }
    found = blur_mask_test(on_patch, images, relevance, classes, mode="negative", baseline="zero")
    y = on_patch(images).detach()
    before = torch.softmax(y.gather(1, classes), 1)[:, 0]
    np.testing.assert_allclose(found.before, before, atol=1e-12)
    positive = torch.stack([(relevance["oracle"][k] > 0).sum((1, 2)) for k in range(2)], 1)
    np.testing.assert_array_equal(found.removed, positive)
    # The oracle's positive pixels for class 0 are all that class 0 reads: without them y_0 = 0.
    oracle = found.methods.index("oracle")
    table = found.table().set_index(["method", "map"])
    assert table.loc[("oracle", "second"), "mean"] == pytest.approx((found.after[:, oracle, 1] - found.before).mean())
    assert found.after[0, oracle, 0] < found.before[0]
    assert abs(found.after[:, 0] - found.before[:, None]).mean() > abs(found.after[:, 1] - found.before[:, None]).mean()


def test_blur_mask_keeps_what_it_cannot_decide_visible(vit: nn.Module, images: Tensor) -> None:
    positive = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    classes = torch.tensor([[0, 1]] * 4)
    found = blur_mask_test(vit, images, {"attention": (positive, positive)}, classes)
    np.testing.assert_allclose(found.after[:, 0, 0], found.before, atol=1e-12)
    assert found.undefined == 4
    assert "nothing is removed" in found.reasons[0]
    with pytest.raises(UsageError, match="mode is 'positive' or 'negative'"):
        blur_mask_test(vit, images, {"attention": (positive, positive)}, classes, mode="both")


def naive_unit(relevance: Tensor, size: int, relu: bool = True) -> Tensor:
    if relu:
        relevance = relevance.clamp_min(0)
    up = nn.functional.interpolate(relevance[None, None], (size, size), mode="bilinear")[0, 0]
    return (up - up.min()) / (up.max() - up.min())


def test_adcc_equals_the_definition_for_a_class(vit: nn.Module, images: Tensor) -> None:
    found = adcc(vit, images, 2, "cdam", signed="minmax", max_batch=3)
    for b in range(4):
        image = images[b : b + 1]
        first = naive_unit(explain(vit, image, 2, "cdam").relevance[0, 0], 32, relu=False)
        seen = image * first
        again = naive_unit(explain(vit, seen, 2, "cdam").relevance[0, 0], 32, relu=False)
        p, q = (vit(x).softmax(-1)[0, 2].item() for x in (image, seen))
        coherency = (1 + np.corrcoef(first.flatten(), again.flatten())[0, 1]) / 2
        drop, complexity = max(0, p - q) / p, first.mean().item()
        assert found.average_drop[b] == pytest.approx(drop, abs=1e-9)
        assert found.coherency[b] == pytest.approx(coherency, abs=1e-9)
        assert found.complexity[b] == pytest.approx(complexity, abs=1e-9)
        assert found.increase[b] == float(q > p)
        assert found.adcc[b] == pytest.approx(3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)), abs=1e-9)


def test_adcc_of_a_binary_output_is_that_of_the_predicted_side(named: nn.Module, images: Tensor) -> None:
    logits = named(images)[:, 0].detach()
    assert (logits > 0).any()
    assert (logits < 0).any()
    found = adcc(named, images, "malignancy", "cdam")
    for b in range(4):
        image, sign = images[b : b + 1], float(logits[b].sign())
        first = naive_unit(sign * explain(named, image, "malignancy", "cdam").relevance[0, 0], 32)
        seen = image * first
        p, q = ((sign * named(x)[0, 0]).sigmoid().item() for x in (image, seen))
        assert found.average_drop[b] == pytest.approx(max(0, p - q) / p, abs=1e-9)
        assert found.complexity[b] == pytest.approx(first.mean().item(), abs=1e-9)
    with pytest.raises(UsageError, match="'margin' is a regression"):
        adcc(named, images, "margin")


def test_adcc_of_maps_that_ignore_the_image_and_limiting_cases(vit: nn.Module, images: Tensor) -> None:
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64).view(1, 4, 4)
    found = adcc(vit, images, 0, lambda seen, target: ramp.expand(len(seen), -1, -1))
    np.testing.assert_allclose(found.coherency, 1, atol=1e-12)
    flat = adcc(vit, images, 0, lambda seen, target: torch.ones(len(seen), 4, 4))
    assert flat.adcc.tolist() == [0] * 4
    assert flat.coherency.tolist() == [0] * 4
    assert flat.undefined == 4
    negative = adcc(vit, images, 0, lambda seen, target: -ramp.expand(len(seen), -1, -1) - 1)
    assert negative.adcc.tolist() == [0] * 4
    shown = adcc(vit, images, 0, lambda seen, target: -ramp.expand(len(seen), -1, -1) - 1, signed="minmax")
    assert (shown.adcc > 0).all()
    damaged = adcc(vit, images, 0, lambda seen, target: torch.full((len(seen), 4, 4), torch.nan))
    assert damaged.adcc.tolist() == [0] * 4
    assert np.isnan(damaged.coherency).all()
    with pytest.raises(TypeError, match="unknown option"):
        adcc(vit, images, 0, lambda seen, target: ramp, samples=3)


def test_adcc_takes_the_class_that_was_asked_for_and_a_methods_own_target(vit: nn.Module, images: Tensor) -> None:
    classes = torch.tensor([4, 3, 2, 1])
    each = adcc(vit, images, classes, "reciprocam")
    one = adcc(vit, images[1:2], Probability(3), "reciprocam")
    np.testing.assert_allclose(each.adcc[1:2], one.adcc, atol=1e-9)


def test_a_share_of_the_pixels_is_rounded_and_never_none() -> None:
    assert pixels_of(torch.zeros(3, 64), SensitivityNOptions(shares=(0.7, 0.001))) == [45, 1]


def test_every_method_removes_as_many_pixels_as_the_one_that_has_fewest() -> None:
    maps = torch.ones(1, 2, 2, 2, 3)  # one image, two methods, two classes
    maps[0, 0, 0].flatten()[:3] = maps[0, 1, 0].flatten()[:5] = -1
    maps[0, 0, 1].flatten()[:4] = maps[0, 1, 1].flatten()[:2] = -1
    assert counts_removed(maps, "positive").tolist() == [[3, 2]]
    assert counts_removed(maps, "negative").tolist() == [[1, 2]]
