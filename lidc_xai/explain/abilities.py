"""What a model can do, and why it cannot do the rest: one sentence per refusal, naming the model's part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import LidcXaiError, ModelError
from lidc_xai.explain.checks import check_outputs
from lidc_xai.explain.networks.alterations import quantised
from lidc_xai.explain.networks.attention_layer import AttentionLayer
from lidc_xai.explain.networks.changed_backward import LIBRA, Rules, with_backward
from lidc_xai.explain.networks.context import NO_OTHER_BLOCK, Pass
from lidc_xai.explain.networks.embedding import tokens_before_positions
from lidc_xai.explain.networks.families import find_anatomy
from lidc_xai.explain.networks.manners import borrowed, in_float32, one_line
from lidc_xai.explain.networks.parts import Parts
from lidc_xai.explain.networks.plain_model import plain_forward
from lidc_xai.explain.networks.wrappers import unwrapped
from lidc_xai.explain.pixels.cnn import find_map_layer
from lidc_xai.explain.pixels.fullgrad import why_no_fullgrad
from lidc_xai.explain.registry import METHODS, Method
from lidc_xai.explain.tokens.lrp_rules import chain_refusal
from lidc_xai.explain.tokens.recorded import why_no_matrix
from lidc_xai.explain.tokens.token_ablation import why_no_ablation

_CNN_ALONE = {
    "gradcam_plus_plus": "it is defined for activations that are not negative (after a ReLU); on a ViT's tokens its "
    "denominators turn negative and the map has no meaning",
    "rsi_gradcam": "it needs a layer that nothing leads around, and a ViT's residual stream leads around norm1",
}


_FORWARD = ("attention", "attention_rollout", "reciprocam", "token_ablation", "random")
"""Methods that differentiate nothing."""


def list_methods(model: nn.Module | None = None) -> list[str]:
    """Names of all methods; with a ``model``, of those that it can do (see ``refusals``).

    >>> from lidc_xai.explain import list_methods
    >>> "cdam" in list_methods()
    True
    """
    if model is None:
        return list(METHODS)
    no = refusals(model)
    return [name for name in METHODS if name not in no]


def refusals(model: nn.Module) -> dict[str, str]:
    """Every method that ``model`` cannot do, with the reason.

    The model runs a few times on one image of noise, of a size that it states or runs on (``pretrained_cfg``, its patch
    embedding, ``config.image_size``, else 224 to 32 pixels), and is left as found. A model that runs on none can do
    nothing but ``random``.

    >>> refusals(vit)["gradcam_plus_plus"].startswith("it is defined for activations that are not negative")
    True
    """
    try:
        with borrowed(model), in_float32(model), one_line(model):
            run = _trial(model)
            reasons = {name: why_not(method, run) for name, method in METHODS.items()}
            if reasons["fullgrad"] is None and run.parts is None:
                reasons["fullgrad"] = why_no_fullgrad(run)
            for name, rules in (("attn_lrp", Rules(detach=False)), ("libragrad", LIBRA)):
                reasons[name] = reasons[name] or _why_no_rules(run, rules)
    except LidcXaiError as error:
        return {name: str(error) for name in METHODS if name != "random"}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _why_no_rules(run: Pass, rules: Rules) -> str | None:
    """Why some operation of the model has no rule of a changed backward pass, or None."""
    image = run.images[:1].clone().requires_grad_()
    try:
        with_backward(rules, lambda: plain_forward(run.model, image))
    except ModelError as error:
        return str(error)
    return None


def _trial(model: nn.Module) -> Pass:
    """A pass over one image of seeded noise, which has run."""
    first: Exception | None = None
    for size in dict.fromkeys([*_stated_sizes(model), (224, 224), (64, 64), (32, 32)]):
        try:
            run = Pass(model, _noise(model, size))
            check_outputs(run.model, run.outputs.values)
            return run
        except Exception as error:  # of the model's own code: another size is tried, then the first error is told
            first = first or error
    assert first is not None
    raise first


def _noise(model: nn.Module, size: tuple[int, int]) -> Tensor:
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    shape = (1, 3 if stem is None else stem.in_channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)


def _stated_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Image sizes that a model or one of its modules states."""
    for module in unwrapped(model).modules():
        holders: list[tuple[Any, str]] = [(module, "img_size"), (module, "image_size")]
        holders += [(getattr(module, "config", None), "image_size"), (getattr(module, "preprocess", None), "size")]
        for holder, name in holders:
            size = getattr(holder, name, None)
            if isinstance(size, int) and not isinstance(size, bool):
                yield size, size
            elif isinstance(size, tuple | list) and len(size) >= 2 and all(isinstance(side, int) for side in size):
                yield int(size[-2]), int(size[-1])
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and config.get("input_size"):
            yield int(config["input_size"][-2]), int(config["input_size"][-1])


