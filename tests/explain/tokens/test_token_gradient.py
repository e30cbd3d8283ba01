"""AttnLRP, LibraGrad, LeGrad: identities and naive references in float64 that share no code with the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import ConceptSimilarity, LogOdds, MeanContrast, explain, list_methods, refusals
from lidc_xai.explain.networks.backward_rules import gamma_conv2d, gamma_linear

Build = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]
TOKENS = ("plain", "registers", "one head", "layer scale", "dynamic size", "norm behind pooling", "q/k-norm", "mean",
          "mean without CLS", "attention pooling", "torchvision")  # fmt: skip
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
OTHERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "swiglu": ("vit_giant_patch14_dinov2", {**SMALL, "img_size": 28}, 28),
    "eva02": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 28}, 28),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 32}, 32),
    "beit": ("beit_base_patch16_224", {**SMALL, "img_size": 32}, 32),
    "relpos": ("vit_relpos_small_patch16_224", {**SMALL, "img_size": 32}, 32),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5},
        56,
    ),
    "resnet": ("resnet10t", {"num_classes": 5}, 64),
    "se and silu": ("efficientnet_b0", {"num_classes": 5}, 64),
    "convnext": ("convnextv2_atto", {"num_classes": 5}, 64),
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim > 1 and tensor.is_floating_point() and isinstance(tensor, nn.Parameter):
                tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.double().eval()


@pytest.fixture(scope="module")
def other() -> Callable[[str], tuple[nn.Module, Tensor]]:
    """kind → (model, one image)."""

    def make(kind: str) -> tuple[nn.Module, Tensor]:
        name, options, size = OTHERS[kind]
        model = randomise(timm.create_model(name, **options))
        return model, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    return make


def bias_terms(model: nn.Module, run: Callable[[], Tensor], behind: str = "nothing") -> float:
    """Σ b ⊙ ∂f/∂b over all that is added ``behind`` a module: biases, class and register tokens, positions."""
    added = [
        parameter.requires_grad_()
        for name, parameter in model.named_parameters()
        if not name.startswith(behind)
        and (name.endswith("bias") or any(w in name for w in ("cls_token", "class_token", "pos_emb", "reg_token")))
    ]
    slopes = torch.autograd.grad(run(), added, allow_unused=True)
    return sum(float((g * b.detach()).sum()) for g, b in zip(slopes, added, strict=True) if g is not None)


@pytest.mark.parametrize("kind", TOKENS)
def test_detached_the_network_is_affine_and_the_map_is_its_linear_part(
    kind: str, build: Build, images_of: Images
) -> None:
    """f = Σ e ⊙ ∂f/∂e + Σ b ⊙ ∂f/∂b, from maps of the package and biases' gradients of a pass of its own."""
    from lidc_xai.explain.networks.changed_backward import LIBRA, ChangedBackward

    model, x = build(kind), images_of(kind)[:1]
    found = explain(model, x, 2, "attn_lrp", attention="detach")
    assert found.relevance.shape[-2:] == (x.shape[-2] // 8, x.shape[-1] // 8)
    frozen = model.requires_grad_(False)

    def run() -> Tensor:
        with ChangedBackward(LIBRA):
            return frozen(x)[0, 2]

    terms = bias_terms(model, run, behind="conv_proj." if kind == "torchvision" else "patch_embed.")
    exact = 1e-7 if kind == "dynamic size" else 1e-10  # timm interpolates positions in float32
    assert float(found.relevance.sum()) + terms == pytest.approx(float(found.values), abs=exact)


@pytest.mark.parametrize("kind", [*TOKENS[:-2], "torchvision", "swiglu", "relpos", "resnet", "se and silu"])
def test_libragrad_of_fullgrad_is_complete(
    kind: str, build: Build, images_of: Images, other: Callable[[str], tuple[nn.Module, Tensor]]
) -> None:
    model, x = other(kind) if kind in OTHERS else (build(kind), images_of(kind))
    found = explain(model, x, [0, 3], "libragrad", base="fullgrad")
    assert found.extras["residual"].abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["swiglu", "eva02", "dinov3", "beit", "relpos", "swin", "convnext"])
def test_other_families_are_affine_too(kind: str, other: Callable[[str], tuple[nn.Module, Tensor]]) -> None:
    from lidc_xai.explain.networks.changed_backward import LIBRA, ChangedBackward

    model, x = other(kind)
    found = explain(model, x, 2, "libragrad", base="input_x_gradient")
    frozen = model.requires_grad_(False)

    def run() -> Tensor:
        with ChangedBackward(LIBRA):
            return frozen(x)[0, 2]

    assert float(found.relevance.sum()) + bias_terms(model, run) == pytest.approx(float(found.values), abs=1e-10)


