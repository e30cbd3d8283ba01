"""The model that the user has: hooked, patched, wrapped, in half precision, quantised. It is explained, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lidc_xai.errors import LidcXaiError, ModelError, UsageError
from lidc_xai.explain import explain, list_methods, refusals
from lidc_xai.explain.networks.alterations import alteration
from lidc_xai.explain.networks.wrappers import unwrapped

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.fixture
def vit() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def oracle(model: Any, x: Tensor, norm: nn.Module, column: int = 2) -> tuple[Tensor, Tensor]:
    """(CDAM, value) by a hook on the model as its user calls it."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output if output.requires_grad else output.requires_grad_())
        return seen[-1]

    handle = norm.register_forward_hook(keep)
    y = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(y[:, column].sum(), seen[-1])
    return (seen[-1] * g).sum(-1)[:, 1:].detach(), y[:, column].detach()


def _mask_heads(attn: Any) -> None:
    def forward(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        q, k, v = attn.qkv(t).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        o = ((q * attn.scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        o = o * torch.tensor([0.0, 1.0], dtype=t.dtype).view(1, -1, 1, 1)
        out: Tensor = attn.proj(o.transpose(1, 2).flatten(2))
        return out

    attn.forward = forward


CHANGES: dict[str, Callable[[Any], object]] = {
    "attention replaced": lambda m: _mask_heads(m.blocks[-1].attn),
    "attention of an earlier block replaced": lambda m: _mask_heads(m.blocks[0].attn),
    "block's output hooked": lambda m: m.blocks[-1].register_forward_hook(lambda mod, i, o: o + o.roll(2, -1)),
    "attention's output hooked": lambda m: m.blocks[-1].attn.register_forward_hook(lambda mod, i, o: o + o.roll(1, -1)),
    "norm1 hooked": lambda m: m.blocks[-1].norm1.register_forward_hook(lambda mod, i, o: o * 2),
    "block's input hooked": lambda m: m.blocks[1].register_forward_pre_hook(lambda mod, i: (i[0] * 2, *i[1:])),
    "head hooked": lambda m: m.head.register_forward_hook(lambda mod, i, o: o * 2),
    "model hooked": lambda m: m.register_forward_hook(lambda mod, i, o: o * 2 + 1),
    "forward replaced": lambda m: setattr(m, "forward", lambda z, f=m.forward: f(z) * 2 + 1),
    "blocks joined by the model's own way": lambda m: setattr(
        m, "forward_features", lambda x, f=m.forward_features, **k: f(x) + f(x.flip(-1))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_explained_as_it_is(change: str, vit: Any, images: Tensor) -> None:
    before = explain(vit, images, 2)
    assert before.engine == "exact"
    CHANGES[change](vit)
    if change == "blocks joined by the model's own way":
        with pytest.raises(ModelError, match=r"norm1 of block . runs several times"):
            explain(vit, images, 2)
        return
    want, value = oracle(vit, images, vit.blocks[-1].norm1)
    found = explain(vit, images, 2)
    assert found.engine == "autograd"
    assert torch.allclose(found.relevance[:, 0].flatten(1), want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.values[:, 0], value, rtol=1e-10)
    assert not torch.allclose(found.values, before.values)
    with pytest.raises(UsageError, match=r"engine='exact' has no closed form here: .*(hook|replace)"):
        explain(vit, images, 2, engine="exact")
    assert any(word in refusals(vit)["partial_lrp"] for word in ("hook", "replace"))


def test_a_model_is_compared_once_and_again_when_it_changes(vit: Any, images: Tensor) -> None:
    runs: list[int] = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is nn.functional.linear and args[1] is vit.blocks[-1].mlp.fc2.weight:
                runs.append(args[0].shape[1] if args[0].ndim == 3 else 1)
            return func(*args, **(kwargs or {}))

    def rows(count: int = 1) -> list[int]:
        runs.clear()
        with Count():
            for _ in range(count):
                explain(vit, images, 2)
        return [size for size in runs if size > 1]

    assert rows() == [17], "one whole pass of the last block"
    assert rows(3) == [], "and none afterwards: of the last block only CLS"
    handle = vit.blocks[0].register_forward_hook(lambda m, i, o: o * 2)
    assert rows() != []
    handle.remove()
    assert explain(vit, images, 2).engine == "exact"


def test_an_attribute_that_the_composition_does_not_know_is_noticed(images: Tensor) -> None:
    """A class of timm by name, whose blocks compute otherwise: seen by its outputs."""
    model: Any = timm.create_model("vit_tiny_patch16_224", **SMALL).double().eval()
    model.norm_pre = nn.Sequential(nn.LayerNorm(24).double(), nn.Tanh())
    assert explain(model, images, 2).engine == "exact", "a part that is called as a module is part of the composition"
    model.blocks[0].attn.scale = 3.0
    found = explain(model, images, 2)
    want, value = oracle(model, images, model.blocks[-1].norm1)
    assert torch.allclose(found.relevance[:, 0].flatten(1), want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.values[:, 0], value, rtol=1e-10)


def test_a_class_patched_for_the_whole_process_is_found_by_its_derivative(
    vit: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As public LRP code does: the outputs stay, the gradients do not."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            ctx.save_for_backward(weight)
            return nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return grads[0] * ctx.saved_tensors[0], None, None

    kind = type(vit.norm)
    owner = next(base for base in kind.__mro__ if "forward" in base.__dict__)
    plain = explain(vit, images, 2, "attention").relevance
    monkeypatch.setattr(owner, "forward", lambda self, x: Norm.apply(x, self.weight, self.bias))
    assert "was replaced for the whole process" in str(alteration(vit))
    for method in ("cdam", "saliency", "relevance_propagation"):
        with pytest.raises(
            ModelError, match=r"gradients of this model are not the derivatives .* was replaced for the"
        ):
            explain(vit, images, 2, method)
    assert torch.allclose(explain(vit, images, 2, "attention").relevance, plain, rtol=1e-6)
    monkeypatch.undo()
    assert alteration(vit) is None
    assert explain(vit, images, 2).engine == "exact"


# --- wrappers ---------------------------------------------------------------------------------------------------------


class OptimizedModule(nn.Module):
    __module__ = "torch._dynamo.eval_frame"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


class PeftModel(nn.Module):
    __module__ = "peft.peft_model"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = LoraModel(model)


class BaseTuner(nn.Module):
    __module__ = "peft.tuners.tuners_utils"


class LoraModel(BaseTuner):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def test_wrappers_are_looked_through_by_name(vit: Any, images: Tensor) -> None:
    from timm.utils import ModelEmaV3
    from torch.optim.swa_utils import AveragedModel

    expected = explain(vit, images, 2).relevance
    for wrap in (OptimizedModule, PeftModel, AveragedModel, ModelEmaV3, nn.DataParallel):
        wrapped = wrap(vit)
        assert type(unwrapped(wrapped)) is type(vit)
        assert torch.equal(explain(wrapped, images, 2).relevance, expected), wrap
    assert unwrapped(OptimizedModule(PeftModel(vit))) is vit


def test_an_adapter_in_the_last_block_is_part_of_the_model(vit: Any, images: Tensor) -> None:
    class Lora(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.a, self.b = base, nn.Linear(24, 2, bias=False), nn.Linear(2, 72, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.base(x) + self.b(self.a(x))
            return out

    vit.blocks[-1].attn.qkv = Lora(vit.blocks[-1].attn.qkv).double()
    want, value = oracle(vit, images, vit.blocks[-1].norm1)
    found = explain(PeftModel(vit), images, 2)
    assert torch.allclose(found.relevance[:, 0].flatten(1), want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.values[:, 0], value, rtol=1e-10)
    assert "Lora" in refusals(vit)["partial_lrp"]


# --- precision, quantisation, foreign exceptions ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32_and_says_so(vit: Any, images: Tensor, dtype: torch.dtype) -> None:
    half = copy.deepcopy(vit).to(dtype)
    before = {name: x.clone() for name, x in half.state_dict().items()}
    places = {name: x.data_ptr() for name, x in half.state_dict().items()}
    rounded = copy.deepcopy(half).float()
    for method in list_methods(half):
        found, expected = (explain(m, images.float(), 2, method) for m in (half, rounded))
        assert found.precision == "float32, from half-precision weights"
        assert expected.precision == "float32"
        assert torch.equal(found.relevance, expected.relevance), method
    for name, x in half.state_dict().items():
        assert x.dtype == before[name].dtype
        assert x.data_ptr() == places[name]
        assert torch.equal(x, before[name])


def test_quantised_and_scripted_models_are_one_line(vit: Any, images: Tensor) -> None:
    class QuantLinear(nn.Linear):
        __module__ = "torch.ao.nn.quantized.dynamic"

    other = copy.deepcopy(vit)
    other.head = QuantLinear(24, 5).double()
    with pytest.raises(ModelError, match=r"head is quantised \(torch.ao.nn.quantized.dynamic.QuantLinear\)"):
        explain(other, images, 2)
    whole = copy.deepcopy(vit)
    whole.head.weight = nn.Parameter(torch.zeros(5, 24, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"the weight head.weight is quantised \(int8\)"):
        explain(whole, images, 2)
    assert list_methods(other) == ["random"]


def test_no_foreign_exception_leaves_explain(vit: Any, images: Tensor) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            raise AttributeError("'NoneType' object has no attribute\n 'shape'")

    with pytest.raises(ModelError, match="Broken cannot run this way: AttributeError: 'NoneType' object has no attri"):
        explain(Broken(), images, 0, "saliency")
    assert list_methods(Broken()) == ["random"]
    for model in (vit, nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)).double()):
        for method in list_methods():
            with suppress(LidcXaiError):  # anything else is a failure
                explain(model, images, 1, method, **({"samples": 2} if "smooth" in method else {}))


# --- layers of the CAM family -----------------------------------------------------------------------------------------


def test_layers_that_say_nothing_about_where_are_refused_with_others(vit: Any, images: Tensor) -> None:
    with pytest.raises(ModelError, match=r"layer patch_embed cuts the image into patches.*there are .*blocks.2"):
        explain(vit, images, 1, "gradcam", layer="patch_embed")
    with pytest.raises(ModelError, match=r"layer head gives \(2, 5\), which is not on an image grid .* there are"):
        explain(vit, images, 1, "gradcam", layer="head")
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    with pytest.raises(ModelError, match=r"layer 3 gives \(2, 4, 1, 1\), .* of more than one cell.*there are 0, 1, 2"):
        explain(cnn, images, 1, "gradcam", layer="3")
    assert explain(cnn, images, 1, "gradcam").extras["layer"] == "2"


def test_legrad_through_the_models_own_modules_is_that_of_its_parts(vit: Any, images: Tensor) -> None:
    expected = explain(vit, images, 1, "legrad").relevance
    handle = vit.blocks[0].register_forward_hook(lambda module, inputs, output: None)
    found = explain(vit, images, 1, "legrad").relevance
    handle.remove()
    assert (found >= 0).all()
    torch.testing.assert_close(found, expected)
