"""Against contours and causes: naive references, known answers by construction, undefined cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import (
    against_readers,
    cause_effects,
    cause_localisation,
    cause_sign,
    centred_disc_localisation,
    localisation,
    radial_profile,
    reader_agreement,
)
from lidc_xai.evaluation.geometry import centred_disc, in_plane, signed_distance
from lidc_xai.evaluation.maps import resampled
from lidc_xai.evaluation.metrics._localisation import average_precision


def disc(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return np.stack([disc(32, (15.5, 15.5), 6), disc(32, (10, 20), 4), disc(32, (16, 12), 9)])


def test_every_figure_equals_its_definition(masks: np.ndarray) -> None:
    maps = np.random.default_rng(0).normal(size=(3, 32, 32))
    found = localisation(maps, masks, 1.0)
    for b in range(3):
        s, m = maps[b], masks[b]
        top = s >= np.sort(s.ravel())[-m.sum()]
        peak = np.unravel_index(s.argmax(), s.shape)
        nearest = min(np.hypot(peak[0] - r, peak[1] - c) for r, c in np.argwhere(m))
        assert found.positive_mass[b] == pytest.approx(s[m & (s > 0)].sum() / s[s > 0].sum())
        assert found.absolute_mass[b] == pytest.approx(np.abs(s[m]).sum() / np.abs(s).sum())
        assert found.rank_accuracy[b] == pytest.approx((top & m).sum() / m.sum())
        assert found.iou[b] == pytest.approx((top & m).sum() / (top | m).sum())
        assert found.auprc[b] == pytest.approx(average_precision_score(m.ravel(), s.ravel()))
        assert found.pointing[b] == float(m[peak])
        assert found.pointing_2mm[b] == float(nearest <= 2)
        assert found.area_mm2[b] == m.sum()
    assert found.undefined == 0


def test_average_precision_takes_equal_scores_as_one_threshold() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        scores, truth = rng.integers(0, 4, 50).astype(float), rng.random(50) < 0.3
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert average_precision(np.zeros(50), truth) == pytest.approx(truth.mean())


def test_a_perfect_map_its_negative_and_a_random_one(masks: np.ndarray) -> None:
    perfect = localisation(masks.astype(float), masks, 1.0)
    for name in perfect.figures:
        np.testing.assert_allclose(getattr(perfect, name), 1)
    opposite = localisation(-masks.astype(float), masks, 1.0)
    assert opposite.rank_accuracy.tolist() == [0] * 3
    assert opposite.absolute_mass.tolist() == [1] * 3
    assert np.isnan(opposite.positive_mass).all()
    assert opposite.reasons == ("no positive relevance: its mass is undefined",) * 3
    noise = localisation(np.random.default_rng(2).normal(size=(60, 32, 32)), np.repeat(masks[:1], 60, 0), 1.0)
    assert noise.rank_accuracy.mean() == pytest.approx(masks[0].mean(), abs=0.02)


def test_a_token_map_and_a_fine_mask_meet_on_the_finer_grid(masks: np.ndarray) -> None:
    tokens = np.random.default_rng(3).normal(size=(3, 8, 8))
    found = localisation(tokens, masks, 1.0)
    same = localisation(np.kron(tokens, np.ones((4, 4))), masks, 1.0)
    for name in found.figures:
        np.testing.assert_array_equal(getattr(found, name), getattr(same, name))
    plane = in_plane(np.zeros((3, 14, 14)), masks, (1.0, 0.5))
    assert plane.masks.shape == (3, 32, 32)
    assert plane.token_mm == pytest.approx(32 / 14)
    finer = in_plane(np.zeros((3, 64, 64)), masks, (1.0, 0.5))
    assert finer.spacing_mm == (0.5, 0.25)
    assert finer.masks.sum() == 4 * masks.sum()


def test_undefined_planes_are_named(masks: np.ndarray) -> None:
    maps = np.random.default_rng(0).normal(size=(3, 32, 32))
    maps[1, 0, 0] = np.nan
    empty = masks.copy()
    empty[2] = False
    found = localisation(maps, empty, 1.0)
    assert found.reasons == ("", "the map is not finite", "the mask is empty in this plane")
    assert np.isfinite(found.rank_accuracy).tolist() == [True, False, False]
    assert np.isfinite(found.pointing).tolist() == [True, False, False]
    assert found.summary().loc["iou", ["n", "undefined"]].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"masks are \(B, H, W\)"):
        localisation(maps, masks[0], 1.0)
    with pytest.raises(DataError, match="spacing_mm is above 0"):
        localisation(maps, masks, 0.0)


def test_signed_distance_on_a_half_plane_and_in_millimetres() -> None:
    mask = np.zeros((6, 10), dtype=bool)
    mask[:, :4] = True
    found = signed_distance(mask, (2.0, 2.0))
    np.testing.assert_allclose(found[3], (np.arange(10) - 3.5) * 2)
    radius = signed_distance(disc(64, (31.5, 31.5), 20), (0.5, 0.5))
    y, x = np.mgrid[:64, :64]
    np.testing.assert_allclose(radius, np.hypot(y - 31.5, x - 31.5) * 0.5 - 10, atol=0.5)
    assert np.isnan(signed_distance(np.zeros((4, 4), dtype=bool), (1.0, 1.0))).all()


def test_centred_disc_has_the_masks_area_and_meets_a_centred_nodule(masks: np.ndarray) -> None:
    for pixels in (1, 37, 200):
        found = centred_disc((32, 32), pixels)
        assert (found > 0.5).sum() == pixels
    figures = centred_disc_localisation(masks, 1.0)
    assert figures.iou[0] == pytest.approx(1)
    assert figures.iou[1] < 0.4
    assert figures.pointing.tolist() == [1, 0, 1]
    # On the finer grid of a map the nodule is the same, and so are the figures.
    finer = centred_disc_localisation(masks, 1.0, (64, 64))
    np.testing.assert_allclose(finer.iou, figures.iou, atol=0.1)


def test_reader_agreement_is_each_reader_against_the_consensus_of_the_others() -> None:
    readers = np.stack([disc(40, (20, 20 + k), 8 + k) for k in range(3)])[None]
    found = reader_agreement(readers, 1.0)
    wanted = []
    for r in range(3):
        others = np.delete(readers[0], r, 0)
        consensus = others.sum(0) * 2 >= 2
        wanted.append((readers[0, r] & consensus).sum() / readers[0, r].sum())
    assert found.positive_mass[0] == pytest.approx(np.mean(wanted), abs=1e-4)
    assert found.rank_accuracy[0] > 0.8
    same = reader_agreement(np.repeat(readers[:, :1], 4, 1), 1.0)
    for name in same.figures:
        assert getattr(same, name)[0] == pytest.approx(1, abs=1e-4)
    alone = readers.copy()
    alone[0, 1:] = False
    single = reader_agreement(alone, 1.0)
    assert np.isnan(single.rank_accuracy[0])
    assert single.reasons == ("fewer than two readers marked this plane",)


def test_against_readers_is_the_mean_over_those_who_marked_the_plane() -> None:
    readers = np.stack([disc(32, (16, 16), 5), disc(32, (16, 18), 7), np.zeros((32, 32), dtype=bool)])[None]
    maps = np.random.default_rng(0).normal(size=(1, 32, 32))
    each = [localisation(maps, readers[:, r], 1.0) for r in range(2)]
    found = against_readers(maps, readers, 1.0)
    assert found.auprc[0] == pytest.approx(np.mean([one.auprc[0] for one in each]))
    assert found.reasons == ("",)
    nobody = against_readers(maps, np.zeros((1, 2, 32, 32), dtype=bool), 1.0)
    assert nobody.reasons == ("no reader marked this plane",)


def test_radial_profile_recovers_a_function_of_the_distance() -> None:
    mask = disc(96, (47.5, 47.5), 36)
    distance = signed_distance(mask, (0.5, 0.5))
    maps = np.stack([np.where(distance < 0, -1.0, 2.0), np.clip(distance, -8, 8)])
    found = radial_profile(maps, np.stack([mask, mask]), 0.5)
    assert found.edges_mm.tolist() == list(range(-10, 11))
    np.testing.assert_allclose(found.profile[0], np.where(found.distance_mm < 0, -0.5, 1.0))
    np.testing.assert_allclose(found.profile[1, 3:17], found.distance_mm[3:17] / 8, atol=0.03)
    assert found.body[0] == -0.5
    assert found.outside[0] == 1.0
    assert -0.5 < found.edge[0] < 1
    curve = found.curve(["a", "b"])
    assert curve["distance_mm"].tolist() == found.distance_mm.tolist()
    np.testing.assert_allclose(curve["mean"], found.profile.mean(0))


def test_profile_bins_are_no_narrower_than_the_token() -> None:
    mask = np.stack([disc(32, (15.5, 15.5), 7)])
    coarse = radial_profile(np.random.default_rng(0).normal(size=(1, 8, 8)), mask, 1.0)
    assert np.diff(coarse.edges_mm).tolist() == [4] * 4
    assert radial_profile(np.ones((1, 32, 32)), mask, 1.0, token_mm=2.5).edges_mm.tolist() == list(
        np.arange(-4, 5) * 2.5
    )
    assert np.diff(radial_profile(np.ones((1, 64, 64)), mask, 1.0).edges_mm)[0] == 1
    with pytest.raises(UsageError, match="below one bin"):
        radial_profile(np.ones((1, 2, 2)), mask, 1.0)


def test_undefined_profiles_are_named() -> None:
    mask = np.stack([disc(32, (15.5, 15.5), 7)] * 4)
    mask[1] = False
    maps = np.ones((4, 32, 32))
    maps[0] = 0
    maps[2, 0, 0] = np.inf
    found = radial_profile(maps, mask, 1.0)
    assert found.undefined == 3
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "the map is zero everywhere", "the mask is empty in this plane", "the map is not finite", "",
    ]  # fmt: skip
    np.testing.assert_allclose(radial_profile(maps[3:], mask[3:], 1.0, scale=[2.0]).body, 0.5)


def test_causes_are_read_with_the_sign_of_what_they_do() -> None:
    focus = np.stack([disc(32, (12, 18), 3)] * 2)
    maps = -focus.astype(float)
    found = cause_localisation(maps, focus, 1.0, cause_sign("calcification", np.array([0.4, -0.2])))
    assert found.positive_mass.tolist() == [1, 1]
    assert cause_sign("margin", np.array([0.4, -0.2])).tolist() == [1, -1]
    assert cause_sign("spiculation", np.array([-1.0])).tolist() == [1]
    with pytest.raises(DataError, match="'diameter' has no carrier"):
        cause_sign("diameter", 1.0)


def test_removing_a_cause_moves_its_output_and_only_then_is_it_a_truth(named: nn.Module, images: Tensor) -> None:
    changed = images.clone()
    changed[:2, :, 10:20, 10:20] = 0
    found = cause_effects(named, images, {"spiculation": changed, "texture": changed})
    with torch.no_grad():
        wanted = (named(images) - named(changed)).numpy()
    np.testing.assert_allclose(found["spiculation"].change[:2], wanted[:2], atol=1e-10)
    np.testing.assert_allclose(found["spiculation"].own[:2], wanted[:2, 1], atol=1e-10)
    assert found["spiculation"].reasons == ("", "", "the image has no such cause", "the image has no such cause")
    assert found["texture"].reasons[0] == "the model has no output 'texture'"
    with pytest.raises(DataError, match="margin: images without the cause"):
        cause_effects(named, images, {"margin": images[:2]})


def test_a_peak_at_exactly_two_millimetres_still_points() -> None:
    mask = np.zeros((2, 1, 8), dtype=bool)
    mask[:, 0, :3] = True
    maps = np.zeros((2, 1, 8))
    maps[0, 0, 4] = maps[1, 0, 5] = 1.0
    found = localisation(maps, mask, 1.0)
    assert found.pointing.tolist() == [0, 0]
    assert found.pointing_2mm.tolist() == [1, 0]


def test_the_body_is_all_that_is_deeper_than_one_bin() -> None:
    """Also deeper than the profile reaches: a nodule of 36 mm has a middle 18 mm below its surface."""
    mask = disc(96, (47.5, 47.5), 36)
    distance = signed_distance(mask, (0.5, 0.5))
    found = radial_profile(np.where(distance < -10, 4.0, 1.0)[None], mask[None], 0.5)
    inside = np.where(distance < -10, 1.0, 0.25)[distance < -1]
    assert found.body[0] == pytest.approx(inside.mean())
    np.testing.assert_allclose(found.profile[0], 0.25)


def test_a_pixel_reads_the_cell_that_its_centre_lies_in() -> None:
    assert resampled(torch.arange(3.0)[None], (1, 4))[0].tolist() == [0, 1, 1, 2]
    assert resampled(torch.arange(6.0)[None], (1, 4))[0].tolist() == [0, 2, 3, 5]
