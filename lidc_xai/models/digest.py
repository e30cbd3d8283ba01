"""What names a network: a hash over its weights, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

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
