"""What every method does on every family of networks: tried, and compared with a reference by hooks, in float64.

    python benchmarks/families.py --out runs/families [--only eva02_tiny_patch14_224,…]

Each architecture is built at its smallest width, two blocks, 32 to 64 pixels, with random weights in which nothing is
zero or one (layer scales, positions and biases shaken). The reference shares no code with the package: hooks on the
user's own model, one whole forward and backward pass for each answer, full T × T products. A cell holds the worst
relative error max|S − reference| / max|reference| over two images, or "ran" where there is no reference, or a number
that the notes below the table explain. transformers' models are tried where that package is installed.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.files import write_text
from lidc_xai.run import Run

CLASSES, TARGET = 5, 2
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
NAFLEX = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1)}
SWIN = {"img_size": 64, "embed_dim": 12, "num_heads": (1, 1, 1, 1), **STAGES}
TRANSFORMERS: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "num_labels": CLASSES,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One architecture. ``norm``: the last block's first norm, if it is a ViT with one; ``prefix``: tokens before the
    patches; ``reads``: the rows of attention that its head reads; ``attention``: whether blocks have one matrix."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    norm: str | None = None
    prefix: int = 1
    reads: str = "cls"
    attention: bool = True
    source: str = "timm"


def _vit(name: str, prefix: int = 1, reads: str = "cls", norm: str = "norm1", **more: Any) -> Entry:
    base = NAFLEX if name.startswith("naflex") else VIT
    attention = more.pop("attention", True)
    return Entry(name, {**base, **more}, 32, norm, prefix, reads, attention)


ENTRIES = (
    _vit("vit_tiny_patch16_224"),
    _vit("deit3_small_patch16_224"),
    _vit("vit_base_patch16_clip_224"),
    _vit("vit_small_patch14_dinov2"),
    _vit("vit_small_patch14_reg4_dinov2", 5),
    _vit("flexivit_small"),
    _vit("beit3_base_patch16_224", 1, "patches"),
    _vit("vit_base_patch16_siglip_gap_224", 0, "patches"),
    _vit("vit_little_patch16_reg4_gap_256", 4, "patches"),
    _vit("vit_so150m_patch16_reg4_map_256", 4, "patches"),
    _vit("vit_base_patch16_rpn_224", 0, "patches", "norm1", attention=False),
    _vit("vit_pwee_patch16_reg1_gap_256", 1, "patches", "in_norm"),
    _vit("vit_dwee_patch16_reg1_gap_256", 1, "patches", attention=False),
    _vit("deit_tiny_distilled_patch16_224", 2, "distilled"),
    Entry("vit_tiny_r_s16_p8_224", {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}, 64, "norm1"),
    _vit("eva02_tiny_patch14_224", 1, "patches"),
    _vit("eva_giant_patch14_224", 1, "patches"),
    _vit("vit_small_patch16_dinov3", 5, "patches"),
    _vit("vit_small_patch16_rope_224"),
    _vit("vit_small_patch16_rope_mixed_224"),
    _vit("vit_medium_patch16_rope_reg1_gap_256", 1, "patches"),
    _vit("vit_pe_core_tiny_patch16_384", 1, "all"),
    _vit("beit_base_patch16_224", 1, "patches"),
    _vit("beitv2_base_patch16_224", global_pool="token"),
    _vit("naflexvit_base_patch16_gap", 4, "patches"),
    _vit("naflexvit_base_patch16_map", 1, "patches"),
    _vit("vit_relpos_small_patch16_224", 0, "patches"),
    _vit("vit_relpos_base_patch16_cls_224", 1, "cls"),
    _vit("vit_srelpos_small_patch16_224", 0, "patches"),
    _vit("vit_relpos_base_patch32_plus_rpn_256", 0, "patches", attention=False),
    _vit("samvit_base_patch16_224", 0, "patches", global_attn_indexes=(0, 1)),
    _vit("samvit_base_patch16_224", 0, "patches", global_attn_indexes=(1,), window_size=2, attention=False),
    Entry("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 2}, 64),
    Entry("swinv2_tiny_window8_256", {**SWIN, "window_size": 2}, 64),
    Entry("pvt_v2_b0", {**STAGES, "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 1, 1)}, 64),
    Entry("maxvit_pico_rw_256", {"img_size": 64}, 64),
    Entry("coatnet_pico_rw_224", {"img_size": 64}, 64),
    Entry("convnext_atto", {**STAGES, "dims": (8, 8, 16, 16)}, 64),
    Entry("convnextv2_atto", {**STAGES, "dims": (8, 8, 16, 16)}, 64),
    Entry("mvitv2_tiny", {"img_size": 64}, 64),
    Entry("tnt_s_patch16_224", {"img_size": 64, "depth": 2}, 64),
    Entry("cait_xxs24_224", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}, 32),
    Entry("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2}, 64),
    Entry("volo_d1_224", {"img_size": 64}, 64),
    Entry("convit_tiny", {"img_size": 32, "depth": 3, "local_up_to_layer": 1}, 32),
    Entry("coat_lite_tiny", {"img_size": 64}, 64),
    Entry("davit_tiny", {**STAGES, "embed_dims": (16, 16, 16, 16), "num_heads": (1, 1, 1, 1)}, 64),
    Entry("hiera_tiny_224", {"img_size": 64}, 64),
    Entry("pit_ti_224", {"img_size": 64}, 64),
    Entry("gcvit_xxtiny", {"img_size": 64}, 64),
    Entry("mobilevit_xxs", {}, 64),
    Entry("edgenext_xx_small", {}, 64),
    Entry("resnet18", {}, 64),
    Entry("efficientnet_b0", {}, 64),
    Entry("torchvision vit", {}, 32, "ln_1", source="torchvision"),
    Entry("ViT", {}, 32, "layernorm_before", source="transformers"),
    Entry("DeiT", {}, 32, "layernorm_before", 2, source="transformers"),
    Entry("Beit", {}, 32, "layernorm_before", 1, "patches", source="transformers"),
    Entry("Dinov2", {}, 32, "norm1", 1, "all", source="transformers"),
    Entry("Dinov2WithRegisters", {}, 32, "norm1", 5, "all without registers", source="transformers"),
    Entry("DINOv3ViT", {}, 32, "norm1", 5, source="transformers"),
    Entry("Swin", {}, 64, source="transformers"),
    Entry("ConvNext", {}, 64, source="transformers"),
)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic gets a value that matters; float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.is_floating_point() or "rope" in name or "periods" in name or "inv_freq" in name:
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.3 * noise.abs())
            elif x.ndim > 1 and isinstance(x, nn.Parameter):
                x.copy_(noise * (2.0 / x[0].numel()) ** 0.5)
            elif isinstance(x, nn.Parameter) or name.endswith("running_mean"):
                one = any(word in name for word in ("norm", "ls1", "ls2", "gamma", "lambda", "layer_scale", "bn"))
                x.copy_(0.3 * noise + (1.0 if one and not name.endswith(("bias", "running_mean")) else 0.0))
    return model.double().eval()


def build(entry: Entry) -> nn.Module:
    if entry.source == "torchvision":
        from torchvision.models import VisionTransformer

        return shake(VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=CLASSES))
    if entry.source == "transformers":
        return shake(_from_transformers(entry.name))
    import timm

    return shake(timm.create_model(entry.name, num_classes=CLASSES, **entry.options))


def _from_transformers(name: str) -> nn.Module:
    import transformers

    config = dict(TRANSFORMERS)
    if name == "Swin":
        config = {
            "image_size": 64,
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "window_size": 2,
        }
    if name == "ConvNext":
        config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    if name == "Beit":
        config |= {"use_relative_position_bias": True, "use_mean_pooling": True}
    if name == "DINOv3ViT":
        config |= {"num_register_tokens": 4}
    made = getattr(transformers, f"{name}Config")(**{**config, "num_labels": CLASSES})
    if name == "DINOv3ViT" and not hasattr(transformers, "DINOv3ViTForImageClassification"):
        return _Headed(transformers.DINOv3ViTModel(made), 24)
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(made)
    return model


class _Headed(nn.Module):
    """A transformers body that has no classification head of its own, with a linear one on its CLS token."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).last_hidden_state[:, 0])


