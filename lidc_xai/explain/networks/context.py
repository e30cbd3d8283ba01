"""What a method sees: the model on one batch of images, what has been computed of it so far, and the targets.

A method is a function ``method(context, **options) -> Result``. ``Pass`` is shared by the methods that are asked
for together, so that the trunk of a ViT (everything before its last block) runs once for all of them.

Two ways lie behind a ``Pass``. ``parts``: our composition of the model's layers, which closed forms need; it is used
where the model's classes are as they were written and its outputs were found to be ``model(images)``, once per model.
Else the model's own modules, by hooks (``own_modules``). A method that asks for ``tokens``, ``normed``, ``finish`` and
``outputs`` need not know which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain.networks import own_modules
from lidc_xai.explain.networks.alterations import alteration, check_derivative, signature
from lidc_xai.explain.networks.anatomy import Anatomy
from lidc_xai.explain.networks.attention_probe import AttentionProbe
from lidc_xai.explain.networks.changed_backward import Rules, with_backward
from lidc_xai.explain.networks.families import as_vit
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.parts import Parts, parts_of
from lidc_xai.explain.networks.plain_model import plain_forward, some_score
from lidc_xai.explain.networks.wrappers import unwrapped
from lidc_xai.explain.targets import TargetSet
from lidc_xai.explain.tokens.last_block import LastBlock

NO_OTHER_BLOCK = "its head cannot be given another block's output: its blocks are not called one after the other alone"


@dataclass
class Facts:
    """What was found out about a model by running it, kept as long as it stays as it was; each None until asked for.

    ``parts``: the composition that gives the model's own outputs, or why there is none. ``skips``: blocks can pass
    their input on without changing what lies behind. ``read``: (T,) of bool, tokens that the head reads.
    ``attention``: why a block's matrix cannot be read, "" where it can. ``derivative``: gradients were found to be
    derivatives. ``rules``: changed backward passes under which the outputs were found the same. ``quantised``: why its
    weights cannot be differentiated, "" where they can.
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


@dataclass(frozen=True)
class Result:
    """A method's answer: (B, T, ·, ·), or (B, 1, ·, ·) from a method that does not look at the target."""

    relevance: Tensor
    engine: str
    extras: dict[str, Any] = field(default_factory=dict)


