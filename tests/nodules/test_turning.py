"""The smallest edit that turns a verdict, and whether the map points to it, on a model whose rule is known."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.imaging import NoduleCrop
from lidc_xai.models import NoduleModel, build_model
from lidc_xai.nodules import predict
from lidc_xai.nodules.maps import NoduleMaps
from lidc_xai.nodules.turning import in_words, map_on_turn, smallest_turn, wants_turning
from lidc_xai.reporting.edited import drawn_turn
from lidc_xai.simulate import edit_nodule, simulate_crop
from lidc_xai.simulate.edits.edit import EDITS


class Bright(NoduleModel):
    """Says "malignant" where the mean of the plane is above a limit."""

    limit = 0.0

    def forward(self, images: Tensor) -> Tensor:
        return 50 * (images.mean((1, 2, 3)) - self.limit)[:, None]


@pytest.fixture(scope="module")
def crop(by_id: dict) -> NoduleCrop:
    return simulate_crop(by_id["LIDC-IDRI-0013-s1-n1"], seed=1)[0]


@pytest.fixture(scope="module")
def model(crop: NoduleCrop) -> NoduleModel:
    made = build_model("vit_nodule_p8", ["malignancy"], size=32, seed=0)
    made.__class__ = Bright
    made.preprocess = replace(made.preprocess, views=("axial",))
    plane = made.preprocess.apply(torch.from_numpy(crop.ct[16]))
    made.limit = float(plane.mean()) + 0.01  # a little brighter, and the verdict turns
    return made


def test_the_smallest_edit_makes_the_nodule_larger_or_brighter(crop: NoduleCrop, model: NoduleModel) -> None:
    turn = smallest_turn(model, crop)
    assert turn is not None
    assert turn.before < 0.5 <= turn.after
    assert turn.edit in ("diameter", "calcification", "spiculation", "margin")
    assert abs(turn.dose) == 0.25
    assert turn.changed.any()
    model.limit += 100
    try:
        assert smallest_turn(model, crop) is None
    finally:
        model.limit -= 100
    with pytest.raises(DataError, match="own CT draw a mask"):
        smallest_turn(model, replace(crop, consensus=None, reader_masks=None))


def test_of_several_edits_the_one_that_turns_it_furthest(crop: NoduleCrop, model: NoduleModel) -> None:
    after = {}
    model.limit -= 0.0099  # whatever brightens the plane at all turns the verdict
    try:
        turn = smallest_turn(model, crop)
        for name in set(EDITS) - {"remove"}:
            for dose in (0.25, -0.25) if EDITS[name].lowest < 0 else (0.25,):
                with suppress(DataError):
                    edited = edit_nodule(crop, name, dose, 0)[0]
                    after[name, dose] = float(predict(model, edited)["malignancy_probability"].iloc[0])
    finally:
        model.limit += 0.0099
    after = {key: value for key, value in after.items() if value >= 0.5}
    assert len(after) > 1
    assert turn is not None
    assert (turn.edit, turn.dose) == max(after, key=lambda key: after[key])


def test_share_of_the_map_on_the_edited_pixels(crop: NoduleCrop, model: NoduleModel) -> None:
    turn = smallest_turn(model, crop)
    assert turn is not None
    edited = turn.changed[16].astype(np.float32)
    maps = NoduleMaps(
        crop.nodule_id, "cdam", ("axial",), (16,), ("malignancy",), -edited[None, None], np.zeros((1, 1)), (1.0, 1.0),
        "exact", {},
    )  # fmt: skip
    found = map_on_turn(turn, maps)
    assert found == (1.0, pytest.approx(edited.mean()))  # what speaks for "low" is negative
    lines = in_words(turn, found, "CDAM")
    assert len(lines) == 2
    assert f"{turn.edit} at dose {turn.dose:g}" in lines[0]
    assert "the map points there" in lines[1]
    even = replace(maps, relevance=-np.ones((1, 1, 32, 32), np.float32))
    assert "does not point there" in in_words(turn, map_on_turn(turn, even), "CDAM")[1]
    assert map_on_turn(turn, replace(maps, relevance=-maps.relevance)) is None
    drawn = drawn_turn(crop, turn, maps)
    assert [picture["words"][:6] for picture in drawn["pictures"]] == ["as it ", "EDITED"]
    assert drawn_turn(crop, None, maps)["pictures"] == []


def test_wrong_or_borderline_only() -> None:
    for probability, label, wanted in (
        (0.9, 0, True), (0.9, 1, False), (0.1, 1, True), (0.6, 1, True), (0.9, None, False), (0.5, None, True),
        (float("nan"), 1, False), (0.9, float("nan"), False),
    ):  # fmt: skip
        assert wants_turning({"malignancy_probability": probability}, label) is wanted