def why_not(method: Method, run: Pass) -> str | None:
    """Why the model of ``run`` cannot do ``method``, or None where it can."""
    if method.needs == "none":
        return None
    if run.facts.quantised is None:
        run.facts.quantised = quantised(run.model) or ""
    if run.facts.quantised:
        return run.facts.quantised
    try:
        if method.name not in _FORWARD:
            run.believe_gradients()
        return _why_not(method, run)
    except ModelError as error:
        return str(error)


def _why_not(method: Method, run: Pass) -> str | None:
    vit = run.vit
    if method.needs == "any":
        return None
    if method.needs in ("cnn", "layer"):
        return _layer(method, run)
    if method.needs == "fullgrad":
        known = vit is not None or any(isinstance(module, nn.Conv2d) for module in run.model.modules())
        return None if known else f"{type(run.model).__name__} has no convolution"
    if method.needs == "embedding":
        return tokens_before_positions(run.model)
    if vit is None:
        return str(find_anatomy(run.model))
    if vit.not_plain is not None:
        return vit.not_plain
    if method.needs == "attention":
        return why_no_matrix(run, vit.depth - 1)
    if method.needs == "all_attention":
        if method.name == "legrad" and run.parts is None and not run.skips:
            return NO_OTHER_BLOCK
        return next(filter(None, (why_no_matrix(run, layer) for layer in range(vit.depth))), None)
    if method.needs == "ablation":
        return why_no_ablation(run)
    if method.needs == "reciprocam":
        return _reads_cls(run, also=("distilled",))
    if method.needs == "lrp":
        return run.no_parts or _reads_cls(run) or _lrp(run, slice(None))
    if method.needs == "lrp_last":
        return run.no_parts or _reads_cls(run) or _lrp(run, slice(-1, None))
    return None


def _layer(method: Method, run: Pass) -> str | None:
    """Methods on a layer's activations: a convolution, or a ViT's plain block."""
    if run.vit is not None and method.needs == "cnn":
        return _CNN_ALONE[method.name]
    if run.vit is not None and run.vit.not_plain is None:
        return None
    find_map_layer(run, convolution=method.needs == "cnn")
    return None


def _reads_cls(run: Pass, also: tuple[str, ...] = ()) -> str | None:
    reads = run.reads
    return None if reads in ("cls", *also) else f"it needs a head that reads the CLS token; this one reads {reads}"


def _lrp(run: Pass, which: slice) -> str | None:
    """LRP needs a rule for every layer on its way."""
    parts = run.parts
    assert isinstance(parts, Parts)
    for block in parts.blocks[which]:
        if not isinstance(block.attention, AttentionLayer):
            return block.attention
        if block.attention.gate is not None:
            return "LRP has no rule for an attention gate"
        for layer in (block.attention.project_in, block.attention.proj, block.mlp):
            reason = chain_refusal(layer) if isinstance(layer, nn.Module) else None
            if reason is not None:
                return reason
    return chain_refusal(parts.readout)
