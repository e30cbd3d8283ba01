"""What names a network: a hash over its weights, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lidc_xai.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def base_digest(backbone: nn.Module) -> str:
    """``tensors_digest`` of a backbone but for its positions, which are interpolated to the input size."""
    return tensors_digest({name: tensor for name, tensor in backbone.state_dict().items() if name != "pos_embed"})


def weights_digest(model: nn.Module) -> str:
    """``tensors_digest`` of all of a model's weights."""
    return tensors_digest(model.state_dict())


def check_different(digests: Sequence[str], names: Sequence[str] | None = None) -> None:
    """``UsageError`` where two models are one: a copy is not another training."""
    seen: dict[str, int] = {}
    for place, digest in enumerate(digests):
        first = seen.setdefault(digest, place)
        if first != place:
            a, b = ((names or [f"model {k + 1}" for k in range(len(digests))])[k] for k in (first, place))
            raise UsageError(
                f"{a} and {b} have the same weights (SHA-256 {digest[:8]}…): a copy is not another training, and would "
                "agree with itself; give it once"
            )
