"""Every family of Vision Transformers through its own modules, against hooks on the model as its user calls it.

The whole table is written by ``benchmarks/families.py``; a part of it runs here, with transformers' models where that
package is installed and look-alikes of their layout where it is not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from family_check.architectures import shake
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import describe_vit, explain, list_methods, refusals

HERE = (
    "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224", "beitv2_base_patch16_224",
    "naflexvit_base_patch16_gap", "vit_relpos_base_patch16_cls_224", "vit_pwee_patch16_reg1_gap_256",
    "samvit_base_patch16_224", "vit_base_patch16_rpn_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
SHARE = (
    "attention", "attention_rollout", "gradient_rollout", "relevance_propagation", "cdam", "integrated_cdam", "gradcam",
    "reciprocam", "token_ablation", "legrad", "saliency", "token_input_x_gradient", "libragrad", "attn_lrp",
)  # fmt: skip
SHARE_BY_BLOCK = {"legrad", "token_input_x_gradient", "libragrad", "relevance_propagation"}
"""Measured on every family whose blocks have one attention matrix."""


@pytest.mark.parametrize("entry", [e for e in families.ENTRIES if e.name in HERE], ids=lambda e: e.name)
def test_each_family_is_what_hooks_find(entry: Any) -> None:
    found = families.try_entry(entry, SHARE)
    assert not [f"{name}: {value}" for name, value in found.items() if families.is_fault(value)]
    measured = {name for name, value in found.items() if isinstance(value, float)}
    assert measured >= {"saliency", "gradcam"}
    assert not SHARE_BY_BLOCK - measured or entry.norm is None or not entry.attention
    assert ("cdam" in measured) == (entry.norm is not None and entry.name != "vit_base_patch16_rpn_224")


@pytest.mark.parametrize("entry", [e for e in families.ENTRIES if e.source == "transformers"], ids=lambda e: e.name)
def test_models_of_transformers_are_explained_as_they_are(entry: Any) -> None:
    pytest.importorskip("transformers")
    found = families.try_entry(entry, SHARE)
    assert not [f"{name}: {value}" for name, value in found.items() if families.is_fault(value)]


def test_a_name_of_no_architecture_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["--only=nobody"]) == 2
    assert "is part of no architecture's name" in capsys.readouterr().err


# --- look-alikes: the layout of a class that is known by name ---------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> tuple[Tensor, None]:
        q, k, v = (f(t).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        o = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(o.transpose(1, 2).flatten(2)), None


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = _Attention(width, 2), nn.Sequential(nn.Linear(width, 48), nn.GELU())
        self.down = nn.Linear(48, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states + self.attention(self.layernorm_before(hidden_states))[0]
        return x + self.down(self.mlp(self.layernorm_after(x)))


class ViTModel(nn.Module):
    """transformers' ViTModel by name and layout."""

    __module__ = "transformers.models.vit.modeling_vit"

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.config = SimpleNamespace(patch_size=8, image_size=32)
        self.embeddings = nn.Module()
        self.embeddings.patch_embeddings = nn.Conv2d(3, width, 8, 8)
        self.embeddings.patch_embeddings.patch_size = (8, 8)
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.layers = nn.ModuleList(_Layer(width) for _ in range(2))
        self.layernorm = nn.LayerNorm(width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.embeddings.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(patches), -1, -1), patches], 1) + self.positions
        for layer in self.layers:
            x = layer(hidden_states=x)
        return self.layernorm(x)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit, self.classifier = ViTModel(), nn.Linear(24, 3)
        self.config = SimpleNamespace(id2label={0: "cat", 1: "dog", 2: "boat"}, problem_type=None)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.vit(pixel_values)[:, 0]))


@pytest.fixture
def lookalike() -> Any:
    return shake(Classifier())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def hooked_cdam(model: nn.Module, norm: nn.Module, x: Tensor, column: int, prefix: int = 1) -> Tensor:
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output if output.requires_grad else output.requires_grad_())
        return seen[-1]

    handle = norm.register_forward_hook(keep)
    y = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(getattr(y, "logits", y)[:, column].sum(), seen[-1])
    return (seen[-1] * g).sum(-1)[:, prefix:].detach()


