"""One table of all methods: what each is, what it needs, its options with their defaults, and where its formula lives.

Torch-free: the command line, the documentation and the checks of ``explain`` read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from lidc_xai.errors import UsageError


@dataclass(frozen=True)
class Option:
    """An option: its default, what it may be ("count", "integer", "number", "flag", "any" or a tuple of words)."""

    default: Any
    kind: str | tuple[str, ...]
    words: str

    def check(self, name: str, value: Any) -> None:
        """``UsageError`` where ``value`` is not one that this option can take."""
        if value is None and self.default is None:
            return
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        fits = {
            "count": whole and value >= 1,
            "integer": whole,
            "number": isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0,
            "flag": isinstance(value, bool),
            "any": True,
        }
        if isinstance(self.kind, tuple):
            if value not in self.kind:
                raise UsageError(f"option {name} is one of {', '.join(map(repr, self.kind))}, not {value!r}")
        elif not fits[self.kind]:
            wanted = {"count": "a whole number from 1", "integer": "a whole number", "number": "a number from 0"}
            raise UsageError(f"option {name} is {wanted.get(self.kind, 'True or False')}, not {value!r}")


@dataclass(frozen=True)
class Method:
    """A method. ``needs``: what a model must have (``lidc_xai.explain.abilities`` decides).

    ``where``: "module:function" in this room. ``per_image``: its passes keep gradients or copies, so that the images
    are explained ``max_batch`` at a time. ``target``: what a bare index means to it.
    """

    name: str
    family: str
    summary: str
    needs: str
    where: str
    options: Mapping[str, Option] = field(default_factory=dict)
    per_image: bool = True
    target: str = "Logit"


MAX_BATCH = Option(8, "count", "images, or copies of an image, in one pass")
MATRICES = Option(2, "count", "images in one pass, which keeps every attention matrix and its gradient")
SEED = Option(0, "integer", "seed of the noise; the same seed gives every image the same draws")
ENGINE = Option(
    "auto",
    ("auto", "exact", "autograd"),
    "closed form, automatic differentiation, or the closed form where the model allows it",
)
VIT_LAYER = Option(-1, "integer", "block, negative from the end")
CAM_LAYER = Option(
    None, "any", "ViT: block (default −1); any model: a module or its dotted name (CNN: last convolution)"
)
RELU = Option(False, "flag", "keep the positive part only, as the papers do")
TOKENS = Option("norm1", ("norm1", "block_input"), "tokens: normalised (the paper's) or as they enter the block")
PER_HEAD = Option(False, "flag", "give every head's share as well, in extras")
START = Option(0, "integer", "first block of the product")
DISCARD = Option(0.0, "number", "share of the lowest attention entries set to 0 (CLS to CLS is kept)")
STABILISER = Option(
    0.1, "number", "levels the shares of two terms of a sum out where they cancel; 0: a/(a + b), as the papers have it"
)
SAMPLES = Option(50, "count", "noisy copies")
STEPS = Option(50, "count", "points of the integral")
BACKWARD = Option("plain", ("plain", "libra"), "the gradient, or LibraGrad's: gates and norms are constants")
CDAM: dict[str, Any] = {"tokens": TOKENS, "layer": VIT_LAYER, "backward": BACKWARD, "engine": ENGINE}
RULE = ("right", "left", "midpoint", "trapezoid", "gauss-legendre")


def _method(
    name: str, family: str, needs: str, module: str, summary: str, *, per_image: bool = True, target: str = "Logit",
    **options: Option,
) -> Method:  # fmt: skip
    return Method(name, family, summary, needs, f"{module}:{name}", options, per_image, target)


def _cam(name: str, summary: str, needs: str = "layer", **options: Option) -> Method:
    shared: dict[str, Any] = {"layer": CAM_LAYER, "relu": RELU, "backward": BACKWARD, "max_batch": MAX_BATCH}
    return _method(name, "cam", needs, "pixels.cam", summary, **shared | options)


_METHODS = (
    _method(
        "attention",
        "attention",
        "attention",
        "tokens.attention",
        "attention of the CLS token to the patches in the last block",
        per_image=False,
        per_head=PER_HEAD,
        layer=VIT_LAYER,
    ),
    _method(
        "attention_rollout",
        "attention",
        "all_attention",
        "tokens.attention",
        "product of the attention matrices with the identity added, over all blocks",
        discard_ratio=DISCARD,
        fusion=Option("mean", ("mean", "max", "min"), "how heads are joined"),
        start_layer=START,
        max_batch=MAX_BATCH,
    ),
    _method(
        "gradient_rollout",
        "attention",
        "all_attention",
        "tokens.attention",
        "attention rollout weighted by the target's gradient, aligned by layer",
        discard_ratio=DISCARD,
        clamp=Option(True, "flag", "drop negative entries and normalise rows; False: signed, not normalised"),
        start_layer=START,
        max_batch=MATRICES,
    ),
    _method(
        "cdam",
        "cdam",
        "tokens",
        "tokens.cdam",
        "class-discriminative attention map: tokens times gradient at the last block's normalised tokens",
        per_image=False,
        parts=Option(None, "any", "of ('value', 'key', 'query'), the paths through attention; None: all"),
        per_head=PER_HEAD,
        **CDAM,
    ),
    _method(
        "smooth_cdam",
        "cdam",
        "tokens",
        "tokens.cdam",
        "mean CDAM over noisy tokens",
        per_image=False,
        samples=SAMPLES,
        sigma=Option(0.15, "number", "standard deviation of the noise"),
        relative=Option(True, "flag", "sigma in units of the tokens' standard deviation (per image)"),
        alteration=Option("gaussian", ("gaussian", "mask", "feature"), "noise, tokens set to 0, or channels scaled"),
        seed=SEED,
        **CDAM,
        max_batch=MAX_BATCH,
    ),
    _method(
        "integrated_cdam",
        "cdam",
        "tokens",
        "tokens.cdam",
        "tokens times their mean gradient on the line from zero tokens",
        per_image=False,
        steps=STEPS,
        rule=Option("right", RULE, "quadrature"),
        **CDAM,
        max_batch=MAX_BATCH,
    ),
    _method(
        "relevance_propagation",
        "attention",
        "all_attention",
        "tokens.attention",
        "R ← R + Ā R with Ā the mean over heads of the positive attention times gradient (ICCV 2021)",
        max_batch=MATRICES,
    ),
    _method(
        "transformer_attribution",
        "lrp",
        "lrp",
        "tokens.lrp",
        "attention gradients times LRP relevance of the attention, multiplied over blocks (CVPR 2021)",
        start_layer=START,
        stabiliser=STABILISER,
        max_batch=MATRICES,
    ),
    _method(
        "partial_lrp",
        "lrp",
        "lrp_last",
        "tokens.lrp",
        "LRP (α = 1, β = 0) from the output to the last block's attention matrix",
        per_image=False,
        rule=Option("joint", ("joint", "separate"), "one denominator, which conserves, or the public code's two"),
        stabiliser=STABILISER,
    ),
    _method(
        "saliency",
        "gradient",
        "any",
        "pixels.gradients",
        "gradient towards the pixels",
        reduce=Option("sum", ("sum", "abs_sum", "max_abs"), "over channels"),
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "input_x_gradient",
        "gradient",
        "any",
        "pixels.gradients",
        "pixel times gradient, in the normalised input space",
        reduce=Option("sum", ("sum", "abs_sum"), "over channels"),
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "smoothgrad",
        "gradient",
        "any",
        "pixels.gradients",
        "mean gradient over noisy images",
        samples=SAMPLES,
        sigma=Option(0.15, "number", "standard deviation of the noise"),
        relative=Option(True, "flag", "sigma in units of the image's max − min"),
        seed=SEED,
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "integrated_gradients",
        "gradient",
        "any",
        "pixels.gradients",
        "pixel times mean gradient on the line from a baseline",
        steps=STEPS,
        rule=Option("gauss-legendre", RULE, "quadrature"),
        baseline=Option(
            None, "any", "None or 'zero': zeros in normalised space; 'black'; or an image (C,H,W), (B,C,H,W)"
        ),
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "token_input_x_gradient",
        "gradient",
        "embedding",
        "tokens.token_gradient",
        "patch embedding (before positions) times gradient",
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "attn_lrp",
        "lrp",
        "any",
        "tokens.token_gradient",
        "AttnLRP: input times gradient of a backward pass by LRP rules (ICML 2024)",
        attention=Option("uniform", ("uniform", "detach"), "products share out by halves, or attention is constant"),
        gamma_linear=Option(0.0, "number", "γ of linear layers; 0: plain gradient"),
        gamma_conv=Option(0.0, "number", "γ of convolutions; 0: plain gradient"),
        at=Option("tokens", ("tokens", "pixels"), "map of the patch embedding (a CNN has none: pixels), or of pixels"),
        max_batch=MAX_BATCH,
    ),
    _method(
        "libragrad",
        "gradient",
        "any",
        "tokens.token_gradient",
        "a gradient method with attention, gates and norms as constants (CVPR 2025)",
        base=Option(
            "token_input_x_gradient",
            ("token_input_x_gradient", "input_x_gradient", "fullgrad", "gradcam", "cdam"),
            "the method (a CNN has no tokens: input_x_gradient)",
        ),
        layer=Option(None, "any", "of gradcam and cdam; None: their own default"),
        relu=RELU,
        max_batch=MAX_BATCH,
    ),
    _method(
        "legrad",
        "attention",
        "all_attention",
        "tokens.legrad",
        "positive gradient of every block's own score towards its attention (ICCV 2025)",
        max_batch=MATRICES,
    ),
    _cam("gradcam", "activations weighted by their mean gradient", engine=ENGINE),
    _cam("gradcam_plus_plus", "GradCAM with the weights of Chattopadhay et al. 2018", needs="cnn"),
    _cam("xgradcam", "GradCAM with weights Σ gA / Σ|A|", engine=ENGINE),
    _method(
        "rsi_gradcam",
        "cam",
        "cnn",
        "pixels.rsi_gradcam",
        "GradCAM with gradients integrated along the activations of a path from black",
        target="Probability",
        layer=CAM_LAYER,
        steps=STEPS,
        relu=RELU,
        positive_gradients=Option(False, "flag", "rectify the gradients before summing, as the public notebook"),
        baseline=Option(None, "any", "None or 'black': a black image; 'zero'; or an image (C,H,W), (B,C,H,W)"),
        max_batch=MAX_BATCH,
    ),
    _cam("linear_approximation", "activations times gradients, element by element", engine=ENGINE),
    _method(
        "fullgrad",
        "gradient",
        "fullgrad",
        "pixels.fullgrad",
        "input times gradient plus every bias times its gradient",
        post=Option(None, ("abs_minmax",), "the public code's scaling; None: raw sums, which are complete"),
        backward=BACKWARD,
        max_batch=MAX_BATCH,
    ),
    _method(
        "reciprocam",
        "occlusion",
        "reciprocam",
        "tokens.reciprocam",
        "class probability with only one token's neighbourhood kept in the last block",
        per_image=False,
        target="Probability",
        kernel=Option("gaussian", ("gaussian", "dirac"), "3×3 Gaussian, or the token alone"),
        cls=Option(True, "flag", "keep the CLS token in the masked block"),
        tokens=Option(
            "norm1", ("norm1", "block_input"), "masked: normalised tokens (the paper's), or what enters the block"
        ),
        layer=VIT_LAYER,
        engine=ENGINE,
        max_batch=MAX_BATCH,
    ),
    _method(
        "token_ablation",
        "occlusion",
        "ablation",
        "tokens.token_ablation",
        "f(x) − f(x without the token)",
        per_image=False,
        at=Option("input", ("input", "last"), "removed before the first block, or from the last one's keys"),
        max_batch=MAX_BATCH,
    ),
    _method(
        "random",
        "baseline",
        "none",
        "random",
        "standard normal noise, the same for one image and seed",
        per_image=False,
        seed=SEED,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


def find_method(name: str) -> Method:
    """The table's row; ``UsageError`` with the nearest name, or all of them, where there is none."""
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(str(name), METHODS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(METHODS)}"
    raise UsageError(f"unknown method {name!r}; {hint}")


