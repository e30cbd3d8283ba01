"""A Vision Transformer through its user's own modules: whatever they compute, hooks and replaced methods included.

The model is called as its user calls it. Hooks, taken off afterwards, read the normalised tokens t = norm1(z) of a
block, put others in their place, and let the blocks before that one pass their input on, so that only what lies behind
is paid for. Where skipping changes the outputs (a model that reads blocks in between), nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain.networks.anatomy import Anatomy
from lidc_xai.explain.networks.attention_probe import AttentionProbe
from lidc_xai.explain.networks.manners import hooked
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.plain_model import plain_forward, some_score


@dataclass
class Seen:
    """What one pass showed: z (B, T, D) that entered blocks, t that left their norms, and the outputs."""

    outputs: Outputs
    z: dict[int, Tensor] = field(default_factory=dict)
    t: dict[int, Tensor] = field(default_factory=dict)
    blocks_called: bool = False


def look(anatomy: Anatomy, images: Tensor, layers: tuple[int, ...], probe: AttentionProbe | None = None) -> Seen:
    """One pass of the model over images (B, C, H, W), with the tokens of ``layers`` kept as they are in the graph.

    ``probe`` is told which block is running. ``ModelError`` where a norm does not run once.
    """
    seen = Seen(Outputs(images))
    with ExitStack() as stack:
        for layer, norm in enumerate(anatomy.norms):
            if probe is not None:
                stack.enter_context(_announced(probe, anatomy, layer))
            if layer in layers:
                stack.enter_context(hooked(norm, _keep_tokens(seen, anatomy, layer, images)))
        stack.enter_context(hooked(anatomy.blocks[-1], lambda *_: setattr(seen, "blocks_called", True)))
        if probe is not None:
            stack.enter_context(probe)
        seen.outputs = plain_forward(anatomy.model, images)
    for layer in layers:
        if layer not in seen.t:
            raise ModelError(
                f"norm1 of block {layer} ({type(anatomy.norms[layer]).__name__}) is not called as a module"
            )
    return seen


def finish(
    anatomy: Anatomy,
    images: Tensor,
    layer: int,
    z: Tensor,
    t: Tensor | None = None,
    *,
    skip: bool = True,
    alone: bool = False,
    probe: AttentionProbe | None = None,
) -> Outputs:
    """Outputs from the tokens z (B, ..., T, D) that enter block ``layer``, with ``t`` in place of norm1(z) there.

    ``images`` (B, C, H, W): the images themselves, which every copy shares. ``skip``: blocks before ``layer`` pass
    their input on instead of computing; ``alone``: those behind it, too, so that the head reads this block.
    """
    copies = z.shape[1:-2]
    full = images if not copies else images.repeat_interleave(copies.numel(), 0)
    z = z.flatten(0, -3)
    entered: list[bool] = []
    with ExitStack() as stack:
        for block in (
            *anatomy.blocks[: layer if skip else 0],
            *anatomy.blocks[layer + 1 if alone else anatomy.depth :],
        ):
            stack.enter_context(_passing_on(block))
        stack.enter_context(_entering(anatomy.blocks[layer], z, entered))
        if t is not None:
            stack.enter_context(hooked(anatomy.norms[layer], lambda *seen: t.flatten(0, -3).reshape(seen[-1].shape)))
        if probe is not None:
            for number in range(layer, anatomy.depth):
                stack.enter_context(_announced(probe, anatomy, number))
            stack.enter_context(probe)
        outputs = plain_forward(anatomy.model, full)
    if t is None and not entered:
        kind = type(anatomy.blocks[layer]).__name__
        raise ModelError(f"block {layer} ({kind}) is not called as a module, so that its input cannot be replaced")
    return outputs.map(lambda x: x.unflatten(0, (len(images), *copies)))


def tokens_read(anatomy: Anatomy, images: Tensor, *, skip_to: Tensor | None) -> Tensor:
    """(T,) of bool: the tokens behind the last block from which the outputs are computed, by differentiation.

    ``skip_to``: tokens (B, T, D) that enter the last block, where the blocks before it can pass their input on.
    """
    cut = _Cut(anatomy, images)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if skip_to is not None:
            for block in anatomy.blocks[:-1]:
                stack.enter_context(_passing_on(block))
            stack.enter_context(_entering(anatomy.blocks[-1], skip_to, []))
        cut.watch(stack)
        values = plain_forward(anatomy.model, images).values
        score = some_score(values)
    if cut.tokens is None or not score.requires_grad:
        raise ModelError("it is not known which tokens this model's head reads")
    (slope,) = torch.autograd.grad(score, cut.tokens)
    return _as_tokens(slope).abs().amax((0, 2)) > 0


class _Cut:
    """Begins a graph at the tokens that leave the last block: at its output where it is called as a module, else at the
    input of the first module behind the last one inside it that takes all tokens."""

    def __init__(self, anatomy: Anatomy, images: Tensor) -> None:
        self.last, self.shape = anatomy.blocks[-1], (len(images), anatomy.tokens(images))
        self.inner = set(self.last.modules())
        self.others = [m for m in anatomy.model.modules() if m not in self.inner]
        self.began = False
        self.tokens: Tensor | None = None

    def watch(self, stack: ExitStack) -> None:
        stack.enter_context(hooked(self.last, self._leave))
        for module in self.inner - {self.last}:
            stack.enter_context(hooked(module, self._begin))
        for module in self.others:
            stack.enter_context(hooked(module, self._enter, before=True))

    def _begin(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.began, self.tokens = True, None

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.tokens = _tensor(output).detach().requires_grad_()
        return (self.tokens, *output[1:]) if isinstance(output, tuple) else self.tokens

    def _enter(self, module: nn.Module, inputs: Any) -> Any:
        fits = self.began and self.tokens is None and bool(inputs) and isinstance(inputs[0], Tensor)
        if not fits or inputs[0].ndim != 3 or inputs[0].shape[:2] != self.shape:
            return None
        self.tokens = inputs[0].detach().requires_grad_()
        return (self.tokens, *inputs[1:])


def _keep_tokens(seen: Seen, anatomy: Anatomy, layer: int, images: Tensor) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if layer in seen.t:
            raise ModelError(f"norm1 of block {layer} runs several times in a forward pass")
        z, t = _as_tokens(_tensor(inputs)), _as_tokens(_tensor(output))
        wanted = anatomy.tokens(images)
        if t.shape[:2] != (len(images), wanted):
            raise ModelError(
                f"norm1 of block {layer} gives {tuple(t.shape)}; wanted {wanted} tokens for each of {len(images)} "
                f"images ({anatomy.prefix} prefix tokens and the patches)"
            )
        seen.z[layer], seen.t[layer] = z, t

    return keep


@contextmanager
def _announced(probe: AttentionProbe, anatomy: Anatomy, layer: int) -> Iterator[None]:
    """From norm1 of a block to the end of the model or the next norm1, the block is the one that runs."""

    def begin(module: nn.Module, inputs: Any) -> None:
        probe.block = layer

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        probe.block = -1

    with hooked(anatomy.norms[layer], begin, before=True), hooked(anatomy.blocks[layer], end):
        yield


@contextmanager
def _passing_on(block: nn.Module) -> Iterator[None]:
    """``block`` returns its first input, in place of what it computes."""
    before = block.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    block.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = before


@contextmanager
def _entering(block: nn.Module, z: Tensor, entered: list[bool]) -> Iterator[None]:
    """``block`` is given z (B, T, D) in place of its first input."""

    def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        entered.append(True)
        first = args[0] if args else next(iter(kwargs.values()))
        entering = z if first.ndim == 3 else z.unflatten(1, first.shape[1:-1])
        return ((entering, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): entering})

    handle = block.register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _tensor(value: Any) -> Tensor:
    """The tokens among a module's inputs or outputs: the tensor itself, or the first of a tuple."""
    value = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(value, Tensor) or value.ndim not in (3, 4):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"a block's tokens are a tensor (B, T, D); this model passes on {got}")
    return value


def _as_tokens(x: Tensor) -> Tensor:
    """(B, T, D) of tokens that a block keeps as (B, T, D) or (B, h, w, D)."""
    return x if x.ndim == 3 else x.flatten(1, 2)