# --- attn_lrp against a backward pass written out by hand -------------------------------------------------------------


def norm_back(norm: Any, x: Tensor, g: Tensor) -> Tensor:
    if isinstance(norm, nn.Identity):
        return g
    sigma = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    g = g * norm.weight / sigma
    return g - g.mean(-1, keepdim=True)


def by_hand(model: Any, x: Tensor, start: Tensor) -> Tensor:
    """S (N,) of one image of a timm ViT whose head reads CLS: module by module, first forth, then back."""
    with torch.no_grad():
        e = model.patch_embed(x)
        z = model.norm_pre(model._pos_embed(e))[0]
        before_blocks = model._pos_embed(e)[0]
        kept = []
        for block in model.blocks:
            heads, t = block.attn.num_heads, block.norm1(z)
            q0, k0, v = block.attn.qkv(t).reshape(len(t), 3, heads, -1).permute(1, 2, 0, 3)
            q, k = block.attn.q_norm(q0), block.attn.k_norm(k0)
            a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            joined = (a @ v).transpose(0, 1).reshape(len(t), -1)
            middle = z + block.ls1(block.attn.proj(block.attn.norm(joined)))
            hidden = block.mlp.fc1(block.norm2(middle))
            kept.append((block, z, q0, k0, q, k, v, a, joined, middle, hidden))
            z = middle + block.ls2(block.mlp.fc2(block.mlp.act(hidden)))
        g = torch.zeros_like(z)
        g[0] = start @ model.head.weight
        g[0] = norm_back(model.fc_norm, model.norm(z)[0], g[0])
        g = norm_back(model.norm, z, g)
        for block, z, q0, k0, q, k, v, a, joined, middle, hidden in reversed(kept):
            branch = g * getattr(block.ls2, "gamma", 1.0) @ block.mlp.fc2.weight
            branch = branch * (block.mlp.act(hidden) / hidden) @ block.mlp.fc1.weight
            g = g + norm_back(block.norm2, middle, branch)
            g_o = g * getattr(block.ls1, "gamma", 1.0) @ block.attn.proj.weight
            g_o = norm_back(block.attn.norm, joined, g_o).reshape(len(z), len(a), -1).transpose(0, 1)
            g_a, g_v = g_o @ v.mT / 2, a.mT @ g_o / 2
            g_s = a * (g_a - (g_a * a).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
            g_q, g_k = norm_back(block.attn.q_norm, q0, g_s @ k / 2), norm_back(block.attn.k_norm, k0, g_s.mT @ q / 2)
            g_qkv = torch.stack([g_q, g_k, g_v]).permute(2, 0, 1, 3).reshape(len(z), -1)
            g = g + norm_back(block.norm1, z, g_qkv @ block.attn.qkv.weight)
        g = norm_back(model.norm_pre, before_blocks, g)
        return (e[0] * g[model.num_prefix_tokens :]).sum(-1)


@pytest.mark.parametrize("kind", ["plain", "registers", "layer scale", "norm behind pooling", "q/k-norm"])
def test_attn_lrp_is_the_backward_pass_written_out(kind: str, build: Build, images_of: Images) -> None:
    model, x = build(kind), images_of(kind)
    found = explain(model, x, [1, MeanContrast(3)], "attn_lrp")
    starts = [torch.eye(5)[1], torch.full((5,), -0.25) + 1.25 * torch.eye(5)[3]]
    for b in range(len(x)):
        for t, start in enumerate(starts):
            expected = by_hand(model, x[b : b + 1], start.double())
            assert torch.allclose(found.relevance[b, t].flatten(), expected, atol=1e-10)


def test_libragrad_is_attn_lrp_with_constant_attention(build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    expected = explain(model, x, 1, "attn_lrp", attention="detach").relevance
    assert torch.equal(explain(model, x, 1, "libragrad").relevance, expected)
    assert torch.equal(explain(model, x, 1, "token_input_x_gradient", backward="libra").relevance, expected)


@pytest.mark.parametrize("base", ["token_input_x_gradient", "input_x_gradient", "fullgrad", "gradcam", "cdam"])
def test_libragrad_runs_the_named_method_with_its_backward_pass(base: str, build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    found = explain(model, x, [1, 2], "libragrad", base=base).relevance
    assert torch.equal(found, explain(model, x, [1, 2], base, backward="libra").relevance)
    assert not torch.allclose(found, explain(model, x, [1, 2], base).relevance, rtol=0.01)


def test_cdam_with_constant_attention_has_its_value_path_alone(build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    options = {"backward": "libra"}
    whole = explain(model, x, 1, "cdam", **options).relevance
    assert torch.allclose(explain(model, x, 1, "cdam", parts="value", **options).relevance, whole, atol=1e-12)
    assert not explain(model, x, 1, "cdam", parts="key", **options).relevance.any()
    with pytest.raises(UsageError, match="holds for the plain gradient"):
        explain(model, x, 1, "cdam", engine="exact", **options)


def test_token_input_x_gradient_is_embedding_times_gradient(build: Build, images_of: Images) -> None:
    model: Any = build("registers")
    x = images_of("registers")[:1]
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    found = explain(model, x, 1, "token_input_x_gradient").relevance
    model.patch_embed.register_forward_hook(keep)
    model(x)[0, 1].backward()
    assert torch.allclose(found.flatten(), (embedded[0] * embedded[0].grad).sum(-1).flatten(), atol=1e-12)


def test_piecewise_linear_networks_keep_their_gradient() -> None:
    """ReLU, batch norm, convolutions: with γ = 0 there is nothing to change."""
    model = randomise(timm.create_model("resnet10t", num_classes=5))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = explain(model, x, 1, "input_x_gradient").relevance
    for options in ({}, {"attention": "detach"}, {"at": "pixels"}):
        assert torch.allclose(explain(model, x, 1, "attn_lrp", **options).relevance, expected, atol=1e-12)


# --- γ ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_gamma_of_a_linear_layer_is_zennits(bias: bool) -> None:
    rules = pytest.importorskip("zennit.rules")
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 5, bias=bias).double(), torch.randn(4, 7, dtype=torch.float64)
    check_gamma(rules, layer, x, lambda v: gamma_linear(v, layer.weight, layer.bias, 0.4))


@pytest.mark.parametrize("how", [{}, {"stride": 2, "padding": 1}, {"groups": 3, "dilation": 2, "padding": 2}])
def test_gamma_of_a_convolution_is_zennits(how: dict[str, int]) -> None:
    rules = pytest.importorskip("zennit.rules")
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 6, 3, **how).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    check_gamma(rules, layer, x, lambda v: gamma_conv2d(v, layer.weight, layer.bias, 0.4, **how))


def check_gamma(rules: Any, layer: nn.Module, x: Tensor, ours: Callable[[Tensor], Tensor]) -> None:
    start = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x.clone().requires_grad_()
    y = ours(x)
    assert torch.allclose(y, layer(x), atol=1e-12)
    (slope,) = torch.autograd.grad(y, x, start)
    handle = rules.Gamma(0.4, stabilizer=1e-14).register(layer)
    (expected,) = torch.autograd.grad(layer(x), x, start * y.detach())  # zennit's gradients are relevances
    handle.remove()
    assert torch.allclose(x.detach() * slope, expected, atol=1e-10)


def test_gamma_zero_is_the_plain_gradient_and_more_gamma_less_of_it() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gamma_linear(x, weight, bias, 0.0).sum(), x)
    assert torch.allclose(slope, weight.sum(0).expand_as(x), atol=1e-12)


# --- layer scale -----------------------------------------------------------------------------------------------------


def fold(model: nn.Module) -> nn.Module:
    """The same model with its layer scales inside the weights before them."""
    model = deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            for scale, layer in ((block.ls1, block.attn.proj), (block.ls2, block.mlp.fc2)):
                layer.weight.mul_(scale.gamma.unsqueeze(1))
                layer.bias.mul_(scale.gamma)
            block.ls1 = block.ls2 = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("attn_lrp", {}),
        ("attn_lrp", {"gamma_linear": 0.05, "gamma_conv": 0.25, "at": "pixels"}),
        ("libragrad", {}),
        ("libragrad", {"base": "cdam"}),
        ("legrad", {}),
        ("partial_lrp", {}),
        ("partial_lrp", {"rule": "separate"}),
        ("transformer_attribution", {}),
        ("relevance_propagation", {}),
        ("cdam", {}),
    ],
)
def test_a_layer_scale_may_be_folded_into_the_weights(
    method: str, options: dict[str, Any], build: Build, images_of: Images
) -> None:
    model, x = build("layer scale"), images_of("layer scale")
    assert model.blocks[0].ls1.gamma.min() < 0 < model.blocks[0].ls1.gamma.max()
    folded = fold(model)
    expected, found = (explain(m, x, [1, LogOdds(2)], method, **options).relevance for m in (model, folded))
    assert torch.allclose(found, expected, atol=1e-8 * float(expected.abs().max()))


