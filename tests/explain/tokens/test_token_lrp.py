"""LRP: each rule against its conservation law and plain autograd, both methods against a naive whole-model LRP."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain import LogOdds, MeanContrast, Probability, explain
from lidc_xai.explain.tokens.lrp_rules import LinearRule, product_rule, sum_rule
from lidc_xai.models import build_model

EPSILON = 1e-9


def share(r: Tensor, z: Tensor) -> Tensor:
    return torch.where(z == 0, torch.zeros_like(z), r / torch.where(z < 0, z - EPSILON, z + EPSILON))


def z_rule(function: Callable[..., Tensor], inputs: list[Tensor], r: Tensor) -> list[Tensor]:
    """R of every input of a (bi)linear function: x ⊙ ∂z/∂x applied to R/z."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    z = function(*inputs)
    return [x.detach() * g for x, g in zip(inputs, torch.autograd.grad(z, inputs, share(r, z.detach())), strict=True)]


def linear(layer: nn.Linear, x: Tensor, r: Tensor, separate: bool = False) -> Tensor:
    """α = 1, β = 0: positive and negative parts of x meet weights of their own sign."""
    if separate:
        parts = [(x.clamp(min=0), layer.weight.clamp(min=0)), (x.clamp(max=0), layer.weight.clamp(max=0))]
        return sum(z_rule(lambda p, w=w: p @ w.T, [p], r)[0] for p, w in parts)
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    return sum(
        z_rule(lambda p, n: p @ positive.T + n @ negative.T, [x.clamp(min=0), x.clamp(max=0)], r), torch.zeros(())
    )


def folded(layer: nn.Linear, scale: Any) -> nn.Linear:
    """The layer with the layer scale behind it folded into its weights."""
    if isinstance(scale, nn.Identity):
        return layer
    whole = deepcopy(layer)
    whole.weight.data = torch.diag(scale.gamma.data) @ layer.weight.data
    return whole


def add(a: Tensor, b: Tensor, r: Tensor, balanced: bool) -> tuple[Tensor, Tensor]:
    r_a, r_b = z_rule(torch.add, [a, b], r)
    if not balanced:
        return r_a, r_b
    mass_a, mass_b = r_a.sum(), r_b.sum()
    total = mass_a.abs() + mass_b.abs()
    return r_a * (mass_a.abs() / total * r.sum() / mass_a), r_b * (mass_b.abs() / total * r.sum() / mass_b)


