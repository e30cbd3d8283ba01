"""The one way in: several methods on one pass, options, bad input, what a model cannot do, and the result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import Explanation, Logit, explain, list_methods, refusals
from lidc_xai.explain.registry import METHODS, options_table


@contextmanager
def count_images(layer: Any, rows: int | None = None) -> Iterator[list[int]]:
    """How many images each call of a linear or convolution layer brings, without a hook on the model; how many rows of
    ``rows`` numbers, where that is given."""
    calls: list[int] = []

    class Count(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (nn.functional.linear, nn.functional.conv2d, torch.conv2d) and args[1] is layer.weight:
                calls.append(args[0].shape[0] if rows is None else args[0].numel() // rows)
            return func(*args, **(kwargs or {}))

    with Count():
        yield calls


LAST_BLOCK = ["cdam", "smooth_cdam", "integrated_cdam", "gradcam", "xgradcam", "reciprocam", "attention", "partial_lrp"]


def test_methods_asked_together_share_the_trunk_and_agree_with_themselves_alone(vit: Any, images: Tensor) -> None:
    quick = {"samples": 2, "steps": 2}
    explain(vit, images)  # once per model: what is composed here is compared with what the model gives
    with count_images(vit.blocks[0].mlp.fc1) as calls, count_images(vit.blocks[-1].mlp.fc1, rows=24) as last:
        together = explain(vit, images, [1, 2], LAST_BLOCK, **quick)
    assert calls == [len(images)]
    assert max(last) < 3 * 17, "of the last block only the CLS row is computed, of images or masked copies"
    assert list(together) == LAST_BLOCK
    for name, found in together.items():
        own = {option: value for option, value in quick.items() if option in METHODS[name].options}
        assert torch.allclose(found.relevance, explain(vit, images, [1, 2], name, **own).relevance, atol=1e-7)
        assert found.engine == "exact"


def test_images_explained_in_parts_are_explained_once(vit: Any, images: Tensor) -> None:
    expected = explain(vit, images, 1, ["gradcam", "cdam"])
    with count_images(vit.blocks[0].mlp.fc1) as calls:
        found = explain(vit, images, 1, ["gradcam", "cdam", "saliency"], max_batch=2)
    assert calls == [2, 1, 2, 1]
    for name, whole in expected.items():
        assert torch.allclose(found[name].relevance, whole.relevance, atol=1e-7)


def test_a_method_that_runs_the_model_with_gradients_needs_no_other_pass(vit: Any, images: Tensor) -> None:
    explain(vit, images)
    for method in ("relevance_propagation", "gradient_rollout", "saliency"):
        with count_images(vit.patch_embed.proj) as calls:
            explain(vit, images, None, method, max_batch=3)
        assert calls == [3]


@pytest.mark.parametrize("kind", ["plain", "hooked", "pooled"])
def test_a_process_first_batch_has_the_bits_of_its_second(vit: Any, images: Tensor, kind: str) -> None:
    """What is found out about a model on its first batch leaves no trace in that batch's maps and values: a run that
    was killed and goes on meets its images in another order."""
    if kind == "hooked":
        vit.blocks[-1].register_forward_hook(lambda module, inputs, output: output * 1.1)
    if kind == "pooled":
        vit.global_pool = "avg"
    for method in set(METHODS) - set(refusals(vit)):
        untouched = deepcopy(vit)
        first, second = (explain(untouched, images, [1, 2], method) for _ in range(2))
        assert torch.equal(first.relevance, second.relevance), method
        assert torch.equal(first.values, second.values), method


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("gradcam_plus_plus", "rsi_gradcam")])
def test_a_batch_is_what_its_images_are_one_by_one(vit: nn.Module, images: Tensor, method: str) -> None:
    classes = torch.tensor([[4, 1], [0, 2], [3, 3]])
    options = {name: 2 for name in ("samples", "steps") if name in METHODS[method].options}
    batch = explain(vit, images, classes, method, **options)
    parts = (
        explain(vit, images, classes, method, max_batch=2, **options)
        if "max_batch" in METHODS[method].options
        else batch
    )
    for b in range(3):
        one = explain(vit, images[b : b + 1], classes[b].tolist(), method, **options)
        for whole in (batch, parts):
            assert torch.allclose(whole.relevance[b], one.relevance[0], rtol=1e-4, atol=1e-6)
            assert torch.allclose(whole.values[b], one.values[0], atol=1e-6)
            for name, value in one.extras.items():
                if isinstance(value, Tensor):
                    assert torch.allclose(whole.extras[name][b], value[0], rtol=1e-3, atol=1e-5)


def test_the_result_says_what_it_is(vit: nn.Module, images: Tensor) -> None:
    found = explain(vit, images, [Logit(1), 2], "smooth_cdam", samples=2, sigma=0.3)
    assert found.relevance.shape == (3, 2, 4, 4)
    assert found.values.shape == found.columns.shape == (3, 2)
    assert found.target_names == ("1", "2")
    assert (found.method, found.engine, found.image_size) == ("smooth_cdam", "exact", (32, 32))
    assert found.options["sigma"] == 0.3
    assert found.options["samples"] == 2
    assert found.options["seed"] == 0
    pixels = found.to_pixels()
    assert pixels.shape == (3, 2, 32, 32)
    assert torch.equal(pixels, found.relevance.repeat_interleave(8, 2).repeat_interleave(8, 3))
    smooth = found.to_pixels("bilinear")
    assert smooth.shape == pixels.shape
    assert smooth.amax() <= pixels.amax()
    with pytest.raises(UsageError, match="mode is 'nearest' or 'bilinear', not 'cubic'"):
        found.to_pixels("cubic")
    pixel_map = explain(vit, images, 1, "saliency")
    assert pixel_map.to_pixels().shape == pixel_map.relevance.shape == (3, 1, 32, 32)


def test_a_padded_image_is_covered_by_more_than_itself() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5,
        dynamic_img_size=True, dynamic_img_pad=True,
    )  # fmt: skip
    found = explain(model, torch.randn(1, 3, 36, 50), 1)
    assert found.relevance.shape == (1, 1, 5, 7)
    assert found.covered == (40, 56)
    pixels = found.to_pixels()
    assert pixels.shape == (1, 1, 36, 50)
    rows, columns = (
        torch.arange(36) // 8,
        torch.arange(50) // 8,
    )  # the padding is on the right and below, and is cut off
    assert torch.equal(pixels, found.relevance[:, :, rows][..., columns])
    smooth = found.to_pixels("bilinear")
    assert smooth.shape == (1, 1, 36, 50)
    assert torch.equal(smooth[0, 0, 0, 0], found.relevance[0, 0, 0, 0])
    # Centres of tokens lie at 3.5, 11.5, … : pixel 11 is 7.5 of 8 beyond token 0's, pixel 12 0.5 beyond token 1's.
    for pixel, share in ((11, 7.5 / 8), (12, 0.5 / 8)):
        first, second = found.relevance[0, 0, pixel // 12, 0], found.relevance[0, 0, pixel // 12 + 1, 0]
        assert torch.allclose(smooth[0, 0, pixel, 0], (1 - share) * first + share * second, atol=1e-6)


@pytest.mark.parametrize(("patch", "size"), [(8, (36, 50)), (16, (40, 24))])
def test_to_pixels_changes_value_exactly_at_the_borders_of_tokens(patch: int, size: tuple[int, int]) -> None:
    """Pixels on both sides of every border, on an image that the model pads on the right and below."""
    rows, columns = -(-size[0] // patch), -(-size[1] // patch)
    relevance = torch.arange(float(rows * columns)).view(1, 1, rows, columns)
    covered = (rows * patch, columns * patch)
    pixels = Explanation(
        relevance, torch.zeros(1, 1), torch.zeros(1, 1), ("0",), "cdam", "exact", size, covered, {}
    ).to_pixels()[0, 0]
    assert tuple(pixels.shape) == size
    for r in range(patch, size[0], patch):
        assert (pixels[r - 1] == relevance[0, 0, r // patch - 1].repeat_interleave(patch)[: size[1]]).all()
        assert (pixels[r] == relevance[0, 0, r // patch].repeat_interleave(patch)[: size[1]]).all()
    for c in range(patch, size[1], patch):
        assert (pixels[:, c - 1] == relevance[0, 0, :, c // patch - 1].repeat_interleave(patch)[: size[0]]).all()
        assert (pixels[:, c] == relevance[0, 0, :, c // patch].repeat_interleave(patch)[: size[0]]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3}, "cdam has no option 'steps'; valid options: parts, per_head, tokens, layer, backward, engine"),
        ({"method": ["cdam", "attention"], "steps": 3}, "none of these methods has an option 'steps'; valid options: "),
        ({"method": "random", "relu": True}, "random has no option 'relu'; valid options: seed"),
    ],
)
def test_an_unknown_option_is_a_type_error_that_lists_the_valid_ones(
    vit: nn.Module, images: Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        explain(vit, images, 1, **options)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("cdamm", {}, "unknown method 'cdamm'; did you mean 'cdam'"),
        ("lime", {}, "unknown method 'lime'; there are attention, "),
        ("smooth_cdam", {"samples": 0}, "option samples is a whole number from 1, not 0"),
        ("smooth_cdam", {"samples": 2.5}, "option samples is a whole number from 1, not 2.5"),
        ("smooth_cdam", {"sigma": -1}, "option sigma is a number from 0, not -1"),
        ("smooth_cdam", {"seed": "a"}, "option seed is a whole number, not 'a'"),
        ("smooth_cdam", {"relative": 1}, "option relative is True or False, not 1"),
        ("cdam", {"engine": "fast"}, "option engine is one of 'auto', 'exact', 'autograd', not 'fast'"),
        ("cdam", {"layer": 7}, "layer 7 does not exist; this model has blocks 0 to 1"),
        ("cdam", {"layer": 0, "engine": "exact"}, "engine='exact' has no closed form here: it holds in the last block"),
        ("cdam", {"tokens": "block_input", "engine": "exact"}, "it holds for the normalised tokens"),
        ("cdam", {"tokens": "block_input", "parts": "key"}, "do not go with tokens='block_input'"),
        ("cdam", {"parts": "values"}, "parts are some of 'value', 'key', 'query'"),
        ("cdam", {"parts": ()}, "parts are some of"),
        ("integrated_cdam", {"rule": "simpson"}, "option rule is one of 'right', "),
        ("integrated_cdam", {"rule": "trapezoid", "steps": 1}, "rule 'trapezoid' needs more steps than 1"),
        ("attention_rollout", {"discard_ratio": 1.0}, r"discard_ratio lies in \[0, 1\), not 1.0"),
        ("attention_rollout", {"start_layer": 2}, "layer 2 does not exist"),
    ],
)
def test_a_wrong_value_is_one_line(
    vit: nn.Module, images: Tensor, method: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        explain(vit, images, 1, method, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.numpy(), r"images are a tensor \(B, C, H, W\), not ndarray"),
        (lambda x: x[0], r"images have the shape \(B, C, H, W\), not \(3, 32, 32\); add the batch axis"),
        (lambda x: x[:0], r"not \(0, 3, 32, 32\)"),
        (lambda x: (x * 99).to(torch.uint8), "images are uint8; wanted float, scaled and normalised"),
        (lambda x: x[:, :1], "images have 1 channels; this model wants 3"),
        (lambda x: x[..., :24], "images are 32 × 24 pixels; this model wants 32 × 32"),
        (lambda x: x.masked_fill(x > 2, torch.nan), r"images hold \d+ values that are NaN or infinite"),
        (lambda x: x.masked_fill(x > 2, torch.inf), r"images hold \d+ values that are NaN or infinite"),
    ],
)
def test_images_that_do_not_fit_are_refused(vit: nn.Module, images: Tensor, change: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain(vit, change(images), 1)


def test_images_that_look_unnormalised_are_warned_of(vit: nn.Module, images: Tensor) -> None:
    with pytest.warns(UserWarning, match="images reach 255: normalised images lie within a few units of 0"):
        explain(vit, images.clamp(-1, 1) * 127.5 + 127.5, 1)


@pytest.mark.parametrize("method", ["cdam", "saliency", "relevance_propagation", "random", "token_ablation"])
def test_nan_in_the_weights_is_named(vit: Any, images: Tensor, method: str) -> None:
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"the model's weight blocks.1.mlp.fc1.weight holds NaN"):
        explain(vit, images, 1, method)


def test_what_a_model_cannot_do_is_said_by_name(images: Tensor, cnn: nn.Module) -> None:
    assert {"cdam", "attention_rollout", "reciprocam"}.isdisjoint(list_methods(cnn))
    with pytest.raises(
        ModelError, match="cdam cannot explain this model: Sequential is not a Vision Transformer that is known here"
    ):
        explain(cnn, images, 1)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, num_classes=3)
    assert "SwinTransformer" in refusals(swin)["attention"]
    assert {"saliency", "gradcam"} <= set(list_methods(swin))


@pytest.mark.parametrize(
    ("options", "method", "words"),
    [
        ({"global_pool": "avg"}, "reciprocam", "needs a head that reads the CLS token; this one reads patches"),
        ({"global_pool": "avg"}, "partial_lrp", "needs a head that reads the CLS token"),
        ({"attn_layer": "diff"}, "attention", "its attention is DiffAttention, whose matrix is not a plain softmax"),
        ({"attn_layer": "diff"}, "partial_lrp", "its attention is DiffAttention"),
        ({"block_fn": timm.models.vision_transformer.ResPostBlock}, "cdam", "its blocks are ResPostBlock, not plain"),
        ({"global_pool": ""}, "cdam", "global_pool='' returns all tokens"),
    ],
)
def test_variants_of_vit_are_refused_where_the_definition_ends(
    images: Tensor, options: dict[str, Any], method: str, words: str
) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, **options
    )
    assert method not in list_methods(model)
    with pytest.raises(ModelError, match=words):
        explain(model, images, 1, method)


def test_attention_that_is_no_plain_softmax_goes_by_differentiation(images: Tensor) -> None:
    """CDAM needs norm1 alone: it equals a hook there, whatever the attention is."""
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5,
        attn_layer="diff",
    ).eval()  # fmt: skip
    found = explain(model, images, 1)
    assert found.engine == "autograd"
    kept: list[Tensor] = []
    model.blocks[1].norm1.register_forward_hook(lambda m, i, out: (out.retain_grad(), kept.append(out))[1])
    model(images)[:, 1].sum().backward()
    expected = (kept[0] * kept[0].grad).sum(-1)[:, 1:].reshape(3, 4, 4).detach()
    assert torch.allclose(found.relevance[:, 0], expected, atol=1e-6)


def test_a_subclass_with_another_way_through_is_not_mistaken(images: Tensor) -> None:
    class Doubled(timm.models.vision_transformer.VisionTransformer):
        def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            return 2 * super().forward_features(x)

    torch.manual_seed(0)
    model: Any = Doubled(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5).eval()
    with pytest.raises(UsageError, match=r"Doubled replaces VisionTransformer.forward_features"):
        explain(model, images, 1, engine="exact")
    found = explain(model, images, 1)
    assert found.engine == "autograd"
    assert torch.allclose(found.values[:, 0], model(images)[:, 1])
    kept: list[Tensor] = []
    model.blocks[1].norm1.register_forward_hook(lambda m, i, out: (out.retain_grad(), kept.append(out))[1])
    model(images)[:, 1].sum().backward()
    expected = (kept[0] * kept[0].grad).sum(-1)[:, 1:].reshape(3, 4, 4).detach()
    assert torch.allclose(found.relevance[:, 0], expected, atol=1e-7)


def test_outputs_that_are_no_table_are_refused(images: Tensor) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3)), x.amax((2, 3))

    with pytest.raises(ModelError, match=r"must return a tensor \(B, outputs\) for 3 images; it returned tuple"):
        explain(Two(), images, 0, "saliency")


def test_the_table_of_methods_needs_no_torch() -> None:
    code = (
        "import sys, lidc_xai.explain, lidc_xai.explain.registry as r; assert r.METHODS; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_table_and_the_functions_agree() -> None:
    from importlib import import_module
    from inspect import signature

    common = {"max_batch", "seed", "engine", "backward"}
    for name, method in METHODS.items():
        module, function = method.where.split(":")
        parameters = signature(getattr(import_module(f"lidc_xai.explain.{module}"), function)).parameters
        own = {parameter: value.default for parameter, value in parameters.items() if parameter != "context"}
        table = {option: row.default for option, row in method.options.items() if option not in common}
        assert own.keys() == table.keys(), name
        shared = {"layer"}  # the cam family's layer is None or -1 alike
        assert {k: v for k, v in own.items() if k not in shared} == {k: v for k, v in table.items() if k not in shared}


def test_the_documentation_holds_the_table_of_options() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "explain.md").read_text(encoding="utf-8")
    assert options_table() in page, "docs/explain.md is behind lidc_xai.explain.registry: write the table anew"
