"""Grouping of readings, on readings made by hand and against brute force."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lidc_xai.annotations.clustering import cluster_readings
from lidc_xai.annotations.nodule import Contour, Reading


def reading_at(*points: tuple[int, int, int], key: int = 0) -> Reading:
    contours = [Contour(float(k), np.array([[i, j]], np.int32), True, k) for i, j, k in points]
    return Reading(key, {}, contours, 1.0)


def keys(groups: list[list[Reading]]) -> list[list[int]]:
    return [[reading.annotation_id for reading in group] for group in groups]


def test_no_reading_and_one_reading():
    assert cluster_readings([], 1.0) == ([], False)
    one = reading_at((0, 0, 0), key=7)
    assert cluster_readings([one], 1.0) == ([[one]], False)


def test_linked_at_the_tolerance_itself_and_through_a_third():
    readings = [reading_at((3 * n, 4 * n, 0), key=n) for n in range(3)]
    assert keys(cluster_readings(readings, 5.0)[0]) == [[0, 1, 2]]
    assert keys(cluster_readings(readings, 4.999)[0]) == [[0], [1], [2]]


def test_tolerance_shrinks_until_four_are_left():
    # two pairs 1 apart and a pair at the same place, the clumps 2 apart: 6 in one group at 2, split at 1.8
    places = [0, 1, 3, 4, 6, 6]
    readings = [reading_at((x, 0, 0), key=n) for n, x in enumerate(places)]
    groups, ambiguous = cluster_readings(readings, 2.0)
    assert keys(groups) == [[0, 1], [2, 3], [4, 5]]
    assert not ambiguous


def test_five_at_one_place_stay_together_and_flag_the_scan():
    readings = [reading_at((5, 5, 5), key=n) for n in range(5)] + [reading_at((90, 90, 1), key=9)]
    groups, ambiguous = cluster_readings(readings, 3.0)
    assert keys(groups) == [[9], [0, 1, 2, 3, 4]]
    assert ambiguous


def test_groups_ascend_by_slice_and_ties_keep_their_order():
    readings = [reading_at((0, 0, 8), key=0), reading_at((90, 0, 2), key=1), reading_at((50, 0, 2), key=2)]
    assert keys(cluster_readings(readings, 1.0)[0]) == [[1], [2], [0]]


points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(points, min_size=1, max_size=9), st.sampled_from([0.5, 1.0, 1.25, 2.5, 3.0, 5.0]))
def test_same_groups_as_brute_force(clouds, tolerance):
    readings = [reading_at(*cloud, key=n) for n, cloud in enumerate(clouds)]
    groups, ambiguous = cluster_readings(readings, tolerance)
    expected, stuck = brute_force([reading.points.astype(float) for reading in readings], tolerance)
    assert keys(groups) == expected
    assert ambiguous == stuck


def brute_force(clouds: list[np.ndarray], tolerance: float) -> tuple[list[list[int]], bool]:
    """The rule of pylidc word by word: all pairs, all points, groups grown one link at a time."""

    def near(a: np.ndarray, b: np.ndarray) -> bool:
        return np.linalg.norm(a[:, None] - b[None], axis=2).min() <= state.tolerance

    def grow() -> list[list[int]]:
        groups: list[list[int]] = []
        for n, cloud in enumerate(clouds):
            touched = [group for group in groups if any(near(cloud, clouds[m]) for m in group)]
            members = [n, *(m for group in touched for m in group)]
            groups = [group for group in groups if group not in touched] + [sorted(members)]
        return sorted(groups, key=lambda group: group[0])

    state = SimpleNamespace(tolerance=tolerance)
    groups = grow()
    stuck = False
    while max(map(len, groups)) > 4:
        state.tolerance *= 0.9
        if state.tolerance < 0.1:
            stuck = True
            break
        groups = grow()
    return sorted(groups, key=lambda group: np.mean([clouds[n][:, 2].mean() for n in group])), stuck
