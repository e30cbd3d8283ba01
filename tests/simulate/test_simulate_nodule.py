"""Simulated CT: every rating shows where its cause mask says, and nowhere else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from lidc_xai.annotations import Nodule
from lidc_xai.errors import UsageError
from lidc_xai.ratings import malignancy_label
from lidc_xai.simulate import independent_ratings, simulate_crop, with_ratings
from lidc_xai.simulate.nodule.expression import express

SOLID = {"texture": 5, "margin": 5, "spiculation": 1, "calcification": 6, "subtlety": 5, "internal_structure": 1}
LARGE = "LIDC-IDRI-0172-s1-n0"


@pytest.fixture(scope="module")
def crop(by_id: dict[str, Nodule]) -> Callable[..., Any]:
    made: dict[Any, Any] = {}

    def make(nodule_id: str = LARGE, seed: int = 3, **ratings: Any) -> Any:
        options = {name: ratings.pop(name) for name in ("without", "switched_off") if name in ratings}
        key = (nodule_id, seed, tuple(sorted(ratings.items())), tuple(sorted(options.items())))
        if key not in made:
            made[key] = simulate_crop(by_id[nodule_id], seed, 40.0, ratings={**SOLID, **ratings}, **options)
        return made[key]

    return make


def deep(mask: np.ndarray, mm: int) -> np.ndarray:
    return ndimage.binary_erosion(mask, iterations=mm)


class TestTexture:
    def test_density_runs_from_ground_glass_to_solid(self, crop: Callable[..., Any]) -> None:
        found = []
        for texture in (1, 2, 3, 4, 5):
            made, causes = crop(texture=texture)
            found.append(float(made.ct[deep(causes["texture"], 2)].mean()))
        assert np.all(np.diff(found) > [100, 100, 100, 10])
        assert -660 < found[0] < -480
        assert 0 < found[-1] < 70

    def test_part_solid_is_a_core_in_ground_glass(self, crop: Callable[..., Any]) -> None:
        made, causes = crop(texture=3)
        body = causes["texture"]
        core, shell = made.ct[deep(body, 6)], made.ct[deep(body, 1) & ~deep(body, 3)]
        assert np.median(core) > -60
        assert np.median(shell) < -300

    def test_mask_is_what_the_readers_drew(self, crop: Callable[..., Any]) -> None:
        made, causes = crop()
        overlap = 2 * (causes["texture"] & made.consensus).sum() / (causes["texture"].sum() + made.consensus.sum())
        assert overlap > 0.85


class TestMargin:
    def test_a_lower_rating_has_a_wider_edge(self, crop: Callable[..., Any]) -> None:
        steep = []
        for margin in (1, 3, 5):
            made, causes = crop(margin=margin)
            rim = ndimage.gaussian_gradient_magnitude(made.ct, 0.7)[causes["margin"] & (made.ct > -800)]
            steep.append(float(np.percentile(rim, 90)))
        assert steep[0] < steep[1] < steep[2]

    def test_mask_is_the_surface(self, crop: Callable[..., Any]) -> None:
        _, causes = crop()
        body = causes["texture"]
        surface = ndimage.binary_dilation(body) & ~deep(body, 1)
        assert (causes["margin"] & surface).sum() > 0.8 * surface.sum()
        assert not (causes["margin"] & deep(body, 4)).any()


class TestSpiculation:
    def test_more_and_longer_with_the_rating(self, crop: Callable[..., Any]) -> None:
        _, causes = crop(spiculation=1)
        assert "spiculation" not in causes
        size = [crop(spiculation=rating)[1]["spiculation"].sum() for rating in (2, 3, 5)]
        assert size[0] < size[1] < size[2]

    def test_stand_on_the_surface_and_are_brighter_than_lung(self, crop: Callable[..., Any]) -> None:
        made, causes = crop(spiculation=5)
        thorns, plain = causes["spiculation"], crop(spiculation=1)[0]
        assert not (thorns & deep(causes["texture"], 1)).any()
        distance = ndimage.distance_transform_edt(~causes["texture"])
        assert distance[thorns].max() > 4
        assert (made.ct - plain.ct)[thorns].mean() > 120


class TestCalcification:
    @pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
    def test_foci_are_dense_and_inside(self, crop: Callable[..., Any], code: int) -> None:
        made, causes = crop(calcification=code)
        foci = causes["calcification"]
        assert np.median(made.ct[foci]) > 150
        assert (foci & ~ndimage.binary_dilation(causes["texture"])).sum() <= 0.02 * foci.sum()

    def test_patterns_are_those_of_the_codes(self, crop: Callable[..., Any]) -> None:
        foci = {code: crop(calcification=code)[1]["calcification"] for code in (1, 2, 3, 4, 5)}
        body = crop()[1]["texture"]
        middle = np.array(ndimage.center_of_mass(body))

        def off_centre(code: int) -> float:
            return float(np.linalg.norm(np.array(ndimage.center_of_mass(foci[code])) - middle))

        assert off_centre(5) < 2 < off_centre(4)
        assert foci[3].sum() > 0.4 * body.sum()
        assert foci[5].sum() < 0.3 * body.sum()
        inner = tuple(np.round(middle).astype(int))
        assert not foci[2][inner]
        assert ndimage.binary_fill_holes(foci[2][inner[0]]).sum() > 1.5 * foci[2][inner[0]].sum()
        assert ndimage.label(foci[1])[1] >= 2 or foci[1].sum() < 0.5 * body.sum()

    def test_absent_has_none(self, crop: Callable[..., Any]) -> None:
        made, causes = crop(calcification=6)
        assert "calcification" not in causes
        assert made.ct[deep(causes["texture"], 2)].max() < 150

    def test_one_reader_of_four_gives_a_fainter_focus(self, by_id: dict[str, Nodule]) -> None:
        nodule = with_ratings(by_id[LARGE], SOLID)
        some = with_ratings(nodule, {"calcification": 5})
        mixed = nodule.__class__(**{**vars(nodule), "readers": [some.readers[0], *nodule.readers[1:]]})
        look = express(mixed)
        assert look.calcification == 5
        assert look.calcified == pytest.approx(1 / nodule.n_readers)


class TestSubtlety:
    def test_lowers_the_contrast(self, crop: Callable[..., Any]) -> None:
        means = [crop(subtlety=s)[0].ct[deep(crop()[1]["texture"], 2)].mean() for s in (1, 3, 5)]
        assert means[0] < means[1] < means[2]

    def test_has_no_carrier(self, crop: Callable[..., Any]) -> None:
        _, causes = crop(spiculation=4, calcification=1)
        assert set(causes) == {"calcification", "margin", "spiculation", "texture"}


class TestControls:
    @pytest.mark.parametrize(("cause", "value"), [("calcification", 5), ("spiculation", 5)])
    def test_without_changes_its_own_voxels_alone(self, crop: Callable[..., Any], cause: str, value: int) -> None:
        ratings = {"calcification": 6, "spiculation": 1, cause: value}
        full, causes = crop(**ratings)
        empty, left = crop(**ratings, without=(cause,))
        assert cause in causes
        assert cause not in left
        change = np.abs(full.ct - empty.ct)
        near = ndimage.binary_dilation(causes[cause], iterations=3)
        assert change[causes[cause]].mean() > 100
        assert change[~near].max() <= 60  # the last tip of a spicule

    def test_without_texture_or_margin_draws_the_other_end(self, by_id: dict[str, Nodule]) -> None:
        nodule = with_ratings(by_id[LARGE], SOLID)
        assert express(nodule, without=("texture",)).texture == 1
        assert express(with_ratings(nodule, {"margin": 2}), without=("margin",)).margin == 5

    def test_switched_off_is_the_same_for_every_rating(self, crop: Callable[..., Any]) -> None:
        first, causes = crop(spiculation=5, switched_off=("spiculation",))
        second, _ = crop(spiculation=1, switched_off=("spiculation",))
        np.testing.assert_array_equal(first.ct, second.ct)
        assert "spiculation" not in causes

    def test_unknown_names_are_refused(self, crop: Callable[..., Any], by_id: dict[str, Nodule]) -> None:
        with pytest.raises(UsageError, match="lobulation"):
            crop(without=("lobulation",))
        with pytest.raises(UsageError, match="tuple"):
            simulate_crop(by_id[LARGE], without="texture")
        with pytest.raises(UsageError, match="texture=9"):
            crop(texture=9)
        with pytest.raises(UsageError, match="diameter"):
            crop(diameter=9)


class TestSeeds:
    def test_same_seed_same_crop_and_another_seed_another(self, by_id: dict[str, Nodule]) -> None:
        nodule = by_id["LIDC-IDRI-0005-s1-n0"]
        first, again, other = (simulate_crop(nodule, seed)[0].ct for seed in (7, 7, 8))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).mean() > 5

    def test_crop_has_the_readers_and_lies_in_the_lung(self, by_id: dict[str, Nodule]) -> None:
        made, _ = simulate_crop(by_id["LIDC-IDRI-0005-s1-n0"], 7)
        assert made.ct.shape == (32, 32, 32)
        assert made.reader_masks is not None
        assert not made.padded
        assert -900 < np.median(made.ct) < -800


class TestIndependentRatings:
    def test_are_independent_of_each_other(self, nodules: list[Nodule]) -> None:
        drawn = independent_ratings(nodules[:1500], 5)
        names = ("subtlety", "calcification", "margin", "spiculation", "texture")
        table = np.array([[row[name] for name in names] for row in drawn.values()], float)
        assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.09
        assert 0.45 < (table[:, 1] == 6).mean() < 0.55
        assert all(set(np.unique(column)) == set(range(1, 6)) for column in table[:, [0, 2, 3, 4]].T)

    def test_do_not_depend_on_order_and_give_a_label(self, nodules: list[Nodule]) -> None:
        some = nodules[:200]
        drawn = independent_ratings(some, 5)
        assert independent_ratings(some[::-1], 5) == {key: drawn[key] for key in reversed(drawn)}
        labels = [malignancy_label([row["malignancy"]]) for row in drawn.values()]
        assert None not in labels
        assert 0.25 < np.mean([label for label in labels if label is not None]) < 0.75

    def test_malignancy_follows_the_stated_rule(self, nodules: list[Nodule]) -> None:
        rows = list(independent_ratings(nodules[:1500], 5).values())
        malignancy = [row["malignancy"] for row in rows]
        assert np.corrcoef(malignancy, [row["spiculation"] for row in rows])[0, 1] > 0.3
        assert np.corrcoef(malignancy, [row["calcification"] == 6 for row in rows])[0, 1] > 0.2
        assert abs(np.corrcoef(malignancy, [row["texture"] for row in rows])[0, 1]) < 0.1
