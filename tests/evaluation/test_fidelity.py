"""MIF/LIF, box sensitivity and class discrimination: naive references, and models whose truth is known."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import box_sensitivity, class_discrimination, fidelity, wrong_class
from lidc_xai.evaluation.maps import tie_permutation
from lidc_xai.evaluation.metrics._box_sensitivity import _area, random_boxes
from lidc_xai.evaluation.replacement import Replacement, _noise_like, inpainted


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """scipy's mirror mode is reflection without repeating the edge."""
    radius = min(int(np.ceil(3 * sigma)), image.shape[-1] - 1)
    at = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (at / sigma) ** 2)
    kernel /= kernel.sum()
    return correlate1d(correlate1d(image, kernel, axis=-2, mode="mirror"), kernel, axis=-1, mode="mirror")


def naive_curves(model: nn.Module, image: Tensor, relevance: np.ndarray, column: int, seed: int = 0) -> np.ndarray:
    """(2,21): MIF and LIF, one pixel list at a time, from the definition."""
    size = image.shape[-1]
    other = blurred(image.numpy(), 14 * size / 224)
    place = tie_permutation(size * size, seed).argsort().numpy()
    order = sorted(range(size * size), key=lambda p: (relevance.ravel()[p], place[p]))
    curves = []
    for removing in (order[::-1], order):
        scores = []
        for percent in range(0, 101, 5):
            changed = image.numpy().copy()
            gone = removing[: round(percent / 100 * size * size)]
            changed.reshape(3, -1)[:, gone] = other.reshape(3, -1)[:, gone]
            with torch.no_grad():
                scores.append(float(model(torch.from_numpy(changed)[None])[0, column]))
        curves.append(scores)
    return np.array(curves)


def test_fidelity_equals_the_definition_pixel_by_pixel(vit: nn.Module, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 4, 4, generator=generator)
    found = fidelity(vit, images, tokens, 2, max_batch=7)
    assert found.percent.tolist() == list(range(0, 101, 5))
    for b in range(2):
        pixels = np.kron(tokens[b].double().numpy(), np.ones((8, 8)))
        mif, lif = naive_curves(vit, images[b], pixels, 2)
        np.testing.assert_allclose(found.mif[b], mif, atol=1e-10)
        np.testing.assert_allclose(found.lif[b], lif, atol=1e-10)
        assert found.area_mif[b] == pytest.approx(np.trapezoid(mif, dx=5), abs=1e-8)
        assert found.area[b] == pytest.approx(np.trapezoid(lif, dx=5) - np.trapezoid(mif, dx=5), abs=1e-8)
        assert found.score[b] == pytest.approx(mif[0], abs=1e-10)
        assert found.at_stake[b] == pytest.approx(mif[0] - mif[-1], abs=1e-10)
    assert (found.undefined, found.reasons) == (0, ("",) * 4)


def test_fidelity_of_the_oracle_and_its_negative_on_a_linear_model(on_patch: nn.Module) -> None:
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    oracle = on_patch.oracle(images, 0)
    found = fidelity(on_patch, images, oracle, 0, replacement="zero")
    # The patch is 1/16 of the image: gone between 5 and 10 % in MIF, and touched only after 90 % in LIF.
    np.testing.assert_allclose(found.mif[:, 2:], 0, atol=1e-12)
    np.testing.assert_allclose(found.lif[:, :19], np.repeat(found.score[:, None], 19, 1), atol=1e-12)
    assert (found.area > 85 * found.score).all()
    opposite = fidelity(on_patch, images, -oracle, 0, replacement="zero")
    np.testing.assert_allclose(opposite.mif[:, ::-1], found.score[:, None] - found.mif, atol=1e-9)
    generator = torch.Generator().manual_seed(5)
    noise = fidelity(on_patch, images.repeat(20, 1, 1, 1), torch.randn(60, 4, 4, generator=generator), 0)
    assert abs(noise.area.mean()) < 0.25 * abs(found.area).mean()


def test_a_model_that_ignores_its_input_has_no_area_and_no_box_correlation(blind: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(2))
    found = fidelity(blind, images, relevance, 1)
    assert np.unique(found.mif).tolist() == [2.0]
    assert np.abs(found.area).max() == 0
    assert found.at_stake.tolist() == [0] * 4
    boxes = box_sensitivity(blind, images, relevance, 1)
    assert np.isnan(boxes.area).all()
    assert boxes.undefined == 4
    assert boxes.undefined_correlations == 40
    assert "does not vary" in boxes.reasons[0]
    summary = boxes.summary()
    assert summary.loc["area", "undefined"] == 4
    assert "undefined for every sample" in summary.loc["area", "note"]


