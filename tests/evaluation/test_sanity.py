"""Sanity checks: what must change does, what must not does not, and a method that fails is caught."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.evaluation import (
    attack_stability,
    compare_models,
    map_similarity,
    method_agreement,
    noise_stability,
    parameter_randomisation,
    randomised,
    run_stability,
    seed_agreement,
    sensitivity_n,
    shift_invariance,
    shifted,
)
from lidc_xai.evaluation.metrics.robustness import attacked
from lidc_xai.explain import LogOdds, LogProbability, Probability, explain


def test_similarity_against_scipy_and_its_undefined_cases() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 9, 9)), rng.normal(size=(4, 9, 9))
    found = map_similarity(a, b)
    assert found.spearman[0] == pytest.approx(spearmanr(a[0].ravel(), b[0].ravel()).statistic)
    assert found.spearman_abs[1] == pytest.approx(spearmanr(abs(a[1]).ravel(), abs(b[1]).ravel()).statistic)
    same = map_similarity(a, 3 * a + 1)
    np.testing.assert_allclose(same.spearman, 1)
    np.testing.assert_allclose(same.ssim, 1)
    np.testing.assert_allclose(map_similarity(a, -a).spearman, -1)
    np.testing.assert_allclose(map_similarity(a, -a).spearman_abs, 1)
    a[2], b[3, 0, 0] = 1.0, np.nan
    broken = map_similarity(a, b)
    assert broken.reasons == ("", "", "a map is constant: no correlation is defined", "the map is not finite")
    assert np.isnan(broken.ssim[2:]).all()
    with pytest.raises(DataError, match="cannot be compared"):
        map_similarity(a, b[:, :8])


def test_randomisation_goes_from_the_head_to_the_embedding_and_leaves_the_model(vit: nn.Module, images: Tensor) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    found = parameter_randomisation(vit, images, 1, "cdam")
    assert found.stages == ("head", "norm", "blocks.2", "blocks.1", "blocks.0", "patch_embed.proj", "embedding")
    assert found.spearman.shape == (4, 7)
    assert abs(found.final_spearman).mean() < 0.6
    assert found.unchanged.tolist() == [0] * 4
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    np.testing.assert_array_equal(found.spearman, parameter_randomisation(vit, images, 1, "cdam").spearman)


def test_an_estimator_that_ignores_the_model_fails_randomisation(vit: nn.Module, images: Tensor) -> None:
    found = parameter_randomisation(vit, images, 1, "random")
    np.testing.assert_allclose(found.spearman, 1)
    assert found.unchanged.tolist() == [1] * 4
    assert found.summary().loc["unchanged", "mean"] == 1


def test_attention_does_not_notice_the_head_but_the_blocks(vit: nn.Module, images: Tensor) -> None:
    found = parameter_randomisation(vit, images, None, "attention")
    np.testing.assert_allclose(found.spearman[:, :2], 1)
    assert (found.spearman[:, 2] < 1).all()


def test_randomised_model_has_other_weights_everywhere(named: nn.Module, images: Tensor) -> None:
    other = randomised(named, seed=3)
    same = [name for name, value in named.state_dict().items() if torch.equal(value, other.state_dict()[name])]
    assert same == []
    assert torch.equal(randomised(named, seed=3).head.weight, other.head.weight)
    assert not torch.equal(randomised(named, seed=4).head.weight, other.head.weight)
    assert compare_models(named, other, images, "margin").spearman.mean() < 0.9


def test_post_softmax_targets_do_not_see_a_shift_of_all_logits_and_logits_do(vit: nn.Module, images: Tensor) -> None:
    other = shifted(vit)
    torch.testing.assert_close(other(images).softmax(-1), vit(images).softmax(-1))
    assert (other(images) - vit(images)).abs().min() > 1e-3
    for target in (Probability(2), LogProbability(2), LogOdds(2)):
        np.testing.assert_allclose(shift_invariance(vit, images, target).spearman, 1, atol=1e-9)
    assert shift_invariance(vit, images, 2).spearman.mean() < 0.99
    with pytest.raises(ModelError, match="2 or more classes"):
        shifted(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1)))


def test_noise_moves_the_map_more_the_stronger_it_is(vit: nn.Module, images: Tensor) -> None:
    weak, strong = (noise_stability(vit, images, 0, sigma=sigma, draws=2).spearman for sigma in (1e-4, 1.0))
    assert weak.mean() > 0.99
    assert strong.mean() < weak.mean()
    part = noise_stability(vit, images[2:3], 0, sigma=1.0, draws=2).spearman
    assert part[0] == pytest.approx(strong[2])
    with pytest.raises(UsageError, match="sigma is above 0"):
        noise_stability(vit, images, sigma=0)


@pytest.mark.parametrize("steps", [1, 5])
def test_attacks_lower_the_score_within_epsilon(
    on_patch: nn.Module, vit: nn.Module, images: Tensor, steps: int
) -> None:
    similarity, change = attack_stability(vit, images, 0, "saliency", epsilon=0.02, steps=steps)
    assert (change < 0).all()
    assert (similarity.spearman <= 1).all()
    _, exact = attack_stability(on_patch, images, 0, "saliency", epsilon=0.02, steps=steps)
    np.testing.assert_allclose(exact, -40 * 0.02, atol=1e-9)


def test_pgd_steps_by_two_and_a_half_epsilon_over_the_steps() -> None:
    """|x| at 0.3 ε: the first of two steps of 1.25 ε ends at the border, −0.7 ε, the second one at 0.55 ε."""

    class Size(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sum((1, 2, 3))[:, None]

    moved, change = attacked(Size(), torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), 0, epsilon=1.0, steps=2)
    assert moved.item() == pytest.approx(0.55)
    assert change.item() == pytest.approx(0.25)


def test_runs_of_a_stochastic_method_and_of_an_exact_one(vit: nn.Module, images: Tensor) -> None:
    few = run_stability(vit, images, 0, "smooth_cdam", samples=2, sigma=1.0, runs=3)
    many = run_stability(vit, images, 0, "smooth_cdam", samples=40, sigma=1.0, runs=3)
    assert few.spearman.mean() < many.spearman.mean()
    np.testing.assert_allclose(run_stability(vit, images, 0, "cdam", runs=2).spearman, 1)


def test_agreement_of_methods_and_of_seeds(vit: nn.Module, images: Tensor) -> None:
    maps = {name: explain(vit, images, 0, name).relevance[:, 0] for name in ("cdam", "saliency")}
    maps["again"] = maps["cdam"] * 2
    matrix, pairs = method_agreement(maps)
    assert matrix.loc["cdam", "again"] == pytest.approx(1)
    assert matrix.loc["saliency", "cdam"] == matrix.loc["cdam", "saliency"]
    assert isinstance(matrix, pd.DataFrame)
    assert pairs["cdam", "saliency"].spearman.shape == (4,)
    assert seed_agreement([vit, vit], images, 0).spearman.tolist() == pytest.approx([1] * 4)
    assert seed_agreement([vit, randomised(vit)], images, 0).spearman.mean() < 0.9
    with pytest.raises(UsageError, match="two models"):
        seed_agreement([vit], images)


def test_sensitivity_n_equals_the_definition_and_is_one_for_the_oracle(
    on_patch: nn.Module, vit: nn.Module, images: Tensor
) -> None:
    found = sensitivity_n(on_patch, images, on_patch.oracle(images, 0), 0, replacement="zero", sets=20)
    np.testing.assert_allclose(found.correlation, 1, atol=1e-9)
    relevance = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = sensitivity_n(vit, images, relevance, 0, replacement="zero", sets=8, shares=(0.25,), seed=3, max_batch=5)
    generator = torch.Generator().manual_seed(3)
    sums, deltas = [], []
    for _ in range(8):
        gone = (torch.randperm(1024, generator=generator) < 256).view(32, 32)
        sums.append(relevance[1][gone].sum().item())
        deltas.append((vit(images[1:2]) - vit(images[1:2] * ~gone))[0, 0].item())
    assert some.correlation[1, 0] == pytest.approx(np.corrcoef(sums, deltas)[0, 1], abs=1e-9)
    assert sensitivity_n(vit, images, torch.zeros(4, 4, 4), 0, sets=5).undefined == 4