# --- LeGrad ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["plain", "registers", "layer scale", "q/k-norm", "mean", "mean without CLS", "torchvision"]
)
def test_legrad_is_the_mean_of_every_blocks_positive_gradients(
    kind: str, build: Build, images_of: Images, naive: Callable[[nn.Module, Tensor], Any], concept: Tensor
) -> None:
    """Reference: the model cut behind block l, its attention spelled out, one backward pass for each block."""
    model, x = build(kind), images_of(kind)
    found = explain(model, x, [1, MeanContrast(2), ConceptSimilarity(concept)], "legrad").relevance
    depth = len(model.encoder.layers if kind == "torchvision" else model.blocks)
    scores: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda y, v: y[1],
        lambda y, v: y[2] - y[[0, 1, 3, 4]].mean(),
        lambda y, v: v @ concept,
    ]
    for t, score in enumerate(scores):
        total = torch.zeros(())
        for number in range(depth):
            short: Any = deepcopy(model)
            if kind == "torchvision":
                short.encoder.layers = short.encoder.layers[: number + 1]
            else:
                short.blocks = short.blocks[: number + 1]
            slopes = [g for _, g in naive(short, x).attention_and_gradient(x[:1], score)]
            total = total + slopes[-1].clamp(min=0).mean(0).mean(0)
        expected = naive(deepcopy(model), x).map(total / depth)
        assert torch.allclose(found[0, t], expected, atol=1e-12)


