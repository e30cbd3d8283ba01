"""A map that peaks in a lone token says so, and its medians do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from lidc_xai.explain.explanation import Explanation


def explanation(maps: Tensor, size: tuple[int, int] = (70, 70)) -> Explanation:
    """Maps (B, T, h, w) as the result of a method."""
    values, columns = torch.zeros(maps.shape[:2]), torch.zeros(maps.shape[:2], dtype=torch.long)
    names = tuple(map(str, range(maps.shape[1])))
    return Explanation(maps, values, columns, names, "cdam", "exact", size, size, {})


@pytest.fixture
def maps() -> Tensor:
    """1: a hill; 2: a lone token; 3: the same in the corner; 4: nothing positive."""
    maps = torch.rand(2, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[0, 0, 2, 2], maps[0, 0, 2, 3] = 9.0, 4.0
    maps[0, 1, 2, 2] = 9.0
    maps[1, 0, 0, 4] = 9.0
    maps[1, 1] = -maps[1, 1]
    return maps


def test_lone_peaks_are_told(maps: Tensor) -> None:
    found = explanation(maps)
    assert found.lone_peaks.tolist() == [[False, True], [True, False]]
    (note,) = found.notes
    assert note.startswith("2 of 4 maps peak in one token")
    assert explanation(maps[:1, :1]).notes == ()


def test_negative_neighbours_count_as_nothing() -> None:
    maps = torch.full((1, 1, 3, 3), -5.0)
    maps[0, 0, 1, 1] = 0.1
    assert explanation(maps).lone_peaks.item()
    maps[0, 0, 1, 1] = -0.1
    assert not explanation(maps).lone_peaks.item()


def test_calmed_maps_are_medians_of_neighbourhoods(maps: Tensor) -> None:
    calm = explanation(maps).calmed()
    for b in range(2):
        for t in range(2):
            wanted = median_filter(maps[b, t].numpy(), size=3, mode="nearest")
            assert torch.equal(calm.relevance[b, t], torch.from_numpy(wanted))
    assert not calm.lone_peaks.any()
    assert calm.notes == ()


def test_pixel_maps_and_tiny_grids_have_no_lone_peaks(maps: Tensor) -> None:
    pixels = explanation(maps, (5, 5))
    assert not pixels.lone_peaks.any()
    assert pixels.calmed() is pixels
    tiny = explanation(torch.tensor([[[[9.0, 0.0], [0.0, 0.0]]]]))
    assert not tiny.lone_peaks.any()
    assert replace(tiny).notes == ()
