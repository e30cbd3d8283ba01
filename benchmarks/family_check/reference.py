"""The reference: hooks on the user's own model, one whole forward and backward pass an answer, full T × T products.

It shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from family_check.architectures import Entry

TARGET = 2


class Reference:
    """A model asked by hooks alone."""

    def __init__(self, entry: Entry, model: nn.Module, images: Tensor) -> None:
        self.entry, self.model, self.images = entry, model, images
        modules = dict(model.named_modules())
        own = [name for name in modules if entry.norm and name.rpartition(".")[2] == entry.norm]
        self.norms = [modules[name] for name in own]
        self.blocks = [modules[name.rpartition(".")[0]] for name in own]

    def score(self, images: Tensor | None = None) -> Tensor:
        found = self.model(self.images if images is None else images)
        return getattr(found, "logits", found)

    def at(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(output of ``module``, gradient of the target there)."""
        seen: list[Tensor] = []

        def keep(m: nn.Module, i: Any, o: Tensor) -> Tensor:
            seen.append(o if o.requires_grad else o.requires_grad_())
            return seen[-1].clone()

        handle = module.register_forward_hook(keep)
        try:
            y = self.score()[:, TARGET].sum()
        finally:
            handle.remove()
        (g,) = torch.autograd.grad(y, seen[-1])
        return seen[-1].detach(), g

    def tokens(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2) if x.ndim == 4 else x
        return x[:, self.entry.prefix :]

    def cdam(self) -> Tensor:
        t, g = self.at(self.norms[-1])
        return self.tokens(t * g).sum(-1)

    def gradcam(self, layer: nn.Module | None = None, shape: tuple[int, int] | None = None) -> Tensor:
        if layer is None:
            t, g = (self.tokens(x) for x in self.at(self.norms[-1]))
            return torch.einsum("bnd,bd->bn", t, g.mean(1))
        a, g = (_maps(x, shape) for x in self.at(layer))
        return (a * g.mean((2, 3), keepdim=True)).sum(1).flatten(1)

    def reciprocam(self) -> Tensor:
        side = round((self.at(self.norms[-1])[0].shape[1] - self.entry.prefix) ** 0.5)
        kernel = {-1: 0.25, 0: 0.5, 1: 0.25}
        scores = []
        for row in range(side):
            for column in range(side):
                mask = torch.zeros(side, side, dtype=torch.float64)
                for dy in kernel:
                    for dx in kernel:
                        if 0 <= row + dy < side and 0 <= column + dx < side:
                            mask[row + dy, column + dx] = kernel[dy] * kernel[dx]
                weights = torch.cat([torch.ones(self.entry.prefix, dtype=torch.float64), mask.flatten()])
                handle = self.norms[-1].register_forward_hook(lambda m, i, o, w=weights: o * w.view(1, -1, 1))
                with torch.no_grad():
                    scores.append(self.score().softmax(-1)[:, TARGET])
                handle.remove()
        return torch.stack(scores, 1)

    @contextmanager
    def watched(self, note: Callable[[Tensor], Tensor]) -> Iterator[list[Any]]:
        """Every attention matrix is what ``note`` makes of it; handles of further hooks are taken off in the end."""
        handles, undo = _watch_attention(self.model, note, len(self.images))
        try:
            yield handles
        finally:
            for handle in handles:
                handle.remove()
            undo()

    def matrices(self, last: int = -1) -> tuple[list[Tensor], list[Tensor]]:
        """Every block's attention (B, H, T, T), first to last, and the target's gradient there; blocks behind ``last``
        give back what enters them."""
        seen: list[Tensor] = []

        def note(a: Tensor) -> Tensor:
            if not a.requires_grad:
                a = a.detach().requires_grad_()
            seen.append(a)
            return a

        def pass_on(m: nn.Module, i: Any, o: Any) -> Any:
            return (i[0], *o[1:]) if isinstance(o, tuple) else i[0]

        with self.watched(note) as handles:
            handles += [block.register_forward_hook(pass_on) for block in self.blocks[last:][1:] if last >= 0]
            y = self.score()[:, TARGET].sum()
        grads = torch.autograd.grad(y, seen, allow_unused=True)
        return [a.detach() for a in seen], [
            torch.zeros_like(a) if g is None else g for a, g in zip(seen, grads, strict=True)
        ]

    def rows(self, product: Tensor) -> Tensor:
        """(B, T, T) → (B, N): the rows that the head reads, averaged; patch columns."""
        prefix, reads = self.entry.prefix, self.entry.reads
        if reads in ("cls", "distilled"):
            row = product[:, 0]
        elif reads == "patches":
            row = product[:, prefix:].mean(1)
        elif reads == "all without registers":
            row = torch.cat([product[:, :1], product[:, prefix:]], 1).mean(1)
        else:
            row = product.mean(1)
        return row[:, prefix:]

    def attention(self) -> Tensor:
        return self.rows(self.matrices()[0][-1].mean(1))

    def attention_rollout(self) -> Tensor:
        return self.rows(self._rollout([a.mean(1) for a in self.matrices()[0]]))

    def gradient_rollout(self) -> Tensor:
        return self.rows(self._rollout([(a * g).mean(1).clamp(min=0) for a, g in zip(*self.matrices(), strict=True)]))

    def relevance_propagation(self) -> Tensor:
        a, g = self.matrices()
        total = torch.eye(a[0].shape[-1], dtype=torch.float64).expand(len(a[0]), -1, -1)
        for one, slope in zip(a, g, strict=True):
            total = total + (one * slope).clamp(min=0).mean(1) @ total
        return self.rows(total)

    def legrad(self) -> Tensor:
        parts = [self.matrices(last)[1][last].clamp(min=0).mean((1, 2)) for last in range(len(self.blocks))]
        return (sum(parts) / len(parts))[:, self.entry.prefix :]  # type: ignore[operator]

    def token_ablation(self) -> Tensor:
        """For a head that reads CLS: every softmax without the token's key, renormalised."""

        def without(gone: int, a: Tensor) -> Tensor:
            kept = a * (torch.arange(a.shape[-1]) != gone)
            return kept / kept.sum(-1, keepdim=True)

        prefix, scores = self.entry.prefix, []
        with torch.no_grad():
            whole = self.score()[:, TARGET]
            count = self.patches()
            for gone in range(prefix, prefix + count):
                with self.watched(partial(without, gone)):
                    scores.append(whole - self.score()[:, TARGET])
        return torch.stack(scores, 1)

    def patches(self) -> int:
        """How many patch tokens there are."""
        with torch.enable_grad():
            return self.at(self.norms[-1])[0].flatten(1, -2).shape[1] - self.entry.prefix

    def token_input_x_gradient(self) -> Tensor:
        """Channels summed, at the output of the module that is called patch embedding."""
        names = ("patch_embed", "patch_embeddings", "conv_proj", "embeds.proj")
        embedding = next(
            m for name, m in self.model.named_modules() if f".{name}".endswith(tuple(f".{n}" for n in names))
        )
        e, g = self.at(embedding)
        width = [p.shape[0] for p in embedding.parameters() if p.ndim in (2, 4)][-1]
        return (e * g).sum(next(axis for axis in (-1, 1) if e.shape[axis] == width)).flatten(1)

    def libragrad(self) -> Tensor:
        return self._changed(lambda x, share: x.detach() if share < 1 else x, constant=True)

    def attn_lrp(self) -> Tensor:
        return self._changed(_times, constant=False)

    def _changed(self, through: Callable[[Tensor, float], Tensor], *, constant: bool) -> Tensor:
        """Token × gradient with each module's output rewritten: norms with their deviation, activations with φ(x)/x as
        constants; attention and gates a constant, or with the shares of a product."""

        def norm(m: Any, i: Any, o: Tensor) -> Tensor:
            first = type(m).__name__.endswith("Norm2d")  # channels before rows and columns
            x = i[0].movedim(1, -1) if first else i[0]
            dims = tuple(range(-len(m.normalized_shape), 0))
            rest = x - x.mean(dims, keepdim=True) if isinstance(m, nn.LayerNorm) else x
            size = (rest.square().mean(dims, keepdim=True) + m.eps).sqrt().detach()
            y = rest / size if m.weight is None else rest / size * m.weight
            y = y if getattr(m, "bias", None) is None else y + m.bias
            return y.movedim(-1, 1) if first else y

        def activation(m: nn.Module, i: Any, o: Tensor) -> Tensor:
            return i[0] * (o / i[0]).nan_to_num().detach()

        def gate(m: nn.Module, i: Any, o: Tensor) -> Tensor:
            return o.detach() if constant else activation(m, i, o)

        def product(m: nn.Module, i: Any) -> Any:
            """What comes in is a product: both factors get their share of its gradient."""
            return i if constant else (_times(i[0], 0.5), *i[1:])

        with self.watched(lambda a: through(a, 0.5)) as handles:
            glus = [m for m in self.model.modules() if hasattr(m, "fc1_g") or type(m).__name__ == "GluMlp"]
            gates = [m.act for m in glus]
            handles += [m.norm.register_forward_pre_hook(product) for m in glus]
            for name, module in self.model.named_modules():
                own = name.rpartition(".")[2]
                if isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.startswith("RmsNorm"):
                    handles.append(module.register_forward_hook(norm))
                elif module in gates:
                    handles.append(module.register_forward_hook(gate))
                elif own in ("act", "mlp_act") or "activations" in type(module).__module__ or type(module) is nn.GELU:
                    handles.append(module.register_forward_hook(activation))
                if name.endswith(("attn.proj", ".out_proj", "attn_out_proj", "attention.output.dense", "o_proj")):
                    handles.append(module.register_forward_pre_hook(product))
            return self.token_input_x_gradient()

    @staticmethod
    def _rollout(matrices: list[Tensor]) -> Tensor:
        eye = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
        total = eye.expand(len(matrices[0]), -1, -1)
        for a in matrices:
            a = a + eye
            total = (a / a.sum(-1, keepdim=True)) @ total
        return total

    def saliency(self) -> Tensor:
        x = self.images.clone().requires_grad_()
        (g,) = torch.autograd.grad(self.score(x)[:, TARGET].sum(), x)
        return g.sum(1).flatten(1)


