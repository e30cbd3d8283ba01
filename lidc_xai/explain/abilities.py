"""What a model can do, and why it cannot do the rest: one sentence per refusal, naming the model's part."""

from __future__ import annotations

from torch import nn

from lidc_xai.explain.networks.embedding import tokens_before_positions
from lidc_xai.explain.networks.vit import Block, ViT, as_vit, not_a_vit
from lidc_xai.explain.registry import METHODS, Method
from lidc_xai.explain.tokens.lrp_rules import chain_refusal

_CNN_ALONE = {
    "gradcam_plus_plus": "it is defined for activations that are not negative (after a ReLU); on a ViT's tokens its "
    "denominators turn negative and the map has no meaning",
    "rsi_gradcam": "it needs a layer that nothing leads around, and a ViT's residual stream leads around norm1",
}


def list_methods(model: nn.Module | None = None) -> list[str]:
    """Names of all methods; with a ``model``, of those that it can do."""
    if model is None:
        return list(METHODS)
    vit = as_vit(model)
    return [name for name, method in METHODS.items() if why_not(model, method, vit) is None]


def refusals(model: nn.Module) -> dict[str, str]:
    """Every method that ``model`` cannot do, with the reason."""
    vit = as_vit(model)
    reasons = {name: why_not(model, method, vit) for name, method in METHODS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def why_not(model: nn.Module, method: Method, vit: ViT | None) -> str | None:
    """Why ``model`` (seen as ``vit``) cannot do ``method``, or None where it can."""
    if method.needs == "any":
        return None
    if method.needs in ("cnn", "layer", "fullgrad"):
        return _layer(model, method, vit)
    if method.needs == "embedding":
        return tokens_before_positions(model)
    if vit is None:
        return not_a_vit(model)
    last = vit.blocks[-1]
    if method.needs == "attention":
        return last.attention if isinstance(last.attention, str) else None
    if method.needs == "all_attention":
        return vit.no_attention
    if method.needs == "tokens":
        return last.not_plain
    if method.needs == "reciprocam":
        return last.not_plain or _reads_cls(vit, also=("distilled",))
    if method.needs == "lrp":
        return vit.no_attention or _reads_cls(vit) or _lrp(vit, vit.blocks)
    if method.needs == "lrp_last":
        return last.not_plain or _reads_cls(vit) or _lrp(vit, (last,))
    return None


def _layer(model: nn.Module, method: Method, vit: ViT | None) -> str | None:
    """Methods on a layer's activations: a convolution, or a ViT's plain block."""
    if vit is not None:
        if method.needs == "cnn":
            return _CNN_ALONE[method.name]
        return vit.blocks[-1].not_plain
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return f"{type(model).__name__} has no convolution"
    return None


def _reads_cls(vit: ViT, also: tuple[str, ...] = ()) -> str | None:
    if vit.reads in ("cls", *also):
        return None
    return f"it needs a head that reads the CLS token; this one reads {vit.reads}"


def _lrp(vit: ViT, blocks: tuple[Block, ...]) -> str | None:
    """LRP needs a rule for every layer on its way."""
    for block in blocks:
        if isinstance(block.attention, str):
            return block.attention
        if block.attention.gate is not None:
            return "LRP has no rule for an attention gate"
        for layer in (block.attention.project_in, block.attention.proj, block.mlp):
            reason = chain_refusal(layer) if isinstance(layer, nn.Module) else None
            if reason is not None:
                return reason
    return chain_refusal(vit.readout)