def test_box_sensitivity_equals_the_definition_box_by_box(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = box_sensitivity(vit, images, relevance, 1, boxes=12, seed=4, max_batch=25)
    boxes = random_boxes((32, 32), tuple(range(16, 161, 16)), 12, 4)
    assert found.sizes_px.tolist() == [round(side * 32 / 224) for side in range(16, 161, 16)]
    other = torch.from_numpy(blurred(images[1].numpy(), 2.0))
    base = vit(images[1:2])[0, 1].item()
    correlations = []
    for s, side in enumerate(boxes.sides):
        sums, deltas = [], []
        for r, c in zip(boxes.rows[s].tolist(), boxes.columns[s].tolist(), strict=True):
            assert min(r, c) >= 0
            assert max(r, c) + side <= 32
            changed = images[1].clone()
            changed[:, r : r + side, c : c + side] = other[:, r : r + side, c : c + side]
            sums.append(relevance[1, r : r + side, c : c + side].sum().item())
            deltas.append(base - vit(changed[None])[0, 1].item())
        correlations.append(np.corrcoef(sums, deltas)[0, 1])
    np.testing.assert_allclose(found.correlation[1], correlations, atol=1e-9)
    area = np.trapezoid(correlations, np.array(boxes.sides) / (32 / 28))
    assert found.area[1] == pytest.approx(area, abs=1e-9)


def test_box_sensitivity_of_the_oracle_is_one_at_every_size(on_patch: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    found = box_sensitivity(on_patch, images, on_patch.oracle(images, 0), 0, replacement="zero")
    np.testing.assert_allclose(found.correlation, 1, atol=1e-9)
    span = (found.sizes_px[-1] - found.sizes_px[0]) / (32 / 28)
    np.testing.assert_allclose(found.area, span, atol=1e-9)


def test_discrimination_is_exactly_zero_for_maps_that_ignore_the_class(vit: nn.Module, images: Tensor) -> None:
    same = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3))
    found = class_discrimination(deepcopy(vit).float(), images.float(), same, same.clone(), 0, boxes=10)
    assert found.fidelity.tolist() == [0.0] * 4
    assert found.box.tolist() == [0.0] * 4
    assert found.undefined == 0


def test_discrimination_is_the_difference_on_the_right_class(on_patch: nn.Module) -> None:
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    own, wrong = on_patch.oracle(images, 0), on_patch.oracle(images, 1)
    found = class_discrimination(on_patch, images, own, wrong, 0, replacement="zero", boxes=20)
    areas = [fidelity(on_patch, images, m, 0, replacement="zero").area for m in (own, wrong)]
    boxes = [box_sensitivity(on_patch, images, m, 0, replacement="zero", boxes=20).area for m in (own, wrong)]
    np.testing.assert_allclose(found.fidelity, areas[0] - areas[1], atol=1e-9)
    np.testing.assert_allclose(found.box, boxes[0] - boxes[1], atol=1e-9)
    assert (found.fidelity > 0).all()
    assert (found.box > 0).all()


def test_wrong_class_is_another_label_else_the_second_most_probable() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 5, 1, 2], [9, 1, 2, 3]])
    target = torch.tensor([0, 3, 0])
    assert wrong_class(logits, target).tolist() == [1, 1, 3]
    labels = torch.tensor([[True, False, True, False], [False, False, False, True], [True, True, True, False]])
    assert wrong_class(logits, target, labels).tolist() == [2, 1, 2]
    with pytest.raises(DataError, match="class logits"):
        wrong_class(logits[:, :1], target)


