"""Edits of crops: each moves its own measure in the dose's order, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit.measures import OWN_MEASURE, edit_measures, solidity

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import NoduleCrop
from lidc_xai.simulate import EDITS, edit_nodule, sham_edit, simulate_crop
from lidc_xai.simulate.edits.site import signed_distance, site_of

REAL = ("50_nod1_ann0", "30_nod3_ann0")
SIMULATED = ("LIDC-IDRI-0013-s1-n1", "LIDC-IDRI-0055-s1-n1")


@pytest.fixture(scope="session")
def real(shared: Path) -> list[NoduleCrop]:
    """Crops of true HU, 43 mm wide."""
    file = np.load(shared / "lidc" / "volumes51.npz")
    ids = file["ids"].tolist()
    hu, packed = file["hu"], file["mask_packed"]
    crops = []
    for name in REAL:
        k = ids.index(name)
        ct = np.moveaxis(hu[k], -1, 0).astype(np.float32)
        mask = np.moveaxis(np.unpackbits(packed[k], axis=-1)[..., :51].astype(bool), -1, 0)
        inner = (slice(4, 47),) * 3
        crops.append(NoduleCrop(ct[inner].copy(), np.eye(4), mask[inner][None].copy(), mask[inner].copy(), [], name))
    return crops


@pytest.fixture(scope="session")
def made(by_id: dict) -> list[NoduleCrop]:
    return [simulate_crop(by_id[name], seed=1)[0] for name in SIMULATED]


def measured(crop: NoduleCrop, name: str, doses: tuple[float, ...]) -> np.ndarray:
    """The edit's own measure at each dose, signed so that it should rise."""
    measure, sign = OWN_MEASURE[name]
    site = None if EDITS[name].moves else site_of(crop)
    values = [edit_measures(edit_nodule(crop, name, dose)[0] if dose else crop, site)[measure] for dose in doses]
    return sign * np.array(values)