def whole_model_lrp(
    model: Any, x: Tensor, start: Tensor, *, balanced: bool, separate: bool, last_only: bool
) -> list[Tensor]:
    """R_A (H, T, T) of the blocks (the last alone, or all), last block first, for one image; R everywhere (T, D)."""
    kept = []
    z = model.norm_pre(model._pos_embed(model.patch_embed(x)))[0].detach()
    for block in model.blocks:
        attn, heads = block.attn, block.attn.num_heads
        t = block.norm1(z).detach()
        q, k, v = attn.qkv(t).reshape(len(t), 3, heads, -1).permute(1, 2, 0, 3).detach()
        q, k = attn.q_norm(q).detach(), attn.k_norm(k).detach()
        a = ((q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1)
        o = attn.norm((a @ v).transpose(0, 1).reshape(len(t), -1)).detach()
        branch = block.ls1(attn.proj(o)).detach()
        middle = z + branch
        n = block.norm2(middle).detach()
        hidden = block.mlp.act(block.mlp.fc1(n)).detach()
        grown = block.ls2(block.mlp.fc2(hidden)).detach()
        kept.append((block, z, t, q, k, v, a, o, branch, middle, n, hidden, grown))
        z = (middle + grown).detach()
    features = model.fc_norm(model.norm(z))[0].detach()
    r = torch.zeros_like(z)
    r[0] = linear(model.head, features, start, separate)
    found = []
    for block, z, t, q, k, v, a, o, branch, middle, n, hidden, grown in reversed(kept):
        r_middle, r_grown = add(middle, grown, r, balanced)
        r_hidden = linear(folded(block.mlp.fc2, block.ls2), hidden, r_grown, separate)
        r = r_middle + linear(block.mlp.fc1, n, r_hidden, separate)
        r_z, r_branch = add(z, branch, r, balanced)
        r_o = (
            linear(folded(block.attn.proj, block.ls1), o, r_branch, separate)
            .reshape(len(t), len(a), -1)
            .transpose(0, 1)
        )
        r_a, r_v = (half / 2 for half in z_rule(torch.matmul, [a, v], r_o))
        found.append(r_a)
        if last_only:
            break
        r_q, r_k = (half / 2 for half in z_rule(lambda q, k: q @ k.transpose(1, 2), [q, k], r_a))
        r_qkv = torch.stack([r_q, r_k, r_v]).permute(2, 0, 1, 3).reshape(len(t), -1)
        r = r_z + linear(block.attn.qkv, t, r_qkv, separate)
    return found


def start(kind: str, y: Tensor) -> Tensor:
    """R at the outputs: 1 at the logit, or the gradient of a contrast of logits."""
    if kind == "logit":
        return torch.tensor([0.0, 1.0, 0, 0, 0], dtype=y.dtype)
    if kind == "mean_contrast":
        return torch.tensor([-0.25, 1.0, -0.25, -0.25, -0.25], dtype=y.dtype)
    others = torch.tensor([True, False, True, True, True])
    weights = torch.where(others, y, -torch.inf).softmax(0)
    return torch.tensor([0.0, 1.0, 0, 0, 0], dtype=y.dtype) - weights


TARGETS = {"logit": 1, "mean_contrast": MeanContrast(1), "log_odds": LogOdds(1)}
KINDS = ("plain", "registers", "layer scale", "norm behind pooling", "q/k-norm")


@pytest.mark.parametrize("rule", ["joint", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_partial_lrp_equals_whole_model_lrp(
    kind: str, rule: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    model, x = build(kind), images_of(kind)
    found = explain(model, x, list(TARGETS.values()), "partial_lrp", rule=rule, stabiliser=0.0)
    grid, prefix = found.relevance.shape[-2:], model.num_prefix_tokens
    for b in range(2):
        y = model(x[b : b + 1])[0].detach()
        for t, name in enumerate(TARGETS):
            r_a = whole_model_lrp(
                model, x[b : b + 1], start(name, y), balanced=False, separate=rule == "separate", last_only=True
            )[0]
            expected = r_a.clamp(min=0).mean(0)[0, prefix:].reshape(grid)
            assert torch.allclose(found.relevance[b, t], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("start_layer", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_transformer_attribution_equals_whole_model_lrp(
    kind: str,
    start_layer: int,
    build: Callable[[str], nn.Module],
    images_of: Callable[[str], Tensor],
    naive: Callable[[nn.Module, Tensor], Any],
    scores: dict[str, Any],
) -> None:
    model, x = build(kind), images_of(kind)
    found = explain(model, x, [1, LogOdds(1)], "transformer_attribution", start_layer=start_layer, stabiliser=0.0)
    other = naive(deepcopy(model), x)
    for b in range(2):
        y = model(x[b : b + 1])[0].detach()
        for t, (name, score) in enumerate({"logit": "Logit", "log_odds": "LogOdds"}.items()):
            relevance = whole_model_lrp(
                model, x[b : b + 1], start(name, y), balanced=True, separate=False, last_only=False
            )[::-1]
            slopes = [g for _, g in other.attention_and_gradient(x[b : b + 1], scores[score](1))]
            joint = torch.eye(relevance[0].shape[-1], dtype=x.dtype)
            for g, r_a in list(zip(slopes, relevance, strict=True))[start_layer:]:
                joint = joint + (g * r_a).clamp(min=0).mean(0) @ joint
            assert torch.allclose(found.relevance[b, t], other.map(joint[0]), rtol=1e-6, atol=1e-10)


def test_rules_conserve_relevance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, r = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 7), (5, 7), (2, 4, 5)))
    assert torch.allclose(LinearRule(w, x).relevance(r).sum(-1), r.sum(-1), atol=1e-6)
    assert not torch.allclose(LinearRule(w, x, joint=False).relevance(r).sum(-1), r.sum(-1), atol=1e-2)
    a, b = x[:, :5], w[:4, :5]
    parts = sum_rule(a, b, r)
    assert torch.allclose(parts[0] + parts[1], r, atol=1e-6)
    level = sum_rule(a, b, r, 0.1)
    assert torch.allclose(level[0] + level[1], r, atol=1e-12)
    alike = (a * b > 0).expand_as(r)
    assert torch.allclose(level[0][alike], parts[0][alike], atol=1e-6), "what does not cancel is split as ever"
    cancelled = sum_rule(a, -a * (1 + 1e-9), r, 0.1)
    assert torch.allclose(cancelled[0], r / 2, rtol=1e-6), "what cancels is shared evenly, whatever its rounding"
    factors = product_rule(a, b.T.contiguous(), torch.randn(2, 4, 4, generator=generator, dtype=torch.float64))
    assert torch.allclose(factors[0].sum((1, 2)), factors[1].sum((1, 2)), atol=1e-6)
    assert not LinearRule(torch.zeros(5, 7, dtype=torch.float64), x).relevance(r).any(), "0/0 is 0"


@pytest.mark.parametrize("method", ["partial_lrp", "transformer_attribution"])
def test_rounding_the_weights_moves_no_relevance_about(
    method: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    """By the papers' split, sums that cancel decide the map: float16's rounding moves it by more than its size."""
    moved: dict[float, list[float]] = {0.0: [], 0.1: []}
    for kind in KINDS:
        model, x = build(kind).float(), images_of(kind).float()
        for stabiliser, found in moved.items():
            whole, rounded = (
                explain(m, x, 1, method, stabiliser=stabiliser).relevance for m in (model, deepcopy(model).half())
            )
            found.append(float((rounded - whole).norm() / whole.norm()))
    assert sorted(moved[0.1])[-2] < 0.05, "of q/k-norm, a logit near 0 still divides"
    assert max(moved[0.0]) > max(moved[0.1])


@pytest.mark.parametrize("kind", [*KINDS, "torchvision"])
def test_partial_lrp_reports_what_it_conserves(
    kind: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    model, x = build(kind), images_of(kind)
    joint = explain(model, x, [1, MeanContrast(2)], "partial_lrp").extras
    assert torch.allclose(joint["start"], torch.tensor([[1.0, 0.0]] * 2, dtype=x.dtype), atol=1e-12)
    assert torch.allclose(joint["conserved"], joint["start"], atol=1e-6)
    separate = explain(model, x, 1, "partial_lrp", rule="separate").extras
    assert (separate["conserved"] - separate["start"]).abs().min() > 0.01


@pytest.mark.parametrize("method", ["partial_lrp", "transformer_attribution"])
def test_targets_behind_an_activation_are_refused(
    method: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    with pytest.raises(ModelError, match="starts at a logit or a contrast of logits, not at Probability"):
        explain(build("plain"), images_of("plain"), Probability(1), method)


@pytest.mark.parametrize("head", ["mlp", "bottleneck"])
def test_heads_of_several_layers_pass_relevance_on(head: str) -> None:
    model = build_model("vit_small64_p8", ["malignancy", "margin", "texture", "diameter"], head=head, seed=1).double()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = explain(model, x, ["margin", "diameter"], "partial_lrp")
    assert torch.allclose(found.extras["conserved"], torch.ones(1, 2, dtype=x.dtype), atol=1e-5)
    assert found.relevance.amax() > 0


def test_a_layer_without_a_rule_is_named(build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]) -> None:
    model = build("plain")
    model.head = nn.Sequential(nn.Linear(24, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(4, 5)).double()
    with pytest.raises(ModelError, match="LRP has no rule for Unflatten"):
        explain(model, images_of("plain"), 1, "partial_lrp")
