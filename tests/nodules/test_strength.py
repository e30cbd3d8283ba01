"""Anchors of a cohort's maps: percentiles of their largest absolute scores, and where a map stands between them."""

import numpy as np
import pytest

from lidc_xai.nodules.maps import NoduleMaps
from lidc_xai.nodules.strength import FEWEST, Anchor, map_anchors


def maps_of(largest: float) -> NoduleMaps:
    """One plane whose largest absolute score is negative."""
    relevance = np.full((1, 1, 2, 2), 0.01, np.float32)
    relevance[0, 0, 1, 0] = -largest
    return NoduleMaps(
        "P-1-s1-n0", "cdam", ("axial",), (16,), ("malignancy",), relevance, np.zeros((1, 1)), (16.0, 16.0), "exact", {}
    )


def test_anchors_are_percentiles_of_absolute_scores() -> None:
    sizes = np.linspace(1, 3, FEWEST)
    anchor = map_anchors(maps_of(size) for size in sizes)["malignancy"]
    wanted = np.percentile(sizes, [25, 75, 95])
    assert (anchor.weak, anchor.strong, anchor.full) == pytest.approx(tuple(wanted))
    assert anchor.nodules == FEWEST
    assert map_anchors(maps_of(size) for size in sizes[1:]) == {}


@pytest.mark.parametrize(
    ("largest", "rank"), [(0.1, "weak"), (0.2, "usual"), (0.4, "usual"), (0.6, "usual"), (0.7, "strong")]
)
def test_the_quartiles_themselves_are_usual(largest: float, rank: str) -> None:
    assert Anchor(full=1.0, weak=0.2, strong=0.6, nodules=100).rank(largest) == rank
