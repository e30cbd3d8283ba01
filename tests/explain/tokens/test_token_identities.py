"""What must hold whatever the numbers are: proportionality to attention, completeness, contrasts, invariances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lidc_xai.explain import (
    Logit,
    LogOdds,
    LogProbability,
    MaxContrast,
    MeanContrast,
    Probability,
    explain,
)
from lidc_xai.models import build_model

Build = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]


@pytest.mark.parametrize("kind", ["plain", "registers", "layer scale"])
def test_in_every_head_relevance_is_attention_times_a_factor(kind: str, build: Build, images_of: Images) -> None:
    """S_i^h = A_i^h [v⁰_i·u + s q·k⁰_i (V_i − o)·u], each factor written out from the model's own weights."""
    model: Any = build(kind)
    x, prefix = images_of(kind), model.num_prefix_tokens
    found = explain(model, x, 2, per_head=True)
    weights = explain(model, x, 2, "attention", per_head=True).extras["per_head"][0, 0].flatten(1)
    attn = model.blocks[-1].attn
    kept: dict[str, Tensor] = {}
    handles = [
        model.blocks[-1].norm1.register_forward_hook(lambda m, i, out: kept.update(t=out)),
        attn.proj.register_forward_pre_hook(lambda m, i: (i[0].retain_grad(), kept.update(o=i[0]))[1]),
    ]
    model(x[:1])[0, 2].backward()
    for handle in handles:
        handle.remove()
    heads, t = attn.num_heads, kept["t"][0].detach()
    w_q, w_k, w_v = attn.qkv.weight.detach().reshape(3, heads, -1, t.shape[1])
    b_q, _, b_v = attn.qkv.bias.detach().reshape(3, heads, -1)
    o, u = (x[0, 0].detach().reshape(heads, -1) for x in (kept["o"], kept["o"].grad))
    for h in range(heads):
        value = t @ w_v[h].T
        key = (t @ w_k[h].T) @ (w_q[h] @ t[0] + b_q[h]) * attn.scale
        factor = value @ u[h] + key * ((value + b_v[h] - o[h]) @ u[h])
        expected = weights[h] * factor[prefix:]
        assert torch.allclose(found.extras["per_head"][0, 0, h].flatten(), expected, rtol=1e-10, atol=1e-14)
    assert torch.allclose(found.extras["per_head"].sum(2), found.relevance, rtol=1e-12)


@pytest.mark.parametrize("engine", ["exact", "autograd"])
def test_no_attention_no_relevance(engine: str, build: Build, images_of: Images) -> None:
    model: Any = build("plain")
    with torch.no_grad():
        model.blocks[-1].attn.qkv.weight[:48] *= 60  # queries and keys: the softmax of each head has few survivors
    x = images_of("plain")
    attention = explain(model, x, 1, "attention", per_head=True).extras["per_head"].amax(2).squeeze(1)
    silent = attention == 0
    for parts in (None, "value", "key"):
        relevance = explain(model, x, 1, parts=parts, engine=engine).relevance[:, 0]
        assert 0 < silent.sum() < silent.numel()
        assert not relevance[silent].any()
        # a head that gives all its attention to one token has no key path either: V_i − o is 0
        assert parts == "key" or relevance[attention > 1e-9].all()


def test_parts_add_up_and_the_papers_equation_is_the_value_path(build: Build, images_of: Images, naive: Any) -> None:
    for kind in ("registers", "mean"):
        model, x = build(kind), images_of(kind)
        whole = explain(model, x, [1, 3]).relevance
        parts = {part: explain(model, x, [1, 3], parts=part).relevance for part in ("value", "key", "query")}
        assert torch.allclose(sum(parts.values()), whole, rtol=1e-10)
        assert torch.allclose(explain(model, x, [1, 3], parts=("key", "query")).relevance, whole - parts["value"])
        assert parts["query"].any() == (kind == "mean"), "a patch is a query only where the head reads patches"
    model, x = build("registers"), images_of("registers")
    other = build("registers")
    attn: Any = other.blocks[-1].attn
    detached = attn.qkv.forward
    attn.qkv.forward = lambda t: torch.cat([detached(t)[..., :48].detach(), detached(t)[..., 48:]], dim=-1)
    t, g = naive(other, x).token_gradient(x[:1], lambda y, v: y[1])
    paper = (t * g).sum(-1)[5:].reshape(3, 5)
    assert torch.allclose(explain(model, x[:1], 1, parts="value").relevance[0, 0], paper, rtol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "registers", "mean", "distilled"])
