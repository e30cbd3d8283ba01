"""ReciproCAM with what enters a block masked: the same as a network whose block is handed masked tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain import explain


@pytest.mark.parametrize("layer", [-1, 0])
def test_masked_block_input(layer: int, build: Callable[[str], Any], images_of: Callable[[str], Tensor]) -> None:
    model, x = build("plain"), images_of("plain")
    found = explain(model, x, 1, "reciprocam", kernel="dirac", tokens="block_input", layer=layer)
    block: nn.Module = model.blocks[layer]
    rows, columns = found.relevance.shape[-2:]
    for patch in (0, rows * columns - 1):

        def keep(module: nn.Module, inputs: Any, patch: int = patch) -> Any:
            mask = torch.zeros(inputs[0].shape[1], 1, dtype=x.dtype)
            mask[: model.num_prefix_tokens] = 1
            mask[model.num_prefix_tokens + patch] = 1
            return (inputs[0] * mask,)

        handle = block.register_forward_pre_hook(keep)
        with torch.no_grad():
            expected = model(x).softmax(-1)[:, 1]
        handle.remove()
        assert torch.allclose(found.relevance[:, 0].flatten(1)[:, patch], expected, rtol=1e-10)
    assert found.engine == "forward"
    usual = explain(model, x, 1, "reciprocam", kernel="dirac", layer=layer)
    assert not torch.allclose(found.relevance, usual.relevance, rtol=1e-3)


def test_no_closed_form_for_it(build: Callable[[str], Any], images_of: Callable[[str], Tensor]) -> None:
    with pytest.raises(UsageError, match="masked norm1 tokens only"):
        explain(build("plain"), images_of("plain"), 1, "reciprocam", tokens="block_input", engine="exact")
