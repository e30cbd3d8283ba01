"""SaCo: against the definition written out, its two ends, and a random map at 0 on every grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import BenchmarkOptions, Case, run_benchmark, saco
from lidc_xai.evaluation.maps import tie_permutation
from lidc_xai.evaluation.metrics._saco import group_count, groups_of, saco_result
from lidc_xai.explain import Logit, explain


class Weighted(nn.Module):
    """y = a fixed weight for every pixel, summed."""

    output_names = ("score",)
    output_kinds = ("regression",)

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weights).sum((1, 2, 3)).unsqueeze(1)


def by_definition(f: nn.Module, image: Tensor, fill: Tensor, relevance: Tensor, read: object) -> float:
    """One image (C,H,W) whose tokens K divides, without ties: loops over pairs of groups."""
    grid = relevance.shape
    side = (image.shape[1] // grid[0], image.shape[2] // grid[1])
    count = group_count(relevance.numel())
    unit = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    order = sorted(range(relevance.numel()), key=lambda i: -float(relevance.flatten()[i]))
    size = len(order) // count
    s, d = [], []
    for k in range(count):
        changed = image.clone()
        for i in order[k * size : (k + 1) * size]:
            r, c = divmod(i, grid[1])
            box = (slice(None), slice(r * side[0], (r + 1) * side[0]), slice(c * side[1], (c + 1) * side[1]))
            changed[box] = fill[box]
        s.append(sum(float(unit.flatten()[i]) for i in order[k * size : (k + 1) * size]))
        d.append(read(f(image[None])) - read(f(changed[None])))  # type: ignore[operator]
    top = bottom = 0.0
    for i in range(count):
        for j in range(i + 1, count):
            top += (s[i] - s[j]) if d[i] >= d[j] else -(s[i] - s[j])
            bottom += abs(s[i] - s[j])
    return top / bottom


def test_it_is_the_definition(vit: nn.Module, images: Tensor) -> None:
    """A classifier's probability; zeros for removed tokens."""
    vit = vit.double()
    images = images.double()
    relevance = explain(vit, images, 1, "cdam").relevance[:, 0]
    found = saco(vit, images, relevance, 1, replacement="zero", max_batch=5)
    assert found.groups == 8
    for b, image in enumerate(images):
        with torch.no_grad():
            expected = by_definition(
                vit, image, torch.zeros_like(image), relevance[b], lambda y: float(y.softmax(-1)[0, 1])
            )
        assert found.saco[b] == pytest.approx(expected, abs=1e-10)
    by_logit = saco(vit, images, relevance, Logit(1), replacement="zero")
    with torch.no_grad():
        expected = by_definition(vit, images[0], torch.zeros_like(images[0]), relevance[0], lambda y: float(y[0, 1]))
    assert by_logit.saco[0] == pytest.approx(expected, abs=1e-10)


def test_pixel_maps_are_read_on_the_models_tokens(vit: nn.Module, images: Tensor) -> None:
    relevance = torch.randn(len(images), 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = relevance.repeat_interleave(8, 1).repeat_interleave(8, 2)
    expected = saco(vit, images, relevance, 1).saco
    np.testing.assert_allclose(saco(vit, images, pixels, 1).saco, expected)
    np.testing.assert_allclose(saco(vit, images, pixels, 1, grid=(4, 4)).saco, expected)


def test_the_truth_scores_one_and_its_opposite_minus_one() -> None:
    weights = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, image = Weighted(weights), torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert saco(model, image, weights, 0, replacement="zero").saco[0] == pytest.approx(1)
    assert saco(model, image, -weights, 0, replacement="zero").saco[0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("grid", "groups"),
    [((8, 8), 8), ((16, 16), 8), ((14, 14), 7), ((7, 7), 7), ((4, 4), 8), ((6, 10), 10), ((5, 5), 5), ((23, 23), 10),
     ((37, 37), 10), ((1, 3), 3), ((4, 6), 8)],
)  # fmt: skip
def test_a_random_map_scores_nothing_on_any_grid(grid: tuple[int, int], groups: int) -> None:
    """Mean of many random maps within its 99.9 % interval; groups of exactly equal size."""
    assert group_count(grid[0] * grid[1]) == groups
    generator = torch.Generator().manual_seed(grid[0])
    weights = torch.rand(1, *grid, generator=generator, dtype=torch.float64)
    model, count = Weighted(weights), 400
    images = torch.ones(count, 1, *grid, dtype=torch.float64)
    maps = torch.rand(count, *grid, generator=generator, dtype=torch.float64)
    sizes = torch.stack([(groups_of(maps, 0) == k).sum((1, 2)) for k in range(groups)])
    assert (sizes == grid[0] * grid[1] // groups).all()
    found = saco(model, images, maps, 0, replacement="zero", max_batch=1000)
    assert abs(found.saco.mean()) < 3.3 * found.saco.std() / count**0.5


def test_ties_and_cells_left_out_are_the_seeds() -> None:
    flat = torch.zeros(1, 37, 37, dtype=torch.float64)
    flat[0, 0, 0] = 1
    assert torch.equal(groups_of(flat, 3), groups_of(flat, 3))
    assert not torch.equal(groups_of(flat, 3), groups_of(flat, 4))
    assert (groups_of(flat, 3) == -1).sum() == 37 * 37 % 10


def test_undefined_maps_are_told() -> None:
    model, images = Weighted(torch.ones(1, 8, 8)), torch.ones(3, 1, 8, 8)
    maps = torch.rand(3, 8, 8)
    maps[1] = 2.0
    maps[2, 0, 0] = torch.nan
    found = saco(model, images, maps, 0, replacement="zero")
    assert np.isnan(found.saco).tolist() == [False, True, True]
    assert found.reasons[1:] == ("the map is constant: it has no order", "the map is not finite")
    with pytest.raises(UsageError, match="grid is"):
        saco(model, images, maps, 0, grid=(0, 2))


def test_the_benchmark_gives_the_same_figure(named: nn.Module, images: Tensor, tmp_path: object) -> None:
    options = BenchmarkOptions(methods=("cdam", "saliency"), metrics=("saco",), disc=False)
    case = Case(images, case_id="one", planes=("a", "b", "c", "d"))
    rows = run_benchmark(named, [case], tmp_path, options).table()  # type: ignore[arg-type]
    for method in options.methods:
        relevance = explain(named, images, method=method).relevance
        for t, output in enumerate(named.output_names):
            own = rows[(rows.metric == "saco/saco") & (rows.method == method) & (rows.output == output)]
            found = saco(named, images, relevance[:, t], output).saco
            np.testing.assert_allclose(own.sort_values("plane")["value"], found, atol=1e-9)


def test_a_group_that_costs_as_much_as_a_less_relevant_one_agrees() -> None:
    maps = torch.arange(10.0, dtype=torch.float64).view(1, 2, 5)
    assert saco_result(maps, torch.zeros(1, 10, dtype=torch.float64), seed=0).saco.tolist() == [1.0]


def test_the_cells_left_out_are_the_seeds_whatever_the_map() -> None:
    maps = torch.randn(1, 23, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for some in (maps, -maps):
        groups = groups_of(some, seed=3).flatten()
        assert sorted(torch.nonzero(groups == -1)[:, 0].tolist()) == sorted(tie_permutation(23, 3)[20:].tolist())
        assert torch.bincount(groups[groups >= 0]).tolist() == [2] * 10