# --- what is refused -------------------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


class Between(nn.Module):
    """A network with one operation of one's own in its middle."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)).mean((-2, -1)))


def in_place(x: Tensor) -> Tensor:
    """Reads what an in-place activation has changed."""
    return F.silu(x, inplace=True) + x


@pytest.mark.parametrize(
    ("operation", "method", "words"),
    [
        (Cube.apply, "attn_lrp", "Cube has no rule"),
        (torch.exp, "libragrad", "Exp has no rule"),
        (lambda x: x.square(), "attn_lrp", "Pow has no rule"),
        (lambda x: x / (1 + x.mean()), "attn_lrp", "divides by what it computed"),
        (lambda x: x * x.flip(-1), "libragrad", "neither is a gate"),
        (in_place, "attn_lrp", "outputs differ by"),
    ],
)
def test_an_operation_without_a_rule_is_named(operation: Any, method: str, words: str) -> None:
    torch.manual_seed(0)
    model, x = Between(operation).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(ModelError, match=words):
        explain(model, x, 1, method)


def test_activations_spelled_out_are_activations() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    spelled = [lambda v: v * v.sigmoid(), lambda v: torch.sigmoid(v) * v, lambda v: v.mul(v.sigmoid())]
    model = Between(F.silu).eval()
    for attention in ("uniform", "detach"):
        model.operation = F.silu
        expected = explain(model, x, 1, "attn_lrp", attention=attention).relevance
        for operation in spelled:
            model.operation = operation
            found = explain(model, x, 1, "attn_lrp", attention=attention).relevance
            assert torch.allclose(found, expected, atol=1e-7)


def test_options_are_checked(build: Build, images_of: Images) -> None:
    model, x = build("plain"), images_of("plain")
    with pytest.raises(UsageError, match="gamma_linear is a number from 0"):
        explain(model, x, 1, "attn_lrp", gamma_linear=-0.1)
    with pytest.raises(UsageError, match="base='fullgrad' has no option 'layer'"):
        explain(model, x, 1, "libragrad", base="fullgrad", layer=0)
    cnn = timm.create_model("resnet10t", num_classes=5)
    assert "token_input_x_gradient" not in list_methods(cnn)
    assert "has no patch embedding" in refusals(cnn)["token_input_x_gradient"]
    with pytest.raises(ModelError, match="needs a Vision Transformer's tokens"):
        explain(cnn, torch.randn(1, 3, 64, 64), 1, "libragrad", base="cdam")


LXT = """
import sys, torch, torchvision
from torchvision.models import vision_transformer
from lxt.efficient import monkey_patch
torch.manual_seed(0)
model = torchvision.models.VisionTransformer(32, 8, 3, 3, 24, 48, num_classes=5)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
model = model.double().eval()
x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
from lidc_xai.explain import explain
ours = explain(model, x, 1, "attn_lrp", attention="detach", at="pixels").relevance[0, 0]
monkey_patch(vision_transformer, verbose=False)
x = x.requires_grad_()
model(x)[0, 1].backward()
theirs = (x * x.grad).sum(1)[0].detach()
print(float((ours - theirs).abs().max() / theirs.abs().max()))
"""


def test_with_constant_attention_it_is_lxts() -> None:
    """lxt's rules for torchvision's ViT. It patches the library's classes: a process of its own."""
    pytest.importorskip("lxt.efficient", exc_type=ImportError)  # needs transformers 4
    ran = subprocess.run([sys.executable, "-c", LXT], capture_output=True, text=True, check=True)
    assert float(ran.stdout.split()[-1]) < 1e-6
