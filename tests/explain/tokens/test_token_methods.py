"""Every token method × kind of model × target × batch against naive references, in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain import (
    ConceptSimilarity,
    Logit,
    LogOdds,
    LogProbability,
    MaxContrast,
    MeanContrast,
    Probability,
    explain,
    list_methods,
)

SIGMA, SAMPLES, STEPS = 0.4, 3, 4
NODES = {
    "right": ([0.25, 0.5, 0.75, 1.0], [0.25] * 4),
    "midpoint": ([0.125, 0.375, 0.625, 0.875], [0.25] * 4),
    "gauss-legendre": (
        [0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262],
        [0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692],
    ),
}


def cdam(n: Any, x: Tensor, f: Any, layer: int = -1) -> Tensor:
    t, g = n.token_gradient(x, f, layer=layer)
    return n.map((t * g).sum(-1))


def cdam_block_input(n: Any, x: Tensor, f: Any) -> Tensor:
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0].detach().requires_grad_())
        return (seen[0], *inputs[1:])

    handle = n.blocks[-1].register_forward_pre_hook(keep)
    f(*n.run(x)).backward()
    handle.remove()
    return n.map((seen[0].detach() * seen[0].grad)[0].sum(-1))


def smooth_cdam(n: Any, x: Tensor, f: Any, relative: bool = True, alteration: str = "gaussian") -> Tensor:
    def altered(t: Tensor, noise: Tensor) -> Tensor:
        if alteration == "mask":
            removed = noise[:, 0] <= torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(SIGMA))
            removed[: n.prefix] = False
            return torch.where(removed[:, None], 0, t)
        return t * (1 + SIGMA * noise[0]) if alteration == "feature" else t + sigma * noise

    with n.at_norm1(lambda t: t) as seen:
        n.run(x)
    t = seen[0].detach()
    sigma = SIGMA * t.flatten().std() if relative else SIGMA
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(())
    for _ in range(SAMPLES):
        noise = torch.randn(t.shape[1:], generator=generator, dtype=t.dtype)
        noisy, g = n.token_gradient(x, f, lambda t, noise=noise: altered(t, noise).detach())
        total = total + n.map((noisy * g).sum(-1))
    return total / SAMPLES


def integrated_cdam(n: Any, x: Tensor, f: Any, rule: str = "right") -> Tensor:
    with n.at_norm1(lambda t: t) as seen:
        n.run(x)
    t = seen[0].detach()[0]
    gradients = [n.token_gradient(x, f, lambda t, a=a: (a * t).detach())[1] for a in NODES[rule][0]]
    return n.map((t * sum(w * g for w, g in zip(NODES[rule][1], gradients, strict=True))).sum(-1))


def gradcam(n: Any, x: Tensor, f: Any, layer: int = -1) -> Tensor:
    t, g = n.token_gradient(x, f, layer=layer)
    return n.map(t @ g[n.prefix :].mean(0))


def xgradcam(n: Any, x: Tensor, f: Any) -> Tensor:
    t, g = n.token_gradient(x, f)
    p = slice(n.prefix, None)
    return n.map(t @ ((t[p] * g[p]).sum(0) / (t[p].abs().sum(0) + 1e-7)))


def reciprocam(n: Any, x: Tensor, f: Any, kernel: str = "gaussian", cls: bool = True, layer: int = -1) -> Tensor:
    window = [[1, 2, 1], [2, 4, 2], [1, 2, 1]] if kernel == "gaussian" else [[0, 0, 0], [0, 16, 0], [0, 0, 0]]
    rows, columns = n.grid
    found = torch.zeros(n.prefix + rows * columns, dtype=x.dtype)
    for i, j in product(range(rows), range(columns)):
        mask = torch.zeros(rows + 2, columns + 2, dtype=x.dtype)
        mask[i : i + 3, j : j + 3] = torch.tensor(window) / 16
        full = torch.cat([torch.ones(n.prefix), mask[1:-1, 1:-1].reshape(-1)]).unsqueeze(-1)
        full[0] = float(cls)
        found[n.prefix + i * columns + j] = n.value(x, f, lambda t, m=full: t * m, layer)
    return n.map(found)


def ablation_input(n: Any, x: Tensor, f: Any) -> Tensor:
    count = n.prefix + n.grid[0] * n.grid[1]
    whole, found = f(*n.run(x)), torch.zeros(count, dtype=x.dtype)
    for i in range(n.prefix, count):
        without = [m for m in range(count) if m != i]
        handle = n.blocks[0].register_forward_pre_hook(lambda module, inputs, w=without: (inputs[0][:, w], *inputs[1:]))
        found[i] = whole - f(*n.run(x))
        handle.remove()
    return n.map(found)


def ablation_last(n: Any, x: Tensor, f: Any) -> Tensor:
    """The token leaves the block's own attention, which the CLS row alone reads behind it."""
    count = n.prefix + n.grid[0] * n.grid[1]
    whole, found = f(*n.run(x)), torch.zeros(count, dtype=x.dtype)
    for i in range(n.prefix, count):
        without = [m for m in range(count) if m != i]
        handle = n.blocks[-1].register_forward_pre_hook(
            lambda module, inputs, w=without: (inputs[0][:, w], *inputs[1:])
        )
        found[i] = whole - f(*n.run(x))
        handle.remove()
    return n.map(found)