class Pass:
    """A model on a batch of images, computed only as far as somebody asks, and kept for the next one."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = unwrapped(model)
        self.images = images
        self.vit: Anatomy | None = as_vit(model)
        self.facts: Facts = facts_of(self.model, images)
        self._tokens: dict[int, Tensor] = {}
        self._normed: dict[int, Tensor] = {}
        self._last: LastBlock | None = None
        self._outputs: Outputs | None = None

    @property
    def anatomy(self) -> Anatomy:
        """``vit``, for a method that was asked for because the model is one."""
        assert self.vit is not None
        return self.vit

    @property
    def parts(self) -> Parts | None:
        """The model composed of its parts, where that was found to give its own outputs; else None."""
        return None if isinstance(self._parts(), str) else self._parts()  # type: ignore[return-value]

    @property
    def no_parts(self) -> str | None:
        """Why ``parts`` is None."""
        parts = self._parts()
        return parts if isinstance(parts, str) else None

    def _parts(self) -> Parts | str:
        if self.facts.parts is None:
            self.facts.parts = self._compared() if self.vit is not None else "it is not a ViT that is known here"
        return self.facts.parts

    def _compared(self) -> Parts | str:
        """One pass of the model itself, whose tokens are kept, against what the parts make of them."""
        parts = parts_of(self.anatomy)
        if isinstance(parts, str) or self.anatomy.not_plain is not None:
            return self.anatomy.not_plain or str(parts)
        changed = alteration(self.model)
        if changed is not None:
            return changed
        with torch.no_grad():
            seen = self._look((0, self.anatomy.depth - 1))
            embedded = parts.embed(self.images)
            same = same_tokens(embedded, seen.z[0]) and alike(parts.finish(-1, self.tokens(-1)), seen.outputs)
        if same or not seen.outputs.values.isfinite().all():
            # every later batch is computed by the parts: the first one, too, or its last bits would be others'
            self._outputs = None
            if not torch.equal(embedded, seen.z[0]):
                self._tokens.clear()
                self._normed.clear()
            return parts
        return (
            f"a forward pass composed of the parts of {type(parts.model).__name__} gives other outputs than the model"
        )

    def _look(self, layers: tuple[int, ...]) -> own_modules.Seen:
        """The model's own pass, with the tokens of ``layers`` kept."""
        with torch.no_grad():
            seen = own_modules.look(self.anatomy, self.images, layers)
        self._tokens |= seen.z
        self._normed |= seen.t
        self.record(seen.outputs)
        if not seen.blocks_called:
            self.facts.skips = False
        return seen

    def tokens(self, layer: int = -1) -> Tensor:
        """(B, T, D): the tokens that enter block ``layer`` of a ViT, without gradients."""
        layer = self.anatomy.layer(layer)
        if layer not in self._tokens:
            parts = self.parts  # a first look at the model finds the last block's tokens on its way
            if parts is None:
                self._look((layer,))
            elif layer not in self._tokens:
                known = max((done for done in self._tokens if done < layer), default=None)
                with torch.no_grad():
                    z = parts.embed(self.images) if known is None else self._tokens[known]
                    for block in parts.blocks[known or 0 : layer]:
                        z = block(z)
                self._tokens[layer] = z
        return self._tokens[layer]

    def start_from(self, layer: int, tokens: Tensor) -> None:
        """``tokens(layer)`` is known: computed by a model whose blocks up to there have the same weights."""
        self._tokens.setdefault(self.anatomy.layer(layer), tokens)

    def keep_all_tokens(self) -> None:
        """``tokens`` of every block by one pass, for a method that asks for each of them."""
        if self.parts is None:
            self._look(tuple(range(self.anatomy.depth)))
        else:
            for layer in range(self.anatomy.depth):
                self.tokens(layer)

    def normed(self, layer: int = -1) -> Tensor:
        """(B, T, D): the tokens t that the attention of block ``layer`` reads, norm1 of ``tokens(layer)``."""
        layer = self.anatomy.layer(layer)
        z = self.tokens(layer)
        if layer not in self._normed:
            assert self.parts is not None
            with torch.no_grad():
                self._normed[layer] = self.parts.blocks[layer].norm1(z)
        return self._normed[layer].clone()

    def finish(self, layer: int, z: Tensor, t: Tensor | None = None, probe: AttentionProbe | None = None) -> Outputs:
        """Outputs, differentiable, from the tokens z (B, ..., T, D) that enter block ``layer``, with ``t`` in place of
        norm1(z) there; the middle axes are copies of an image. ``probe`` sees the attention matrices."""
        layer = self.anatomy.layer(layer)
        if probe is None and self.parts is not None:
            return self.parts.finish(layer, z, t)
        return own_modules.finish(self.anatomy, self.images, layer, z, t, skip=self.skips, probe=probe)

    def read_block(self, layer: int, z: Tensor, t: Tensor, probe: AttentionProbe) -> Outputs:
        """What the head makes of block ``layer``'s output, by the model's own modules; blocks behind pass it on."""
        if not self.skips:
            raise ModelError(NO_OTHER_BLOCK)
        return own_modules.finish(self.anatomy, self.images, layer, z, t, alone=True, probe=probe)

    @property
    def skips(self) -> bool:
        """Whether blocks before the one that is asked for can pass their input on: tried once, on the last block."""
        if self.facts.skips is None:
            z = self.tokens(-1)
            if self.facts.skips is None:
                with torch.no_grad():
                    finished = own_modules.finish(self.anatomy, self.images, self.anatomy.depth - 1, z)
                self.facts.skips = alike(finished, self.outputs)
        return self.facts.skips

    @property
    def read(self) -> Tensor:
        """(T,) of bool: the tokens behind the last block from which the head computes the outputs."""
        if self.facts.read is None:
            if self.parts is not None:
                self.facts.read = self.parts.tokens_read(self.anatomy.tokens(self.images), self.images.device)
            else:
                skip_to = self.tokens(-1)[:1] if self.skips else None
                self.facts.read = own_modules.tokens_read(self.anatomy, self.images[:1], skip_to=skip_to)
        return self.facts.read

    @property
    def reads(self) -> str:
        """The same in a word: "cls", "distilled" (CLS and distillation token), "patches", "all" or "some tokens"."""
        read, prefix = self.read.tolist(), self.anatomy.prefix
        first = read[:prefix]
        if not any(read[prefix:]):
            return "cls" if sum(first) == 1 and first[0] else "distilled" if sum(first) == 2 else "some tokens"
        if not all(read[prefix:]):
            return "some tokens"
        return "all" if any(first) else "patches"

    def rows_read(self) -> Tensor:
        """(T,) weights of the rows that a class-blind readout averages: CLS alone, or every token the head reads."""
        read = self.read
        weights = read.to(self.images.dtype)
        if self.reads in ("cls", "distilled"):
            weights = (torch.arange(len(read), device=read.device) == 0).to(weights)
        return weights / weights.sum()

    @property
    def no_closed_form(self) -> str | None:
        """Why the last block has no closed form, or None where it has one."""
        return self.parts.no_closed_form if self.parts is not None else self.no_parts

    @property
    def last(self) -> LastBlock:
        """The last block of a ViT in closed form, where it has one."""
        if self._last is None:
            assert self.parts is not None
            self._last = LastBlock(self.parts, self.tokens(-1))
        return self._last

    @property
    def outputs(self) -> Outputs:
        """The model's outputs (B, C) without gradients."""
        if self._outputs is None:
            with torch.no_grad():
                if self.vit is None or self.vit.not_plain is not None:
                    self.record(plain_forward(self.model, self.images))
                elif self.parts is None:
                    self.tokens(-1)
                elif self._outputs is None and self.parts.no_closed_form is None:
                    self.record(self.last.here[1])
                elif self._outputs is None:
                    self.record(self.parts.finish(-1, self.tokens(-1)))
        assert self._outputs is not None
        return self._outputs

    def believe_gradients(self) -> None:
        """``ModelError`` where the model was changed and its gradients are not the derivatives of its outputs: tried
        once, at the last block's normalised tokens (at the images, for a model without)."""
        if self.facts.derivative or self.parts is not None:
            return
        changed = alteration(self.model)
        if changed is not None:
            self._try_derivative(changed)
        self.facts.derivative = True

    def _try_derivative(self, changed: str) -> None:
        one = self.images[:1]
        if self.vit is None or self.vit.not_plain is not None:
            start = one

            def run(x: Tensor) -> Outputs:
                return plain_forward(self.model, x)

        else:
            part = self.select(slice(0, 1))  # what is tried on it is not kept for the images themselves
            z, start = part.tokens(-1), part.normed(-1)

            def run(x: Tensor) -> Outputs:
                return part.finish(-1, z, x)

        def f(x: Tensor) -> Tensor:
            return some_score(run(x).values)

        start = start.detach().clone().requires_grad_()
        value = f(start)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, start)
            check_derivative(f, start.detach(), slope, changed)

    def record(self, outputs: Outputs) -> None:
        """Keep outputs of these images that a method computed on its way, so that nobody computes them again."""
        if self._outputs is None:
            self._outputs = outputs.map(Tensor.detach)

    def select(self, rows: slice) -> Pass:
        """The same for some of the images; what is known already is kept."""
        part = Pass.__new__(Pass)
        part.model, part.images, part.vit, part.facts = self.model, self.images[rows], self.vit, self.facts
        part._tokens = {layer: z[rows] for layer, z in self._tokens.items()}
        part._normed = {layer: t[rows] for layer, t in self._normed.items()}
        part._last = None
        part._outputs = None if self._outputs is None else self._outputs.map(lambda x: x[rows])
        return part

    def adopt(self, parts: list[Pass]) -> None:
        """Keep what the passes over all images, in parts, have computed, so that the next method need not."""
        for kept, theirs in (
            (self._tokens, [part._tokens for part in parts]),
            (self._normed, [part._normed for part in parts]),
        ):
            for layer in set.intersection(*map(set, theirs)) - set(kept):
                kept[layer] = torch.cat([known[layer] for known in theirs])
        known = [part._outputs for part in parts if part._outputs is not None]
        if len(known) == len(parts):
            self.record(Outputs.join(known))