def test_integrated_cdam_is_complete_with_its_residual_reported(
    kind: str, build: Build, images_of: Images, naive: Any
) -> None:
    model, x = build(kind), images_of(kind)
    targets = [Logit(1), Probability(2)]
    found = {n: explain(model, x, targets, "integrated_cdam", steps=n).extras["residual"].abs() for n in (40, 160)}
    assert torch.allclose(found[40], 4 * found[160], rtol=0.2), "a right Riemann sum's error goes with 1/n"
    smooth = explain(model, x, targets, "integrated_cdam", steps=60, rule="gauss-legendre")
    assert smooth.extras["residual"].abs().max() < 1e-8
    other = naive(build(kind), x)
    scores = (lambda y, v: y[1], lambda y, v: y.softmax(0)[2])
    for b in range(2):
        for t, score in enumerate(scores):
            change = score(*other.run(x[b : b + 1])) - other.value(x[b : b + 1], score, torch.zeros_like)
            excess = smooth.relevance[b, t].sum() - change.detach()
            assert smooth.extras["residual_patches"][b, t].item() == pytest.approx(excess.item(), abs=1e-10)


LINEAR = ("cdam", "gradcam", "xgradcam", "linear_approximation", "saliency")


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("kind", ["plain", "mean"])
def test_contrasts_of_linear_methods(kind: str, method: str, build: Build, images_of: Images) -> None:
    """log-odds = weighted contrast of the maps; probability and log-probability are multiples of it."""
    model, x = build(kind), images_of(kind)
    single = explain(model, x, list(range(5)), method)
    maps, y = single.relevance, single.values
    names = [
        LogOdds(1), LogOdds(1, contrast="maps"), Probability(1), LogProbability(1), MeanContrast(1), MaxContrast(1),
    ]  # fmt: skip
    odds, by_maps, probability, log_probability, mean, most = explain(model, x, names, method).relevance.unbind(1)
    others = torch.tensor([0, 2, 3, 4])
    alpha = y[:, others].softmax(-1)
    weighted = maps[:, 1] - torch.einsum("bs,bshw->bhw", alpha, maps[:, others])
    p = y.softmax(-1)[:, 1].view(-1, 1, 1)
    same = {"rtol": 1e-9, "atol": 1e-12}
    assert torch.allclose(odds, weighted, **same)
    assert torch.allclose(by_maps, weighted, **same)
    assert torch.allclose(probability, p * (1 - p) * weighted, **same)
    assert torch.allclose(log_probability, (1 - p) * weighted, **same)
    assert torch.allclose(mean, maps[:, 1] - maps[:, others].mean(1), **same)
    best = others[y[:, others].argmax(-1)]
    assert torch.allclose(most, maps[:, 1] - maps[torch.arange(2), best], **same)