@pytest.mark.parametrize("kind", ["real", "made"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_moves_its_own_measure_with_the_dose(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    crops = request.getfixturevalue(kind)
    doses = {"remove": (0.0, 1.0), "sphericity": (0.0, 0.3, 0.6)}.get(name, (0.0, 0.5, 1.0))
    values = np.array([measured(crop, name, doses) for crop in crops])
    assert (values[:, -1] > values[:, 0]).all(), values
    assert (np.diff(values.mean(axis=0)) > 0).all(), values


def test_a_margin_beside_a_wall_leaves_the_wall_as_it_is() -> None:
    z, y, x = np.indices((32, 32, 32))
    ball = ((z - 16) ** 2 + (y - 16) ** 2 + (x - 15) ** 2 < 36) & (x >= 11)
    noise = np.random.default_rng(0).normal(0, 10, ball.shape)
    ct = (np.where(ball | (x < 11), 50.0, -850.0) + noise).astype(np.float32)
    crop = NoduleCrop(ct, np.eye(4), ball[None], ball, [], "at-the-wall")
    for dose in (-1.0, 0.5, 1.0):
        change = edit_nodule(crop, "margin", dose)[0].ct - ct
        assert np.abs(change[x < 10]).max() < 60, dose  # the blur put 500 HU on it
        assert change[ct > 0].max() < 100, dose
    touching = (x == 11) & ball & (np.hypot(z - 16, y - 16) < 2)
    assert edit_nodule(crop, "margin", 0.25)[0].ct[touching].mean() > 0  # nor is the nodule lost to it


def test_the_lower_ends(made: list[NoduleCrop]) -> None:
    small = measured(made[0], "diameter", (-1.0, -0.5, 0.0))
    assert (np.diff(small) > 0).all()
    assert small[0] / small[-1] == pytest.approx(0.7, abs=0.08)
    large = measured(made[0], "diameter", (0.0, 1.0))
    assert large[1] / large[0] == pytest.approx(1.4, abs=0.12)
    assert measured(made[0], "margin", (-1.0, 0.0))[0] < measured(made[0], "margin", (0.0,))[0]


@pytest.mark.parametrize("name", EDITS)
def test_the_original_is_untouched_and_so_is_what_lies_far_away(name: str, made: list[NoduleCrop]) -> None:
    crop = made[0]
    before = [crop.ct.copy(), crop.consensus.copy(), crop.reader_masks.copy()]
    edited, changed = edit_nodule(crop, name, 1.0)
    for old, now in zip(before, (crop.ct, crop.consensus, crop.reader_masks), strict=True):
        assert np.array_equal(old, now)
    noise = site_of(crop).noise_hu
    step = np.abs(edited.ct.astype(float) - crop.ct)
    assert np.array_equal(changed, step > 3 * noise)
    far = signed_distance(crop.consensus, 1.0) > (9.5 if name == "spiculation" else 16.0 if name == "sphericity" else 7)
    assert far.any()
    assert np.array_equal(edited.ct[far], crop.ct[far])
    moves = not np.array_equal(edited.consensus, crop.consensus)
    assert moves == EDITS[name].moves
    assert edited.reader_masks.shape == crop.reader_masks.shape
    assert edited.issues[-1] == f"EDITED: {name}, dose 1, seed 0"


@pytest.mark.parametrize("name", ["calcification", "spiculation"])
def test_doses_are_nested_and_seeded(name: str, made: list[NoduleCrop]) -> None:
    _, less = edit_nodule(made[0], name, 0.5, seed=3)
    _, more = edit_nodule(made[0], name, 1.0, seed=3)
    assert less.any()
    assert not (less & ~more).any()
    again, _ = edit_nodule(made[0], name, 1.0, seed=3)
    other, _ = edit_nodule(made[0], name, 1.0, seed=4)
    assert np.array_equal(again.ct, edit_nodule(made[0], name, 1.0, seed=3)[0].ct)
    assert not np.array_equal(again.ct, other.ct)


def test_dose_zero_changes_nothing(made: list[NoduleCrop]) -> None:
    for name in EDITS:
        edited, changed = edit_nodule(made[0], name, 0.0)
        assert np.array_equal(edited.ct, made[0].ct)
        assert not changed.any()


@pytest.mark.parametrize("kind", ["real", "made"])
def test_a_sham_changes_less_than_five_hu(kind: str, request: pytest.FixtureRequest) -> None:
    for crop in request.getfixturevalue(kind):
        change = np.abs(sham_edit(crop).ct.astype(float) - crop.ct)
        near = signed_distance(crop.consensus, 1.0) < 2
        assert 0 < change[near].mean() < 5
        assert change[~near].mean() < 5


def test_a_nodule_is_gone_after_removal(real: list[NoduleCrop]) -> None:
    for crop in real:
        site = site_of(crop)
        left = edit_nodule(crop, "remove", 1)[0].ct[site.block] - site.level
        assert abs(left[site.body].mean()) < site.noise_hu
        assert 0.5 < left[site.body].std() / site.noise_hu < 2


def test_solidity_of_a_box_and_of_two() -> None:
    box = np.zeros((8, 8, 8), bool)
    box[2:6, 2:6, 2:6] = True
    assert solidity(box) == pytest.approx(1.0)
    box[2:6, 3:5, 2:6] = False
    assert solidity(box) == pytest.approx(0.5)


def wrong(crop: NoduleCrop, **changes: object) -> NoduleCrop:
    return replace(crop, nodule_id="P1-s1-n0", **changes)


def test_what_cannot_be_edited_is_said_in_one_line(made: list[NoduleCrop]) -> None:
    crop, nothing = made[0], np.zeros_like(made[0].consensus)
    three, wide, cut = nothing.copy(), nothing.copy(), crop.ct.copy()
    three[16, 16, 15:18] = True
    wide[8:24, 8:24, :] = True
    cut[:, :, : int(np.argwhere(crop.consensus)[:, 2].min()) + 1] = -1000
    for bad, words in (
        (wrong(crop, consensus=None, reader_masks=None), "own CT draw a mask"),
        (wrong(crop, consensus=nothing), "own CT draw a mask"),
        (wrong(crop, consensus=three), "has 3 voxels"),
        (wrong(crop, consensus=wide), "larger than the box"),
        (wrong(crop, larger_than_box=True), "larger than the box"),
        (wrong(crop, ct=cut), "touches the padding"),
        (wrong(crop, ct=np.full_like(crop.ct, 40.0)), "voxels of lung"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            edit_nodule(bad, "diameter", 1.0)
        assert str(caught.value).startswith("P1-s1-n0: ")
        assert "\n" not in str(caught.value)
    for name, dose, words in (
        ("diameter", 1.01, "from -1 to 1"),
        ("texture", -0.1, "from 0 to 1"),
        ("margin", float("nan"), "from -1 to 1"),
        ("remove", 0.5, "0 or 1"),
        ("colour", 1.0, "remove, diameter"),
    ):
        with pytest.raises(UsageError, match=words):
            edit_nodule(crop, name, dose)
    with pytest.raises(DataError, match="changes nothing"):
        edit_nodule(crop, "diameter", 0.001)


def test_a_nodule_that_would_grow_out_of_the_box_is_refused(made: list[NoduleCrop]) -> None:
    large = made[0]
    scaled = np.zeros_like(large.consensus)
    scaled[6:26, 4:28, 4:28] = True
    with pytest.raises(DataError, match="makes the nodule larger than the box"):
        edit_nodule(replace(large, consensus=scaled), "diameter", 1.0)
