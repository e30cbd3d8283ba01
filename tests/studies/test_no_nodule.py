"""Places that are no nodule: told by what lies in the middle, and never near an outline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audit.measure import RANDOM
from audit.places import APART, place_kind, places
from audit_no_nodule import NODULE, measured_before, no_nodule_record, ranked, summary

AIR = -850.0


def box(slices: int = 5, side: int = 32) -> np.ndarray:
    return np.full((slices, side, side), AIR)


def test_a_place_is_what_lies_in_its_middle() -> None:
    assert place_kind(box(), 1.0) == "lung"
    vessel = box()
    vessel[:, 14:18, 14:18] = 20
    assert place_kind(vessel, 1.0) == "vessel"
    ends = vessel.copy()
    ends[0] = AIR  # it does not go on through all slices: that is a nodule
    assert place_kind(ends, 1.0) is None
    wall = box()
    wall[:, 17:] = 40
    assert place_kind(wall, 1.0) == "pleura"
    island = box()
    island[:, 8:24, 8:24] = 40  # as large, but not at the border
    assert place_kind(island, 1.0) is None


def test_places_keep_away_from_outlines_and_other_nodules() -> None:
    hu, marked = np.full((3, 128, 128), AIR), np.zeros((3, 128, 128), bool)
    marked[1, 60:68, 60:68] = True
    for seed in range(5):
        found = places(hu, marked, 0.7, 32.0, seed)
        assert set(found) == {"lung", APART}
        for row, column in found.values():
            assert max(abs(row - 63.5), abs(column - 63.5)) >= 16 / 0.7
    full = np.full_like(hu, 40)  # neither lung nor vessel nor pleura: apart all the same
    assert set(places(full, marked, 0.7, 32.0, 0)) == {APART}
    marked[:] = True
    assert places(hu, marked, 0.7, 32.0, 0) == {}
    marked[:] = False
    assert places(hu, marked, 0.7, 32.0, 0, [(64 * 0.7, 64 * 0.7, 60.0)]) == {}


def test_a_map_is_strong_against_the_nodules_own_maps() -> None:
    given = [("apart", 9.0)] + [(NODULE, value) for value in (1.0, 2.0, 3.0, 4.0)] + [("lung", 0.5), ("lung", 9.0)]
    rows = pd.DataFrame(
        [{"crop": str(k), "patient_id": str(k), "kind": kind, "in_doubt": False, "malignancy_probability": 0.9,
          "method": "cdam", "largest": value} for k, (kind, value) in enumerate(given)]
    )  # fmt: skip
    table = summary(ranked(rows)).set_index(["kind", "figure"])["mean"]
    assert table["lung", "cdam strong"] == pytest.approx(0.5)
    assert table["lung", "cdam weak"] == pytest.approx(0.5)
    assert table[NODULE, "cdam strong"] == pytest.approx(0.25)
    assert table["lung", "strong in all"] == pytest.approx(0.5)
    assert table[APART, "cdam strong"] == 1
    assert no_nodule_record(rows).crops == 2  # what pages say counts lung, vessel and pleura


def test_crops_of_an_earlier_call_are_not_read_again(tmp_path: Path) -> None:
    rows = [
        {"crop": crop, "patient_id": "007", "in_doubt": False, "method": method, "largest": 0.5}
        for crop, methods in (("a", ("cdam", RANDOM, "gradcam")), ("b", ("cdam",)))
        for method in methods
    ]
    assert measured_before(tmp_path / "crops.csv", ["cdam"]) == {}
    pd.DataFrame(rows).to_csv(tmp_path / "crops.csv", index=False)
    assert measured_before(tmp_path / "crops.csv", ["cdam"]) == {"a": rows[:2]}