def test_targets_go_by_logits_and_labels(lookalike: Any, images: Tensor) -> None:
    found = explain(lookalike, images, "dog", ["cdam", "attention", "gradcam", "relevance_propagation"])
    assert found["cdam"].target_names == ("dog",)
    assert torch.allclose(found["cdam"].values[:, 0], lookalike(images).logits[:, 1], atol=1e-12)
    expected = hooked_cdam(lookalike, lookalike.vit.layers[-1].layernorm_before, images, 1)
    assert torch.allclose(found["cdam"].relevance[:, 0].flatten(1), expected, rtol=1e-10, atol=1e-13)
    assert all(result.relevance.shape == (2, 1, 4, 4) for result in found.values())
    with pytest.raises(UsageError, match="unknown output 'bird'; this model has cat, dog, boat"):
        explain(lookalike, images, "bird")


def test_a_model_without_a_head_is_told_so(images: Tensor) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViTModel()

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=self.vit(x))

    with pytest.raises(ModelError, match="it returned SimpleNamespace; take the class with a classification head"):
        explain(shake(Body()), images, 0)


# --- a class of one's own ---------------------------------------------------------------------------------------------


class Simple(nn.Module):
    """lucidrains' layout: pairs of modules in a list, the norm inside the attention, mean pooling."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(24), _Attention(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(self.norm(x))[0]
            return out

    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Conv2d(3, 24, 8, 8)
        feed = [nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.GELU()) for _ in range(2)]
        self.layers = nn.ModuleList(nn.ModuleList([Simple.Attention(), feed[i]]) for i in range(2))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_patch_embedding(x).flatten(2).transpose(1, 2)
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x) + x
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def test_a_vit_of_ones_own_is_described(images: Tensor) -> None:
    model: Any = shake(Simple())
    with pytest.raises(ModelError, match="Simple is not a Vision Transformer that is known here"):
        explain(model, images, 2)
    seen = describe_vit(model, blocks="layers", norm1="0.norm", prefix_tokens=0, grid=(4, 4))
    expected = hooked_cdam(model, model.layers[-1][0].norm, images, 2, prefix=0)
    found = explain(seen, images, 2, ["cdam", "attention", "attention_rollout", "gradcam", "relevance_propagation"])
    assert torch.allclose(found["cdam"].relevance[:, 0].flatten(1), expected, rtol=1e-10, atol=1e-13)
    q, k = (f(model.layers[-1][0].norm(_entering(model, images))) for f in _projections(model))
    q, k = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k))
    a = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1).mean((1, 2)).detach()
    assert torch.allclose(found["attention"].relevance[:, 0].flatten(1), a, rtol=1e-10)
    earlier = hooked_cdam(model, model.layers[0][0].norm, images, 2, prefix=0)
    assert torch.allclose(explain(seen, images, 2, layer=0).relevance[:, 0].flatten(1), earlier, rtol=1e-10, atol=1e-13)
    with pytest.raises(ModelError, match=r"block 1 .* is not called as a module, so that its input cannot be replaced"):
        explain(seen, images, 2, tokens="block_input")
    assert "reads patches" in refusals(seen)["reciprocam"]
    assert {"cdam", "attention", "legrad"} - set(list_methods(seen)) == {"legrad"}


def _projections(model: Any) -> tuple[nn.Module, nn.Module]:
    inner = model.layers[-1][0].inner
    return inner.query, inner.key


def _entering(model: Any, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.layers[-1][0].norm.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    model(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": "blocks"}, "Simple has no module 'blocks'; there are to_patch_embedding"),
        ({"norm1": "norm1"}, "ModuleList has no module 'norm1'"),
        ({"prefix_tokens": -1}, "prefix_tokens is a number from 0, not -1"),
        ({"blocks": [nn.Linear(2, 2)], "norm1": ""}, "must be modules of this Simple"),
        ({"blocks": []}, "holds no modules"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        describe_vit(Simple(), **{"blocks": "layers", "norm1": "0.norm", "grid": (4, 4), **options})


def test_a_grid_that_does_not_fit_is_said_with_the_tokens(images: Tensor) -> None:
    seen = describe_vit(shake(Simple()), blocks="layers", norm1="0.norm", grid=(5, 5))
    with pytest.raises(ModelError, match=r"gives \(2, 16, 24\); wanted 25 tokens for each of 2 images"):
        explain(seen, images, 2)