def attention(n: Any, x: Tensor, f: Any) -> Tensor:
    return n.map(n.rows(n.attention_and_gradient(x, f)[-1][0].mean(0)))


def _chain(n: Any, matrices: list[Tensor]) -> Tensor:
    joint = matrices[0]
    for matrix in matrices[1:]:
        joint = matrix @ joint
    return n.map(n.rows(joint))


def _dropped(matrix: Tensor, ratio: float) -> Tensor:
    flat = matrix.clone().reshape(-1)
    for index in flat.argsort()[: int(len(flat) * ratio)].tolist():
        if index != 0:
            flat[index] = 0
    return flat.reshape(matrix.shape)


def attention_rollout(n: Any, x: Tensor, f: Any, fusion: str = "mean", ratio: float = 0.0, start: int = 0) -> Tensor:
    fuse = {"mean": lambda a: a.mean(0), "max": lambda a: a.max(0).values, "min": lambda a: a.min(0).values}[fusion]
    matrices = [_dropped(fuse(a), ratio) + torch.eye(a.shape[-1]) for a, _ in n.attention_and_gradient(x, f)]
    return _chain(n, [a / a.sum(-1, keepdim=True) for a in matrices[start:]])


def gradient_rollout(n: Any, x: Tensor, f: Any, clamp: bool = True, ratio: float = 0.0) -> Tensor:
    matrices = []
    for a, g in n.attention_and_gradient(x, f):
        weighted = (a * g).mean(0)
        joined = (_dropped(weighted.clamp(min=0) if clamp else weighted, ratio) + torch.eye(a.shape[-1])) / 2
        matrices.append(joined / joined.sum(-1, keepdim=True) if clamp else joined)
    return _chain(n, matrices)


def relevance_propagation(n: Any, x: Tensor, f: Any) -> Tensor:
    r = torch.eye(n.prefix + n.grid[0] * n.grid[1], dtype=x.dtype)
    for a, g in n.attention_and_gradient(x, f):
        r = r + (a * g).clamp(min=0).mean(0) @ r
    return n.map(n.rows(r))


Row = tuple[str, dict[str, Any], Callable[..., Tensor], dict[str, Any]]
ROWS: list[Row] = [
    ("attention", {}, attention, {}),
    ("attention_rollout", {}, attention_rollout, {}),
    ("attention_rollout", {"fusion": "max", "start_layer": -1}, attention_rollout, {"fusion": "max", "start": -1}),
    ("attention_rollout", {"fusion": "min", "discard_ratio": 0.6}, attention_rollout, {"fusion": "min", "ratio": 0.6}),
    ("gradient_rollout", {}, gradient_rollout, {}),
    ("gradient_rollout", {"clamp": False}, gradient_rollout, {"clamp": False}),
    ("relevance_propagation", {}, relevance_propagation, {}),
    ("cdam", {}, cdam, {}),
    ("cdam", {"layer": 0}, cdam, {"layer": 0}),
    ("cdam", {"tokens": "block_input"}, cdam_block_input, {}),
    ("smooth_cdam", {"samples": SAMPLES, "sigma": SIGMA, "seed": 5}, smooth_cdam, {}),
    (
        "smooth_cdam",
        {"samples": SAMPLES, "sigma": SIGMA, "seed": 5, "relative": False, "max_batch": 3},
        smooth_cdam,
        {"relative": False},
    ),
    *(
        (
            "smooth_cdam",
            {"samples": SAMPLES, "sigma": SIGMA, "seed": 5, "alteration": how},
            smooth_cdam,
            {"alteration": how},
        )
        for how in ("mask", "feature")
    ),
    ("integrated_cdam", {"steps": STEPS}, integrated_cdam, {}),
    ("integrated_cdam", {"steps": STEPS, "rule": "midpoint", "max_batch": 1}, integrated_cdam, {"rule": "midpoint"}),
    ("integrated_cdam", {"steps": STEPS, "rule": "gauss-legendre"}, integrated_cdam, {"rule": "gauss-legendre"}),
    ("gradcam", {}, gradcam, {}),
    ("gradcam", {"layer": 0}, gradcam, {"layer": 0}),
    ("xgradcam", {}, xgradcam, {}),
    ("linear_approximation", {}, cdam, {}),
    ("reciprocam", {}, reciprocam, {}),
    ("reciprocam", {"kernel": "dirac", "cls": False}, reciprocam, {"kernel": "dirac", "cls": False}),
    ("reciprocam", {"layer": 0, "max_batch": 5}, reciprocam, {"layer": 0}),
    ("token_ablation", {"max_batch": 6}, ablation_input, {}),
    ("token_ablation", {"at": "last"}, ablation_last, {}),
]
FEW = {"Logit": (1, 1), "Probability": (0, 3)}
MANY = FEW | {
    "LogOdds": (2, 2), "MeanContrast": (4, 4), "LogProbability": (3, 0), "MaxContrast": (1, 1), "dot": (0, 0),
    "cosine": (0, 0), "l2": (0, 0),
}  # fmt: skip
"""Targets with the class of each of the two images (a concept has none)."""


