"""What was found out about a model by running it, kept as long as the model stays as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lidc_xai.explain.networks.alterations import signature
from lidc_xai.explain.networks.changed_backward import Rules
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.parts import Parts


@dataclass
class Facts:
    """Each None until somebody asked. ``parts``: the composition that gives the model's own outputs, or why there is
    none. ``skips``: blocks can pass their input on without changing what lies behind. ``read``: (T,) of bool, tokens
    that the head reads. ``attention``: why a block's matrix cannot be read, "" where it can. ``derivative``: gradients
    were found to be derivatives. ``rules``: changed backward passes under which the outputs were found the same.
    ``quantised``: why its weights cannot be differentiated, "" where they can.
    """

    parts: Parts | str | None = None
    skips: bool | None = None
    read: Tensor | None = None
    attention: dict[int, str] = field(default_factory=dict)
    derivative: bool = False
    quantised: str | None = None
    rules: set[Rules] = field(default_factory=set)


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, Facts]] = WeakKeyDictionary()


def facts_of(model: nn.Module, images: Tensor) -> Facts:
    """What is known of ``model`` on images of this shape; empty for one that was never seen or has changed since."""
    now = signature(model, images)
    known = _KNOWN.get(model)
    if known is None or known[0] != now:
        known = (now, Facts())
        _KNOWN[model] = known
    return known[1]


def alike(computed: Outputs, expected: Outputs) -> bool:
    """Whether two ways of computing gave the same outputs, within what their precision explains."""
    scale = float(expected.values.abs().max())
    tolerance = max(1e-10, 1e4 * torch.finfo(expected.values.dtype).eps)
    return bool((computed.values - expected.values).abs().max() <= tolerance * max(scale, 1e-6))


def same_tokens(computed: Tensor, expected: Tensor) -> bool:
    """The same for tokens (B, T, D)."""
    return computed.shape == expected.shape and alike(Outputs(computed), Outputs(expected))
