"""Robustness of maps: the attack on a map keeps the output, and the benchmark gives what the single functions give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import (
    BenchmarkOptions,
    Case,
    attack_stability,
    map_attack_stability,
    map_similarity,
    noise_stability,
    run_benchmark,
    write_benchmark,
)
from lidc_xai.evaluation.metrics._map_attack import map_attacked
from lidc_xai.evaluation.metrics.robustness import attacked
from lidc_xai.explain import explain


class Sum(nn.Module):
    """f = mean of the left half; the right half is free."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        left = images[..., : images.shape[-1] // 2].mean((1, 2, 3), keepdim=False)[:, None]
        return self.scale * torch.cat([left, -left], 1)


def test_an_attack_on_the_map_finds_what_the_output_does_not_read() -> None:
    start = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def maps(images: Tensor) -> Tensor:  # the image itself: whoever wants to move it may only move the right half
        return images[:, 0]

    moved, change = map_attacked(Sum(), start, 0, maps, epsilon=0.3, steps=8, draws=16, keep=1e-6, cells=4)
    assert float((moved - start).abs().max()) <= 0.3 + 1e-9
    assert change.abs().max() <= 1e-6
    found = map_similarity(start[:, 0], moved[:, 0]).spearman
    assert (found < 0.9).all()
    freely, _ = map_attacked(Sum(), start, 0, maps, epsilon=0.3, steps=8, draws=16, keep=9.0, cells=4)
    assert map_similarity(start[:, 0], freely[:, 0]).spearman.mean() <= found.mean() + 0.05
    alone, _ = map_attacked(Sum(), start[1:], 0, maps, epsilon=0.3, steps=8, draws=16, keep=1e-6, cells=4)
    torch.testing.assert_close(alone[0], moved[1])  # every image meets the same draws


def test_a_map_that_ignores_the_image_survives_every_attack(vit: nn.Module, images: Tensor) -> None:
    constant = torch.arange(16.0).reshape(1, 4, 4).expand(len(images), -1, -1)
    moved, _ = map_attacked(vit, images, 0, lambda x: constant, epsilon=0.01, steps=2, draws=1, keep=0.1)
    torch.testing.assert_close(moved, images.to(moved))
    with pytest.raises(UsageError, match="keep from 0"):
        map_attack_stability(vit, images, 0, keep=-1)


def test_channels_of_one_picture_move_together(vit: nn.Module, images: Tensor) -> None:
    grey = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    for moved in (
        attacked(vit, grey, 0, epsilon=0.02, steps=3)[0],
        map_attacked(
            vit, grey, 0, lambda x: explain(vit, x, 0).relevance[:, 0], epsilon=0.02, steps=1, draws=1, keep=9
        )[0],
    ):
        assert torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.equal(attacked(vit, images, 0, epsilon=0.02, steps=1)[0][:, 0], images[:, 0])


def test_the_benchmark_gives_the_single_functions_figures(named: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    case = Case(images, case_id="a", cluster="p", altered={"window_up_20hu": images - 0.05})
    options = BenchmarkOptions(
        methods=("cdam",), metrics=("noise", "attack", "map_attack", "scan"), disc=False, attack_epsilon=0.02,
        attack_steps=3, map_attack_steps=2, map_attack_draws=2,
    )  # fmt: skip
    bare = replace(case, case_id="b", altered={})
    rows = run_benchmark(named, [case, bare], tmp_path, options).table()
    name = named.output_names[1]

    def got(metric: str, method: str = "cdam", of: str = "a") -> np.ndarray:
        own = rows[(rows.metric == metric) & (rows.method == method) & (rows.output == name) & (rows.case == of)]
        return own.sort_values("plane")["value"].to_numpy()

    similarity, change = attack_stability(named, images, name, epsilon=0.02, steps=3)
    np.testing.assert_allclose(got("attack/spearman"), similarity.spearman)
    np.testing.assert_allclose(got("attack/output_change", "model"), change.abs().numpy())
    mapped, _ = map_attack_stability(named, images, name, epsilon=0.02, steps=2, draws=2)
    np.testing.assert_allclose(got("map_attack/ssim"), mapped.ssim)
    plain, moved = (explain(named, x, name).relevance[:, 0] for x in (images, images - 0.05))
    np.testing.assert_allclose(got("window_up_20hu/spearman"), map_similarity(plain, moved).spearman)
    with torch.no_grad():
        went = (named(images - 0.05) - named(images))[:, 1].abs()
    np.testing.assert_allclose(got("window_up_20hu/output_change", "model"), went.numpy(), atol=1e-9)
    assert np.isnan(got("window_up_20hu/spearman", of="b")).all()
    noisy = noise_stability(named, images, name, draws=1)
    np.testing.assert_allclose(got("noise/spearman"), noisy.spearman)
    summary = write_benchmark(tmp_path, resamples=10)
    assert "map_attack/spearman" in set(summary["metric"])
    text = (tmp_path / "benchmark.md").read_text()
    assert "attack on the map, output kept" in text
    assert "What the outputs do there" in text


def test_an_attack_on_the_map_whose_score_goes_too_far_is_not_taken(vit: nn.Module, images: Tensor) -> None:
    def maps(x: Tensor) -> Tensor:
        return explain(vit, x, 0).relevance[:, 0]

    def change(keep: float) -> Tensor:  # one step: what is kept does not depend on it
        return map_attacked(vit, images, 0, maps, epsilon=0.3, steps=1, draws=4, keep=keep)[1].abs()

    gone = change(100.0)
    keep = float(gone[gone > 0].min()) / 2
    assert (change(keep) <= keep).all()
