"""What a method sees: the model on one batch of images, what has been computed of it so far, and the targets.

A method is a function ``method(context, **options) -> Result``. ``Pass`` is shared by the methods that are asked
for together, so that the trunk of a ViT (everything before its last block) runs once for all of them.
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
from lidc_xai.explain.networks.changed_backward import Rules, with_backward
from lidc_xai.explain.networks.outputs import Outputs
from lidc_xai.explain.networks.plain_model import plain_forward
from lidc_xai.explain.networks.vit import ViT, as_vit
from lidc_xai.explain.targets import TargetSet
from lidc_xai.explain.tokens.last_block import LastBlock

_AGREED: WeakKeyDictionary[nn.Module, set[Rules]] = WeakKeyDictionary()
"""Models whose outputs were found the same under a changed backward pass."""


@dataclass(frozen=True)
class Result:
    """A method's answer: (B, T, ·, ·), or (B, 1, ·, ·) from a method that does not look at the target."""

    relevance: Tensor
    engine: str
    extras: dict[str, Any] = field(default_factory=dict)


class Pass:
    """A model on a batch of images, computed only as far as somebody asks, and kept for the next one."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.images = images
        self.vit: ViT | None = as_vit(model)
        self._tokens: dict[int, Tensor] = {}
        self._last: LastBlock | None = None
        self._outputs: Outputs | None = None

    def tokens(self, layer: int = -1) -> Tensor:
        """(B, T, D): the tokens that enter block ``layer`` of a ViT, without gradients."""
        assert self.vit is not None
        layer = self.vit.layer(layer)
        if layer not in self._tokens:
            known = max((done for done in self._tokens if done < layer), default=None)
            with torch.no_grad():
                z = self.vit.embed(self.images) if known is None else self._tokens[known]
                for block in self.vit.blocks[known or 0 : layer]:
                    z = block(z)
            self._tokens[layer] = z
        return self._tokens[layer]

    @property
    def last(self) -> LastBlock:
        """The last block of a ViT in closed form, where it has one."""
        assert self.vit is not None
        if self._last is None:
            self._last = LastBlock(self.vit, self.tokens(-1))
        return self._last

    @property
    def outputs(self) -> Outputs:
        """The model's outputs (B, C) without gradients."""
        if self._outputs is None:
            with torch.no_grad():
                if self.vit is None:
                    self.record(plain_forward(self.model, self.images))
                elif self.vit.no_closed_form is None:
                    self.record(self.last.here[1])
                else:
                    self.record(self.vit.finish(-1, self.tokens(-1)))
        assert self._outputs is not None
        return self._outputs

    def record(self, outputs: Outputs) -> None:
        """Keep outputs of these images that a method computed on its way, so that nobody computes them again."""
        if self._outputs is None:
            self._outputs = outputs.map(Tensor.detach)

    def select(self, rows: slice) -> Pass:
        """The same for some of the images; what is known already is kept."""
        part = Pass.__new__(Pass)
        part.model, part.images, part.vit = self.model, self.images[rows], self.vit
        part._tokens = {layer: z[rows] for layer, z in self._tokens.items()}
        part._last = None
        part._outputs = None if self._outputs is None else self._outputs.map(lambda x: x[rows])
        return part

    def adopt(self, parts: list[Pass]) -> None:
        """Keep what the passes over all images, in parts, have computed, so that the next method need not."""
        for layer in set.intersection(*(set(part._tokens) for part in parts)) - set(self._tokens):
            self._tokens[layer] = torch.cat([part._tokens[layer] for part in parts])
        known = [part._outputs for part in parts if part._outputs is not None]
        if len(known) == len(parts):
            features = [outputs.features for outputs in known if outputs.features is not None]
            values = torch.cat([outputs.values for outputs in known])
            self.record(Outputs(values, torch.cat(features) if len(features) == len(parts) else None))


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
    def vit(self) -> ViT | None:
        """The model seen as a ViT, or None."""
        return self.run.vit

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
        vit = self.vit
        return self.network(lambda: plain_forward(self.model, images) if vit is None else vit.forward(images))

    def network(self, forward: Callable[[], Outputs]) -> Outputs:
        """``forward()``'s outputs, to be differentiated as the method asks (``rules``); every pass whose gradient a
        method takes goes through here."""
        return with_backward(self.rules, forward)

    def change_backward(self, rules: Rules) -> None:
        """Differentiate the network by ``rules`` from here on. Once per model it is checked that its operations,
        caught one by one, give the outputs that the model gives."""
        self.rules = rules
        known = _AGREED.setdefault(self.model, set())
        if rules in known:
            return
        image = self.images[:1].clone().requires_grad_()
        found = with_backward(rules, lambda: plain_forward(self.model, image)).values.detach()
        with torch.no_grad():
            expected = plain_forward(self.model, self.images[:1]).values
        away = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not away < torch.finfo(expected.dtype).eps ** 0.5:
            raise ModelError(f"caught operation by operation, the model's outputs differ by {away:.1e} from its own")
        known.add(rules)

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
        """A fresh generator for this method's noise, on the images' device."""
        return torch.Generator(self.images.device).manual_seed(self.seed)

    def noise(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(count, *shape) standard normal draws, one after the other: the same in chunks of any size.

        Every image meets the same draws, so that a batch gives what its images give one by one.
        """
        draws = self.images.new_empty((count, *shape))
        for draw in draws:
            draw.normal_(generator=generator)
        return draws


def gradients(scores: Tensor, inputs: Tensor, *, keep: bool = False, unused: bool = False) -> Tensor:
    """∂scores[..., t]/∂inputs for every target t: (T, *inputs.shape). Each image's score depends on that image alone.

    ``keep``: the graph is needed again afterwards. ``unused``: inputs that do not matter have a gradient of zero.
    """
    if not scores.requires_grad:
        raise UsageError("the target does not depend on the model's input; there is nothing to differentiate")
    count = scores.shape[-1]
    found = [
        torch.autograd.grad(scores[..., t].sum(), inputs, retain_graph=keep or t < count - 1, materialize_grads=unused)
        for t in range(count)
    ]
    return torch.stack([gradient for (gradient,) in found])