def method_options(methods: Sequence[Method], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each method's options with defaults filled in. Asked together, a method takes those options that it has.

    ``TypeError`` for an option that none of them has, listing the valid ones; ``UsageError`` for a wrong value.
    """
    valid = list(dict.fromkeys(name for method in methods for name in method.options))
    for name in given:
        if name not in valid:
            who = methods[0].name if len(methods) == 1 else "none of these methods"
            verb = "has no" if len(methods) == 1 else "has an"
            raise TypeError(f"{who} {verb} option {name!r}; valid options: {', '.join(valid) or 'none'}")
    filled = []
    for method in methods:
        options = {name: given.get(name, option.default) for name, option in method.options.items()}
        for name, value in options.items():
            method.options[name].check(name, value)
        filled.append(options)
    return filled


def options_table() -> str:
    """The methods with their options, defaults and meaning as a Markdown table (docs/explain.md holds it)."""
    lines = ["| method | option | default | meaning |", "|---|---|---|---|"]
    for method in METHODS.values():
        name = f"**{method.name}**<br>{method.summary}"
        for option, row in method.options.items() or [("", None)]:
            default = "" if row is None else f"`{row.default!r}`"
            words = "" if row is None else row.words
            if row is not None and isinstance(row.kind, tuple):
                words += ": " + ", ".join(f"`{choice!r}`" for choice in row.kind)
            cells = (name, f"`{option}`" if option else "", default, words.replace("|", "\\|"))
            lines.append("| " + " | ".join(cells) + " |")
            name = ""
    return "\n".join(lines)
