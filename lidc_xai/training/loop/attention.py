"""Which product computes attention while a ViT learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unfused_attention(model: nn.Module, unfused: bool) -> Iterator[None]:
    """timm's attention as two plain products inside, the fused one again afterwards; nothing where not ``unfused``.

    On CPUs PyTorch's fused attention goes backward in bfloat16 some 9 times slower than the two products do (91 against
    11 ms for 32 images of 65 tokens, one core), which made it 40 % of a step.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)] if unfused else []
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
