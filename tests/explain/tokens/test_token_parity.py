"""Where captum computes the same thing, it agrees; where it computes another thing, the row says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidc_xai.explain import explain

captum = pytest.importorskip("captum.attr")

CLASSES = torch.tensor([2, 4])


@pytest.mark.parametrize("kind", ["plain", "registers", "q/k-norm", "mean", "distilled"])
def test_captum_layer_gradient_x_activation_is_cdam(
    kind: str, build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    model: Any = build(kind)
    x = images_of(kind)
    found = captum.LayerGradientXActivation(model, model.blocks[-1].norm1).attribute(x, target=CLASSES)
    expected = found.sum(-1)[:, model.num_prefix_tokens :].detach()
    for method in ("cdam", "linear_approximation"):
        got = explain(model, x, CLASSES, method).relevance
        assert torch.allclose(got.flatten(1), expected, rtol=1e-10, atol=1e-13)


def test_captum_integrates_to_the_block_and_not_from_zero_tokens(
    build: Callable[[str], nn.Module], images_of: Callable[[str], Tensor]
) -> None:
    """Its LayerIntegratedGradients starts at the tokens of a baseline image, Integrated CDAM at zero tokens."""
    model: Any = build("plain")
    x = images_of("plain")
    theirs = captum.LayerIntegratedGradients(model, model.blocks[-1].norm1).attribute(
        x, baselines=0, target=CLASSES, n_steps=20, internal_batch_size=2
    )
    ours = explain(model, x, CLASSES, "integrated_cdam", steps=20, rule="gauss-legendre").relevance.flatten(1)
    assert not torch.allclose(theirs.sum(-1)[:, 1:].detach(), ours, rtol=0.1)