@pytest.mark.parametrize("method", ["relevance_propagation", "gradient_rollout"])
def test_contrast_by_maps_differs_where_maps_are_clamped(method: str, build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    found = explain(model, x, [LogOdds(1), 3, LogOdds(1, contrast="maps")], method)
    single = explain(model, x, list(range(5)), method)
    weights = single.values.masked_fill(torch.arange(5) == 1, -torch.inf).softmax(-1)
    expected = single.relevance[:, 1] - torch.einsum("bs,bshw->bhw", weights, single.relevance)
    assert torch.allclose(found.relevance[:, 2], expected, rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.relevance[:, 1], single.relevance[:, 3], rtol=1e-12)
    assert not torch.allclose(found.relevance[:, 2], found.relevance[:, 0], rtol=1e-2)
    assert torch.allclose(found.values[:, 2], found.values[:, 0])


@pytest.mark.parametrize(
    "method", ["cdam", "smooth_cdam", "integrated_cdam", "relevance_propagation", "gradcam", "reciprocam", "saliency"]
)
def test_only_logits_change_when_every_logit_is_shifted(method: str, build: Build, images_of: Images) -> None:
    """y → y + h(x) leaves softmax targets and contrasts alone, and changes what logits explain."""
    model: Any = build("plain")
    x = images_of("plain")
    invariant = [Probability(1), LogProbability(2), LogOdds(3), MeanContrast(1), MaxContrast(4)]
    options = {"smooth_cdam": {"samples": 3}, "integrated_cdam": {"steps": 3}}.get(method, {})
    before = explain(model, x, [*invariant, Logit(1)], method, **options)
    with torch.no_grad():
        model.head.weight += torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    after = explain(model, x, [*invariant, Logit(1)], method, **options)
    assert torch.allclose(before.relevance[:, :-1], after.relevance[:, :-1], rtol=1e-8, atol=1e-12)
    assert (before.relevance[:, -1] - after.relevance[:, -1]).abs().amax() > 1e-3


def test_smooth_cdam_without_noise_is_cdam_and_depends_on_its_seed(build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    plain = explain(model, x, 1).relevance
    still = explain(model, x, 1, "smooth_cdam", sigma=0.0, samples=2)
    assert torch.allclose(still.relevance, plain, rtol=1e-10)
    noisy = [explain(model, x, 1, "smooth_cdam", samples=4, seed=seed).relevance for seed in (0, 0, 1)]
    assert noisy[0].equal(noisy[1])
    assert not torch.allclose(noisy[0], noisy[2], rtol=1e-3)
    spread = explain(model, x, 1, "smooth_cdam", samples=1).extras["sigma"]
    tokens = torch.stack([z.std() for z in _tokens(model, x)])
    assert torch.allclose(spread, 0.15 * tokens)


def _tokens(model: Any, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = model.blocks[-1].norm1.register_forward_hook(lambda m, i, out: kept.append(out.detach()))
    model(x)
    handle.remove()
    return kept[0].flatten(1)


def test_timm_and_torchvision_say_the_same_of_one_network(build: Build, images_of: Images) -> None:
    theirs: Any = build("plain")
    ours = torchvision.models.VisionTransformer(32, 8, 3, 3, 24, 96, num_classes=5).double().eval()
    parts = {
        "class_token": "cls_token", "conv_proj": "patch_embed.proj", "encoder.pos_embedding": "pos_embed",
        "encoder.ln": "norm", "heads.head": "head", "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj", "ln_1": "norm1", "ln_2": "norm2", "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2", "encoder.layers.encoder_layer_": "blocks.",
    }  # fmt: skip

    def renamed(name: str) -> str:
        for new, old in parts.items():
            name = name.replace(new, old)
        return name

    state = theirs.state_dict()
    ours.load_state_dict({name: state[renamed(name)] for name in ours.state_dict()})
    x = images_of("plain")
    assert torch.allclose(ours(x), theirs(x))
    methods = [
        "attention", "attention_rollout", "gradient_rollout", "cdam", "smooth_cdam", "integrated_cdam", "gradcam",
        "relevance_propagation", "transformer_attribution", "partial_lrp", "reciprocam", "token_ablation", "random",
    ]  # fmt: skip
    left, right = (explain(model, x, [0, LogOdds(3)], methods, samples=3, steps=3) for model in (ours, theirs))
    for method in methods:
        assert torch.allclose(left[method].relevance, right[method].relevance, rtol=1e-7, atol=1e-10), method


def test_a_bottleneck_composes_the_maps_of_its_biomarkers() -> None:
    outputs = ["texture", "malignancy", "margin", "diameter"]
    model: Any = build_model("vit_small64_p8", outputs, head="bottleneck", seed=2).double()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = explain(model, x).relevance
    v = model.head.verdict.weight[0].detach()
    expected = sum(v[i] * maps[:, outputs.index(name)] for i, name in enumerate(model.head.concept_names))
    assert torch.allclose(maps[:, 1], expected, rtol=1e-9, atol=1e-13)


def test_reciprocam_explains_a_probability_where_there_is_one(build: Build, images_of: Images) -> None:
    x = images_of("plain")
    found = explain(build("plain"), x, 3, "reciprocam")
    assert found.target_names == ("probability(3)",)
    assert ((found.relevance > 0) & (found.relevance < 1)).all()
    assert torch.allclose(found.relevance, explain(build("plain"), x, Probability(3), "reciprocam").relevance)
    nodule = build_model("vit_small64_p8", ["malignancy", "margin"], seed=0)
    both = explain(nodule, torch.randn(1, 3, 64, 64), method="reciprocam")
    assert both.target_names == ("probability(malignancy)", "margin")


def test_random_depends_on_image_and_seed_alone(build: Build, images_of: Images) -> None:
    model, x = build("registers"), images_of("registers")
    found = explain(model, x, [1, 2], "random").relevance
    assert found[:, 0].equal(found[:, 1])
    assert explain(model, x.flip(0), 1, "random").relevance.flip(0).equal(found[:, :1])
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found, explain(model, x, [1, 2], "random", seed=1).relevance)