def asked(names: dict[str, tuple[int, int]], concept: Tensor) -> list[Any]:
    plain = {
        "Logit": Logit, "LogOdds": LogOdds, "Probability": Probability, "LogProbability": LogProbability,
        "MeanContrast": MeanContrast, "MaxContrast": MaxContrast,
    }  # fmt: skip
    return [
        plain[name](torch.tensor(columns)) if name in plain else ConceptSimilarity(concept, name)
        for name, columns in names.items()
    ]


def names_of(row: Row) -> str:
    return f"{row[0]}-" + "-".join(f"{name}={value}" for name, value in row[1].items())


ALL_KINDS = (
    "plain", "registers", "one head", "layer scale", "dynamic size", "norm behind pooling", "q/k-norm", "mean",
    "mean without CLS", "attention pooling", "distilled", "torchvision",
)  # fmt: skip
DEFAULTS = [row for number, row in enumerate(ROWS) if row[0] not in [earlier[0] for earlier in ROWS[:number]]]
CASES = [
    pytest.param(kind, row, id=f"{kind}-{names_of(row)}")
    for row in ROWS
    for kind in (ALL_KINDS if row in DEFAULTS else ("plain", "registers", "mean"))
]


@pytest.mark.parametrize(("kind", "row"), CASES)
def test_equals_the_naive_reference(
    kind: str,
    row: Row,
    build: Callable[[str], nn.Module],
    images_of: Callable[[str], Tensor],
    naive: Callable[[nn.Module, Tensor], Any],
    scores: dict[str, Any],
    concept: Tensor,
    kinds: SimpleNamespace,
) -> None:
    """Two images and several targets at once, per image where they differ, equal one image and target at a time."""
    method, options, reference, reference_options = row
    model, x = build(kind), images_of(kind)
    if method not in list_methods(model):
        assert kind not in kinds.reads_cls
        return
    if options.get("at") == "last" and kind not in kinds.reads_cls:
        return
    names = MANY if kind == "plain" and method not in ("reciprocam", "token_ablation") else FEW
    found = explain(model, x, asked(names, concept), method, **options)
    other = naive(deepcopy(model), x)
    assert found.relevance.shape == (2, len(names), *other.grid)
    for t, (name, columns) in enumerate(names.items()):
        for b, column in enumerate(columns):
            f = scores[name](column)
            expected = reference(other, x[b : b + 1], f, **reference_options)
            got = found.relevance[b, t]
            assert torch.allclose(got, expected, rtol=1e-10, atol=1e-11), (name, b, (got - expected).abs().max())
            assert float(found.values[b, t]) == pytest.approx(f(*other.run(x[b : b + 1])).item(), rel=1e-12)


@pytest.mark.parametrize("method", ["cdam", "smooth_cdam", "integrated_cdam", "gradcam", "xgradcam", "reciprocam"])
@pytest.mark.parametrize(
    "kind", ["plain", "registers", "one head", "layer scale", "dynamic size", "norm behind pooling", "torchvision"]
)
def test_closed_form_is_automatic_differentiation(
    kind: str, method: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor], concept: Tensor
) -> None:
    model, x = build(kind), images_of(kind)
    targets = asked(MANY, concept)
    options = {"smooth_cdam": {"samples": 3}, "integrated_cdam": {"steps": 3}}.get(method, {})
    exact = explain(model, x, targets, method, engine="exact", **options)
    automatic = explain(model, x, targets, method, engine="autograd", **options)
    assert (exact.engine, automatic.engine) == ("exact", "forward" if method == "reciprocam" else "autograd")
    assert torch.allclose(exact.relevance, automatic.relevance, rtol=1e-10, atol=1e-13)
    assert exact.extras.keys() >= automatic.extras.keys() - {"layer"}
    for name, value in automatic.extras.items():
        if isinstance(value, Tensor):
            assert torch.allclose(exact.extras[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["q/k-norm", "mean", "mean without CLS", "attention pooling", "distilled"])
def test_no_closed_form_is_said_and_not_guessed(
    kind: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    model, x = build(kind), images_of(kind)
    assert explain(model, x, 1).engine == "autograd"
    with pytest.raises(UsageError, match=r"engine='exact' has no closed form here: its? "):
        explain(model, x, 1, engine="exact")
