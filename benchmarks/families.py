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
from collections.abc import Sequence
from typing import Any

import torch
from family_check.architectures import ENTRIES, Entry, build
from family_check.reference import TARGET, Reference
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import UsageError
from lidc_xai.files import write_text
from lidc_xai.run import Run

TOKENS = ("cdam", "reciprocam")
MATRIX = (
    "attention", "attention_rollout", "gradient_rollout", "relevance_propagation", "legrad", "token_ablation",
    "token_input_x_gradient", "libragrad", "attn_lrp",
)  # fmt: skip
SOURCES = "benchmarks/family_check/architectures.py"
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
    by_block = entry.norm and entry.attention
    if name in ("libragrad", "attn_lrp") and getattr(reference.model, "attn_pool", None) is not None:
        return None  # a pooling by attention has rules of its own
    if name == "attn_lrp" and entry.name.startswith("samvit"):
        return None  # its position terms come from the queries: another path than the product's
    if name == "token_ablation" and not (by_block and entry.reads == "cls"):
        return None
    if (entry.norm and name in TOKENS) or (by_block and name in MATRIX):
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
    chosen = [one for one in ENTRIES if not args.only or any(part in one.name for part in words(args.only))]
    if not chosen:
        raise UsageError(f"--only {','.join(args.only)}: is part of no architecture's name; see {SOURCES}")
    for entry in chosen:
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