class Reference:
    """A model asked by hooks alone."""

    def __init__(self, entry: Entry, model: nn.Module, images: Tensor) -> None:
        self.entry, self.model, self.images = entry, model, images
        modules = dict(model.named_modules())
        self.norms = [m for name, m in modules.items() if name.rpartition(".")[2] == entry.norm] if entry.norm else []

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

    def matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Every block's attention (B, H, T, T), first to last, and the target's gradient there."""
        seen: list[Tensor] = []

        def note(a: Tensor) -> Tensor:
            if not a.requires_grad:
                a = a.detach().requires_grad_()
            seen.append(a)
            return a

        handles, undo = _watch_attention(self.model, note, len(self.images))
        try:
            y = self.score()[:, TARGET].sum()
        finally:
            for handle in handles:
                handle.remove()
            undo()
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


TOKENS = ("cdam", "reciprocam")
MATRIX = ("attention", "attention_rollout", "gradient_rollout", "relevance_propagation")
QUICK: dict[str, dict[str, Any]] = {
    "smooth_cdam": {"samples": 2}, "integrated_cdam": {"steps": 2}, "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2}, "rsi_gradcam": {"steps": 2, "baseline": "zero"},
}  # fmt: skip


def try_entry(entry: Entry, methods: tuple[str, ...] | None = None) -> dict[str, float | str]:
    """method → worst relative error, "ran", or the reason of a refusal; "FAULT …" for what must not happen."""
    from lidc_xai.errors import LidcXaiError
    from lidc_xai.explain import explain, refusals

    model = build(entry)
    images = torch.randn(2, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = Reference(entry, model, images)
    refused = refusals(model)
    found: dict[str, float | str] = {}
    for name in methods or _methods():
        try:
            result = explain(model, images, TARGET, name, **QUICK.get(name, {}))
        except LidcXaiError as error:
            found[name] = str(error).partition("cannot explain this model: ")[2] or str(error)
            if name not in refused:
                found[name] = f"FAULT not announced: {found[name]}"
            continue
        if name in refused:
            found[name] = f"FAULT announced but ran: {refused[name]}"
            continue
        if not result.relevance.isfinite().all():
            found[name] = "FAULT not finite"
            continue
        wanted = _expected(reference, name, result)
        got = result.relevance[:, 0].flatten(1)
        found[name] = "ran" if wanted is None else float((got - wanted).abs().max() / wanted.abs().max())
    return found


def _expected(reference: Reference, name: str, result: Any) -> Tensor | None:
    entry = reference.entry
    if name in ("saliency",):
        return reference.saliency()
    if name == "gradcam":
        layer = result.extras["layer"]
        if layer.startswith("norm1 of block"):
            return reference.gradcam()
        shape = (result.relevance.shape[-2], result.relevance.shape[-1])
        return reference.gradcam(reference.model.get_submodule(layer), shape)
    if (entry.norm and name in TOKENS) or (entry.norm and entry.attention and name in MATRIX):
        answer: Tensor = getattr(reference, name)()
        return answer
    return None


def _methods() -> tuple[str, ...]:
    from lidc_xai.explain import list_methods

    return tuple(list_methods())


def markdown(results: dict[str, dict[str, float | str]], head: str) -> str:
    """The table: a row for each architecture, a column for each method, reasons as numbered notes."""
    methods = _methods()
    notes: dict[str, int] = {}
    lines = [head, "", "| architecture | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for label, row in results.items():
        cells = []
        for name in methods:
            value = row[name]
            if isinstance(value, float):
                cells.append(f"{value:.0e}")
            elif value == "ran" or value.startswith("FAULT"):
                cells.append(value)
            else:
                cells.append(f"[{notes.setdefault(value, len(notes) + 1)}]")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "Not offered, because:", ""]
    lines += [f"{number}. {words}" for words, number in notes.items()]
    return "\n".join(lines) + "\n"


class Options(Config):
    """Which architectures are tried."""

    only: list[str] = Field([], description="Parts of their names, separated by commas (none: all).")


def try_all(args: Options, run: Run) -> None:
    """Try every method on each architecture; the table is written into --out."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.path.append(os.environ.get("CASE_SITE", ""))
    results = {}
    for entry in ENTRIES:
        if args.only and not any(part in entry.name for part in words(args.only)):
            continue
        label = f"{entry.name}{' (windows)' if 'window_size' in entry.options and 'samvit' in entry.name else ''}"
        label += f" ({entry.source})" if entry.source == "transformers" else ""
        try:
            results[label] = try_entry(entry)
        except ImportError:
            print(f"{label}: left out, its package is not installed", flush=True)
            continue
        worst = max((value for value in results[label].values() if isinstance(value, float)), default=0.0)
        faults = {name: value for name, value in results[label].items() if is_fault(value)}
        print(f"{label}: worst {worst:.1e}, {faults or 'no fault'}", flush=True)
    run.results = {"found": results}
    if args.out:
        import timm

        head = HEAD.format(count=len(results), torch=torch.__version__, timm=timm.__version__)
        write_text(need_out(args) / "families.md", markdown(results, head))


def is_fault(value: float | str) -> bool:
    return value > 1e-10 if isinstance(value, float) else value.startswith("FAULT")


HEAD = """# Families and methods

Written by `benchmarks/families.py`, which tries every method on {count} architectures (torch {torch}, timm {timm}):
each at its smallest width and two blocks, 32 to 64 pixels, random weights with layer scales, positions and biases
shaken, in float64. A number is the worst relative error against a reference by hooks on the model as its user calls
it; "ran": finite, without such a reference here (the suite has others); a number in brackets: refused, for the reason
that stands below the table with that number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("families", Options, try_all, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