def test_results_do_not_depend_on_the_batch(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    whole = fidelity(vit, images, relevance, 0, max_batch=64)
    parts = [fidelity(vit, images[b : b + 1], relevance[b : b + 1], 0, max_batch=5) for b in range(4)]
    joined = type(whole).join(parts)
    np.testing.assert_allclose(whole.mif, joined.mif, atol=1e-12)
    assert len(joined) == 4
    boxes = box_sensitivity(vit, images, relevance, 0, boxes=8)
    one = box_sensitivity(vit, images[2:3], relevance[2:3], 0, boxes=8, max_batch=3)
    np.testing.assert_allclose(boxes.correlation[2:3], one.correlation, atol=1e-9)


def test_ties_are_broken_alike_for_all_methods_and_by_the_seed(vit: nn.Module, images: Tensor) -> None:
    flat, shifted = torch.zeros(4, 4, 4), torch.ones(4, 32, 32)
    found = fidelity(vit, images, flat, 0)
    np.testing.assert_array_equal(found.mif, fidelity(vit, images, shifted, 0).mif)
    assert np.abs(found.mif - fidelity(vit, images, flat, 0, seed=1).mif).max() > 1e-6
    assert found.undefined == 4
    assert found.reasons[0].startswith("the map is constant")
    assert np.isfinite(found.area).all()


def test_broken_maps_are_counted_and_leave_the_others_alone(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    damaged = relevance.clone()
    damaged[1, 0, 0] = torch.nan
    damaged[3, 2, 2] = torch.inf
    good, found = fidelity(vit, images, relevance, 0), fidelity(vit, images, damaged, 0)
    assert np.isnan(found.area[[1, 3]]).all()
    np.testing.assert_allclose(found.area[[0, 2]], good.area[[0, 2]], atol=1e-10)
    assert found.reasons == ("", "the map is not finite", "", "the map is not finite")
    assert found.summary().loc["area", ["n", "undefined", "note"]].tolist() == [2, 2, "the map is not finite"]
    boxes = box_sensitivity(vit, images, damaged, 0, boxes=5)
    assert np.isfinite(boxes.area).tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", [(4, 5, 4), (4, 64, 64), (3, 4, 4), (4, 2, 4, 4)])
def test_maps_of_the_wrong_size_are_refused(vit: nn.Module, images: Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"fits no image|relevance is \(B, h, w\)"):
        fidelity(vit, images, torch.zeros(shape), 0)


def test_wrong_options_are_named(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.zeros(4, 4, 4)
    with pytest.raises(TypeError, match=r"unknown option 'sigmas'; valid options: .*sigma_mm"):
        fidelity(vit, images, relevance, 0, sigmas=3)
    with pytest.raises(UsageError, match="replacement is 'blur', 'lung', 'mean' or 'zero', not 'grey'"):
        fidelity(vit, images, relevance, 0, replacement="grey")
    with pytest.raises(UsageError, match="sigma_mm needs spacing_mm"):
        fidelity(vit, images, relevance, 0, sigma_mm=4)
    with pytest.raises(UsageError, match="needs masks"):
        fidelity(vit, images, relevance, 0, replacement="lung")
    with pytest.raises(UsageError, match="takes one target per image, got 2"):
        fidelity(vit, images, relevance, [0, 1])
    with pytest.raises(DataError, match=r"images are normalised floats \(B, C, H, W\)"):
        fidelity(vit, (images * 255).byte(), relevance, 0)
    with pytest.raises(UsageError, match="precision is"):
        fidelity(vit, images, relevance, 0, precision="half")


def test_the_model_is_left_as_it_was(vit: nn.Module, images: Tensor) -> None:
    vit.train()
    vit.norm.eval()
    state = torch.random.get_rng_state()
    fidelity(vit, images, torch.zeros(4, 4, 4), 0, points=3)
    assert vit.training
    assert vit.blocks[0].training
    assert not vit.norm.training
    assert torch.equal(state, torch.random.get_rng_state())
    vit.eval()


def test_targets_by_name_per_image_and_contrast(named: nn.Module, vit: nn.Module, images: Tensor) -> None:
    from lidc_xai.explain import LogOdds

    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    by_name = fidelity(named, images, relevance, "margin", points=3)
    np.testing.assert_allclose(by_name.score, named(images)[:, 2].detach(), atol=1e-10)
    classes = torch.tensor([0, 4, 2, 1])
    each = fidelity(vit, images, relevance, classes, points=3)
    np.testing.assert_allclose(each.score, vit(images).detach().gather(1, classes[:, None])[:, 0], atol=1e-10)
    odds = fidelity(vit, images, relevance, LogOdds(3), points=3)
    y = vit(images).detach()
    others = y[:, [0, 1, 2, 4]].logsumexp(1)
    np.testing.assert_allclose(odds.score, y[:, 3] - others, atol=1e-10)


def test_normalised_curves_start_at_one(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    raw, scaled = fidelity(vit, images, relevance, 0), fidelity(vit, images, relevance, 0, normalise=True)
    np.testing.assert_allclose(scaled.lif, raw.lif / raw.score[:, None], atol=1e-10)


@pytest.mark.parametrize("sigma_mm", [None, 3.0])
def test_blur_is_a_mirrored_gaussian_with_sigma_scaled_or_in_mm(images: Tensor, sigma_mm: float | None) -> None:
    found = Replacement(sigma_mm=sigma_mm, spacing_mm=0.5).of(images)
    wanted = blurred(images.numpy(), 14 * 32 / 224 if sigma_mm is None else 6.0)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_mean_and_zero_replacement(images: Tensor) -> None:
    means = Replacement("mean").of(images)
    assert means.shape == images.shape
    np.testing.assert_allclose(means[1, 2], images[1, 2].mean(), atol=1e-12)
    assert Replacement("zero").of(images).abs().max() == 0


def test_lung_replacement_takes_the_nodule_away_and_keeps_the_lung() -> None:
    generator = torch.Generator().manual_seed(0)
    lung = -0.8 + 0.1 * torch.randn(6, 1, 64, 64, generator=generator, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    nodule = (y - 31.5) ** 2 + (x - 31.5) ** 2 < 10**2
    wall = (x < 6)[None].expand(6, -1, -1)
    images = torch.where(nodule | wall[:, None], torch.tensor(1.8, dtype=torch.float64), lung).expand(-1, 3, -1, -1)
    found = Replacement("lung", sigma_mm=2.0, spacing_mm=0.5, masks=nodule.expand(6, -1, -1)).of(images)
    inside = found[:, :, nodule]
    assert abs(float(inside.mean()) + 0.8) < 0.03
    assert float(inside.std()) == pytest.approx(0.1, rel=0.15)
    assert float(found.max()) < 0
    np.testing.assert_array_equal(
        found, Replacement("lung", sigma_mm=2.0, spacing_mm=0.5, masks=nodule.expand(6, -1, -1)).of(images)
    )
    blur = Replacement(sigma_mm=2.0, spacing_mm=0.5).of(images)[:, :, nodule]
    assert float(blur.mean()) > 0.5  # the blurred image keeps the nodule: that is why lung replacement exists
    known = Replacement("lung", sigma_mm=2.0, spacing_mm=0.5, masks=nodule.expand(6, -1, -1), parenchyma=~wall).of(
        images
    )
    assert abs(float(known[:, :, nodule].mean()) + 0.8) < 0.03


def test_summary_by_group_and_by_patient(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    found = fidelity(vit, images, relevance, 0, points=5)
    table = found.summary(["a", "a", "b", "b"])
    assert table.loc["area", "mean"] == pytest.approx(found.area.mean())
    assert table.loc["area", "low"] <= table.loc["area", "mean"] <= table.loc["area", "high"]
    groups = found.by_group(["small", "large", "small", "large"], clusters=["a", "a", "b", "c"])
    assert groups.loc[("small", "area"), "mean"] == pytest.approx(found.area[[0, 2]].mean())


def test_concepts_are_judged_on_their_similarity(vit: nn.Module, images: Tensor) -> None:
    from lidc_xai.explain import ConceptSimilarity

    vector = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    found = fidelity(vit, images, relevance, ConceptSimilarity(vector), points=3)
    features = vit.forward_head(vit.forward_features(images), pre_logits=True).detach()
    np.testing.assert_allclose(found.score, features @ vector, atol=1e-9)
    assert np.isfinite(found.area).all()


def test_mixed_precision_is_close_and_leaves_no_trace(vit: nn.Module, images: Tensor) -> None:
    single = deepcopy(vit).float()
    relevance = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    full = fidelity(single, images, relevance, 0)
    mixed = fidelity(single, images, relevance, 0, precision="bfloat16")
    scale = np.abs(full.mif).max()
    assert 0 < np.abs(full.mif - mixed.mif).max() < 0.05 * scale
    assert not torch.is_autocast_enabled("cpu")


def test_curves_can_be_read_by_a_tuned_copy_and_over_a_part(vit: nn.Module, images: Tensor) -> None:
    tokens = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = fidelity(vit, images, tokens, 2, points=5)
    same = fidelity(vit, images, tokens, 2, points=5, model_masked=deepcopy(vit))
    np.testing.assert_array_equal(same.area, plain.area)
    other = deepcopy(vit)
    with torch.no_grad():
        other.head.weight *= 2
        other.head.bias *= 2
    tuned = fidelity(vit, images, tokens, 2, points=5, model_masked=other)
    np.testing.assert_allclose(tuned.mif, 2 * plain.mif, atol=1e-10)
    np.testing.assert_allclose(tuned.at_stake, 2 * plain.at_stake, atol=1e-10)
    half = fidelity(vit, images, tokens, 2, points=5, up_to=50)
    np.testing.assert_allclose(half.area_mif, np.trapezoid(plain.mif[:, :3], dx=25, axis=1), atol=1e-10)
    assert half.percent.tolist() == [0, 25, 50, 100]  # between 50 and 100 % nothing is run
    np.testing.assert_allclose(half.mif, plain.mif[:, [0, 1, 2, 4]], atol=1e-10)
    np.testing.assert_allclose(half.lif, plain.lif[:, [0, 1, 2, 4]], atol=1e-10)


def test_the_predicted_class_is_the_explained_models_own(vit: nn.Module, images: Tensor) -> None:
    turned = deepcopy(vit)
    with torch.no_grad():
        turned.head.weight *= -1
        turned.head.bias *= -1
        asked = vit(images).argmax(1)
    tokens = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    found = fidelity(vit, images, tokens, points=3, model_masked=turned)
    with torch.no_grad():
        np.testing.assert_allclose(found.score, turned(images).gather(1, asked[:, None])[:, 0], atol=1e-10)


def test_a_copy_of_another_model_and_a_part_off_the_curve_are_refused(vit: nn.Module, images: Tensor) -> None:
    smaller = deepcopy(vit)
    smaller.reset_classifier(3)
    with pytest.raises(UsageError, match="model_masked has 3 outputs, the model 5"):
        fidelity(vit, images, torch.rand(4, 4, 4), 1, points=3, model_masked=smaller.double())
    for bad in (0, 33, 110):
        with pytest.raises(UsageError, match="up_to is a point of the curve: a multiple of 5"):
            fidelity(vit, images, torch.rand(4, 4, 4), 1, up_to=bad)


def test_inpainting_fills_from_what_is_left(vit: nn.Module, images: Tensor) -> None:
    flat = torch.full((2, 3, 9, 7), 1.5, dtype=torch.float64)
    gone = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.7
    torch.testing.assert_close(inpainted(flat, gone), flat)  # one grey level stays it
    torch.testing.assert_close(inpainted(images, torch.zeros_like(images[:, :1], dtype=torch.bool)), images)
    everything = torch.ones_like(images[:, :1], dtype=torch.bool)
    torch.testing.assert_close(inpainted(images, everything), Replacement("mean").of(images))
    changed, half, middle = images.clone(), everything.clone(), images.shape[-1] // 2
    half[..., :middle] = False
    changed[..., middle:] = 99.0
    torch.testing.assert_close(inpainted(changed, half), inpainted(images, half))  # what is gone has no say
    torch.testing.assert_close(inpainted(changed, half)[..., :middle], images[..., :middle])
    maps = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fidelity(vit, images, maps, 0, points=3, inpaint=True)
    count = maps[0].numel() // 2
    for b in range(len(images)):
        most = maps[b].flatten().argsort(descending=True)[:count]
        mask = torch.zeros(maps[b].numel(), dtype=torch.bool)
        mask[most] = True
        with torch.no_grad():
            naive = vit(inpainted(images[b : b + 1], mask.view(1, 1, *maps[b].shape)))[0, 0]
        assert found.mif[b, 1] == pytest.approx(float(naive), abs=1e-6)


def test_noise_that_stands_for_lung_has_no_mean_and_the_lungs_spread() -> None:
    residual = 0.7 + torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.ones_like(residual)
    weights[..., :4] = 0
    noise = _noise_like(residual * weights, weights, seed=3)
    assert noise.mean((-2, -1)).abs().max() < 1e-12
    wanted = ((residual * weights) ** 2).sum((-2, -1)) / weights.sum((-2, -1))
    assert torch.allclose((noise**2).mean((-2, -1)), wanted)


def test_a_blur_in_mm_follows_the_spacing_of_rows_and_of_columns() -> None:
    """``spacing_mm``: between rows, between columns; a plane of thick slices is blurred over fewer rows."""
    assert Replacement(sigma_mm=2.0, spacing_mm=(2.5, 0.5)).sigma_px((64, 64)) == pytest.approx((0.8, 4.0))
    assert Replacement(sigma_mm=2.0, spacing_mm=0.5).sigma_px((64, 64)) == pytest.approx((4.0, 4.0))


def test_the_area_over_the_sides_that_are_left_is_scaled_to_all_of_them() -> None:
    assert _area(np.array([np.nan, 1.0, 1.0]), np.array([0.0, 1.0, 2.0])) == 2.0
    assert _area(np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 3.0])) == 1.5
    assert np.isnan(_area(np.array([np.nan, np.nan, 1.0]), np.array([0.0, 1.0, 2.0])))
