"""Was every operation between the image and the outputs given a rule? Read off the graph that autograd recorded.

Functions that Python does not see (scripted code, an autograd function of the model's own) leave their node in the
graph all the same: what is not known here is refused by name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lidc_xai.errors import ModelError

_WORDS = """
    AccumulateGrad Add Sub Rsub Neg Sum Mean Cumsum View Reshape ReshapeAlias UnsafeView Transpose T Permute Expand
    Slice Select Index IndexSelect Gather Cat Stack Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Unbind Squeeze
    Unsqueeze Clone CopySlices CopyBackwards ToCopy Roll Flip Unfold ConstantPadNd ReflectionPad2D ReplicationPad2D Pad
    Convolution NativeBatchNorm CudnnBatchNorm AvgPool2D AdaptiveAvgPool2D AdaptiveMaxPool2D MaxPool2DWithIndices
    MaxPool2D UpsampleBilinear2D UpsampleNearest2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2DAa
    PixelShuffle PixelUnshuffle Im2Col Col2Im AsStrided Alias Where MaskedFill Repeat Movedim Relu LeakyRelu
    PreluKernel Threshold Amax Max Softmax Sigmoid Hardsigmoid ScaledDotProductFlashAttentionForCpu
    ScaledDotProductFlashAttention ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention LiftFresh Diagonal
    _Scaled _Secant _CentredNorm _LayerNorm _Gamma
"""
_KEPT = frozenset(_WORDS.split())
"""Operations whose own gradient is the rule: linear and piecewise linear ones, what was changed, and the softmaxes."""
_PRODUCTS = frozenset(("Mul", "Mm", "Bmm", "Addmm", "Baddbmm", "Linear", "Mv", "Dot", "Div", "Addcmul"))
_MARK = "lidc_xai: its factors were scaled"


def mark_product(output: Tensor) -> Tensor:
    """``output``, a product of tensors that went through ``backward_rules.scaled``: the nodes down to there are known.

    Attention without a fused kernel, for one, leaves a handful of them.
    """
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and _name(node) != "_Scaled" and _MARK not in node.metadata:
            node.metadata[_MARK] = True
            waiting += [behind for behind, _ in node.next_functions]
    return output


def refuse_unknown(outputs: Tensor) -> None:
    """``ModelError`` where the graph behind ``outputs`` holds an operation without a rule."""
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reason = _without_rule(node)
        if reason is not None:
            raise ModelError(f"there is no changed backward pass through this model: {reason}")
        waiting += [behind for behind, _ in node.next_functions]


def _name(node: Any) -> str:
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")


def _without_rule(node: Any) -> str | None:
    name = _name(node)
    if name in _KEPT or _MARK in node.metadata:
        return None
    if name not in _PRODUCTS:
        return f"{name} has no rule"
    first = 1 if name in ("Addcmul", "Addmm", "Baddbmm") else 0
    factors = [other for other, _ in node.next_functions[first : first + 2]]
    if name == "Div" and factors[-1] is not None and len(factors) == 2:
        return "it divides by what it computed from the image"
    return f"{name} multiplies two paths" if None not in factors and len(factors) == 2 else None