def _times(x: Tensor, share: float) -> Tensor:
    """x with ``share`` of its gradient."""
    return share * x + (1 - share) * x.detach()


def _maps(x: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """A layer's output as (B, K, h, w) of the grid that the package found."""
    assert shape is not None
    if x.ndim == 3:
        return x[:, x.shape[1] - shape[0] * shape[1] :].transpose(1, 2).unflatten(-1, shape)
    return x if tuple(x.shape[2:]) == shape else x.movedim(-1, 1)


def _watch_attention(
    model: nn.Module, note: Callable[[Tensor], Tensor], batch: int
) -> tuple[list[Any], Callable[[], None]]:
    """Spell attention out in every library's own way, and see each matrix."""
    handles: list[Any] = []
    kept: list[tuple[Any, str, Any]] = []

    def dropout(m: nn.Module, i: Any, o: Tensor) -> Tensor:
        return note(o) if o.ndim == 4 else note(o.unflatten(0, (batch, -1))).flatten(0, 1)

    for module in model.modules():
        if hasattr(module, "attn_drop") and hasattr(module, "fused_attn"):
            kept.append((module, "fused_attn", module.fused_attn))
            module.fused_attn = False
            drop = module.attn_drop
            if not isinstance(drop, nn.Module):
                kept.append((module, "attn_drop", drop))
                module.attn_drop = nn.Dropout(0.0)
                drop = module.attn_drop
            handles.append(drop.register_forward_hook(dropout))
        if isinstance(module, nn.MultiheadAttention):
            kept.append((module, "forward", module.forward))
            module.forward = _spelled_out(module, note)
    config = getattr(model, "config", None) or getattr(getattr(model, "body", None), "config", None)
    if config is not None:
        body = model if hasattr(model, "set_attn_implementation") else model.body
        own = body.config._attn_implementation
        body.set_attn_implementation("eager")
        softmax = nn.functional.softmax

        def seen(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return note(softmax(x, *args, **{**kwargs, "dtype": x.dtype}))

        kept.append((nn.functional, "softmax", softmax))
        nn.functional.softmax = seen

    def undo() -> None:
        if config is not None:
            body.set_attn_implementation(own)
        for holder, name, value in reversed(kept):
            if name == "forward":
                del holder.forward
            else:
                setattr(holder, name, value)

    return handles, undo


def _spelled_out(module: nn.MultiheadAttention, note: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def forward(t: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        qkv = t @ module.in_proj_weight.T + module.in_proj_bias
        q, k, v = qkv.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        a = note((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))
        return module.out_proj((a @ v).transpose(1, 2).flatten(2)), None

    return forward