@dataclass
class Context:
    """A method's view of a ``Pass``: its targets, and the options that every method treats alike.

    ``rules``: a changed backward pass, or None for the plain gradient.

    ``resolve`` turns the outputs into targets when they are first asked for: a method that runs the model with
    gradients anyway calls ``record`` first, and no extra forward pass is paid for the predicted class.
    """

    run: Pass
    resolve: Callable[[Outputs], TargetSet]
    max_batch: int
    seed: int = 0
    engine: str = "auto"
    rules: Rules | None = field(default=None, init=False)

    @property
    def model(self) -> nn.Module:
        return self.run.model

    @property
    def images(self) -> Tensor:
        """(B, C, H, W), normalised, without history."""
        return self.run.images

    @property
    def vit(self) -> Anatomy | None:
        """Where the model's parts lie if it is a ViT, or None."""
        return self.run.vit

    @property
    def anatomy(self) -> Anatomy:
        """The same, for a method that needs a ViT."""
        return self.run.anatomy

    @cached_property
    def targets(self) -> TargetSet:
        return self.resolve(self.run.outputs)

    @cached_property
    def values(self) -> Tensor:
        """(B, T) scores of the targets."""
        with torch.no_grad():
            return self.targets.scores(self.run.outputs)

    @property
    def copies(self) -> int:
        """How many copies of each image fit into one pass of ``max_batch``."""
        return max(1, self.max_batch // len(self.images))

    def forward(self, images: Tensor) -> Outputs:
        """The model's outputs, differentiable towards ``images``."""
        return self.network(lambda: plain_forward(self.model, images))

    def network(self, forward: Callable[[], Outputs]) -> Outputs:
        """``forward()``'s outputs, to be differentiated as the method asks (``rules``); every pass whose gradient a
        method takes goes through here."""
        return with_backward(self.rules, forward)

    def change_backward(self, rules: Rules) -> None:
        """Differentiate the network by ``rules`` from here on. Once per model it is checked that its operations,
        caught one by one, give the outputs that the model gives."""
        self.rules = rules
        if rules in self.run.facts.rules:
            return
        image = self.images[:1].clone().requires_grad_()
        caught = with_backward(rules, lambda: plain_forward(self.model, image)).values.detach()
        with torch.no_grad():
            expected = plain_forward(self.model, self.images[:1]).values
        away = float((caught - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not away < torch.finfo(expected.dtype).eps ** 0.5:
            raise ModelError(f"caught operation by operation, the model's outputs differ by {away:.1e} from its own")
        self.run.facts.rules.add(rules)

    def scores(self, images: Tensor, *, record: bool = False) -> Tensor:
        """Target scores, differentiable: (B, T) for B images; (B, n, T) for (B, n, C, H, W), n copies of each image.

        ``record``: these are the images themselves, so their outputs are kept.
        """
        copies = images.shape[1:-3]
        outputs = self.forward(images.flatten(0, len(copies)))
        if record:
            self.run.record(outputs)
        shape = (len(images), *copies, -1)
        return self.targets.scores(outputs.map(lambda x: x.reshape(shape)))

    def use_exact(self, no_closed_form: str | None) -> bool:
        """Whether to take the closed form; ``no_closed_form`` is the reason why there is none, or None."""
        if self.rules is not None:
            no_closed_form = "it holds for the plain gradient, not for a changed backward pass"
        if self.engine == "exact" and no_closed_form is not None:
            raise UsageError(f"engine='exact' has no closed form here: {no_closed_form}; use engine='auto'")
        return self.engine != "autograd" and no_closed_form is None

    def generator(self) -> torch.Generator:
        """A fresh generator for this method's noise; on the CPU, so that a seed draws the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def noise(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(count, *shape) standard normal draws, one after the other: the same in chunks of any size.

        Every image meets the same draws, so that a batch gives what its images give one by one.
        """
        draws = torch.empty((count, *shape), dtype=self.images.dtype)
        for draw in draws:
            draw.normal_(generator=generator)
        return draws.to(self.images.device)


def gradients(scores: Tensor, inputs: Tensor, *, keep: bool = False, unused: bool = False) -> Tensor:
    """∂scores[..., t]/∂inputs for every target t: (T, *inputs.shape). Each image's score depends on that image alone.

    ``keep``: the graph is needed again afterwards. ``unused``: inputs that do not matter have a gradient of zero.
    """
    if not scores.requires_grad:
        raise UsageError("the target does not depend on the model's input; there is nothing to differentiate")
    count = scores.shape[-1]
    slopes = [
        torch.autograd.grad(scores[..., t].sum(), inputs, retain_graph=keep or t < count - 1, materialize_grads=unused)
        for t in range(count)
    ]
    return torch.stack([gradient for (gradient,) in slopes])
