"""Small float64 networks and naive references for pixel and CAM methods; they share no code with the package.

A reference explains one image and one target: a plain loop, one forward and one ``backward`` a time, a network that is
cut by hand instead of by hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]
SCORES = ("logit", "probability", "log_probability", "log_odds", "mean_contrast", "max_contrast")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a value that matters: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(noise * (1.5 / fan_in) ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.double().eval()


def make_cnn(classes: int = 5) -> nn.Sequential:
    """Conv, batch norm, in-place ReLU, pooling: piecewise linear. Index 6 is the last convolution, 8 its ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 12), nn.ReLU(inplace=True), nn.Linear(12, classes),
    )  # fmt: skip


def score(kind: str, t: int) -> Score:
    """The explained scalar as a function of the logits (1, C), written out from the definitions."""

    def value(y: Tensor) -> Tensor:
        others = torch.cat([y[0, :t], y[0, t + 1 :]])
        formulas = {
            "logit": lambda: y[0, t],
            "probability": lambda: torch.softmax(y[0], 0)[t],
            "log_probability": lambda: torch.log_softmax(y[0], 0)[t],
            "log_odds": lambda: y[0, t] - torch.logsumexp(others, 0),
            "mean_contrast": lambda: y[0, t] - others.mean(),
            "max_contrast": lambda: y[0, t] - others.max(),
        }
        return formulas[kind]()

    return value


def gradient(model: Callable[[Tensor], Tensor], x: Tensor, value: Score) -> Tensor:
    """Gradient of the score at one image (1, C, H, W)."""
    x = x.detach().clone().requires_grad_()
    value(model(x)).backward()
    assert x.grad is not None
    return x.grad[0]


def smoothgrad(model: nn.Module, x: Tensor, value: Score, sigma: float, noise: Tensor) -> Tensor:
    """Mean gradient over given unit noise (n, C, H, W), channel sum."""
    return sum(gradient(model, x + sigma * e, value) for e in noise).sum(0) / len(noise)


def integrated_gradients(
    model: nn.Module, x: Tensor, value: Score, baseline: Tensor, alphas: list[float], weights: list[float]
) -> Tensor:
    total = sum(w * gradient(model, baseline + a * (x - baseline), value) for a, w in zip(alphas, weights, strict=True))
    return ((x - baseline)[0] * total).sum(0)


def cam_parts(trunk: nn.Module, head: nn.Module, x: Tensor, value: Score) -> tuple[Tensor, Tensor]:
    """Activation (K, h, w) at the cut between trunk and head, and the gradient there."""
    with torch.no_grad():
        activation = trunk(x).clone()
    return activation[0].clone(), gradient(lambda a: head(a.clone()), activation, value)


def vit_parts(vit: nn.Module, x: Tensor, value: Score, layer: int) -> tuple[Tensor, Tensor]:
    """Normalised patch tokens of a block of a timm ViT (4 × 6 patches, CLS first) as (D, 4, 6), and the gradient."""
    with torch.no_grad():
        z = vit._pos_embed(vit.patch_embed(x))
        for block in vit.blocks[:layer]:
            z = block(z)
        tokens = vit.blocks[layer].norm1(z)

    def rest(t: Tensor) -> Tensor:
        block = vit.blocks[layer]
        y = z + block.attn(t)
        y = y + block.mlp(block.norm2(y))
        for later in vit.blocks[layer + 1 :]:
            y = later(y)
        return vit.head(vit.norm(y)[:, 0])

    slope = gradient(rest, tokens, value)
    return tokens[0, 1:].T.reshape(-1, 4, 6), slope[1:].T.reshape(-1, 4, 6)


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    out = torch.zeros_like(a[0])
    for k in range(len(a)):
        out += g[k].mean() * a[k]
    return out


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    out = torch.zeros_like(a[0])
    for k in range(len(a)):
        out += (g[k] * a[k]).sum() / (a[k].abs().sum() + 1e-7) * a[k]
    return out


def gradcam_plus_plus(a: Tensor, g: Tensor, rectified: bool) -> Tensor:
    out = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight = 0.0
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                slope = g[k, i, j].item()
                below = 2 * slope**2 + a[k].sum().item() * slope**3
                share = slope**2 / below if below > 0 else 0.0
                weight += share * (max(slope, 0.0) if rectified else slope)
        out += weight * a[k]
    return out


def linear_approximation(a: Tensor, g: Tensor) -> Tensor:
    return (a * g).sum(0)


def rsi_gradcam(
    trunk: nn.Module, head: nn.Module, x: Tensor, black: Tensor, value: Score, steps: int, positive: bool = False
) -> tuple[Tensor, Tensor]:
    """Unrectified map (h, w) and the integrated terms (K, h, w)."""
    points = [cam_parts(trunk, head, black + (x - black) * step / steps, value) for step in range(steps + 1)]
    terms = torch.zeros_like(points[0][0])
    for (a0, g0), (a1, g1) in pairwise(points):
        slope = (g0.clamp_min(0) + g1.clamp_min(0)) / 2 if positive else (g0 + g1) / 2
        terms += slope * (a1 - a0)
    weights = terms.mean((1, 2))
    return sum(w * a for w, a in zip(weights, points[-1][0], strict=True)), terms  # type: ignore[return-value]


def bias_terms(model: nn.Sequential, x: Tensor, value: Score) -> tuple[list[Tensor], Tensor]:
    """Bias times gradient after every layer that has a bias: maps (K, h, w) in order, and the sum of the flat ones."""
    outputs: list[tuple[Tensor, Tensor]] = []
    state = x.detach().clone().requires_grad_()
    for layer in model:
        state = layer(state.clone())
        if isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
            outputs.append((state, (layer.bias - layer.running_mean * scale).view(1, -1, 1, 1)))
        elif isinstance(layer, nn.Conv2d):
            outputs.append((state, layer.bias.view(1, -1, 1, 1)))
        elif isinstance(layer, nn.Linear):
            outputs.append((state, layer.bias.view(1, -1)))
    for output, _ in outputs:
        output.retain_grad()
    value(state).backward()
    found = [(output.grad * bias).detach()[0] for output, bias in outputs]
    return [term for term in found if term.ndim == 3], sum(term.sum() for term in found if term.ndim == 1)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    """The references by name."""
    return SimpleNamespace(
        SCORES=SCORES, score=score, gradient=gradient, smoothgrad=smoothgrad, integrated_gradients=integrated_gradients,
        cam_parts=cam_parts, vit_parts=vit_parts, gradcam=gradcam, xgradcam=xgradcam,
        gradcam_plus_plus=gradcam_plus_plus,        linear_approximation=linear_approximation,
        rsi_gradcam=rsi_gradcam, bias_terms=bias_terms,
    )  # fmt: skip


@pytest.fixture(scope="session")
def cnn() -> nn.Sequential:
    model = randomise(make_cnn(), 1)
    assert isinstance(model, nn.Sequential)
    return model


@pytest.fixture(scope="session")
def binary_cnn() -> nn.Module:
    return randomise(make_cnn(1), 2)


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """A timm ResNet with shortcuts and one block a stage."""
    from timm.models.resnet import BasicBlock, ResNet

    return randomise(ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(6, 8, 8, 10), output_stride=8), 3)


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """A timm ViT with CLS, on a grid that is not square."""
    from timm.models.vision_transformer import VisionTransformer

    return randomise(VisionTransformer((16, 24), patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5), 4)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Three normalised images (3, 3, 16, 24), not square."""
    return torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
