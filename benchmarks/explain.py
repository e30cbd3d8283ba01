"""What every explanation costs on a ViT, in units of one plain forward pass of the same model, in the same run.

    python benchmarks/explain.py --models s16 --targets 8 --out runs/benchmark-explain

Beside each method of ``lidc_xai.explain``: the usual way (hooks and whole backward passes, ``usual_ways.py``), captum,
grad-cam and zennit where they have the method. A figure is the median over ``--repeats`` pairs (a plain forward pass,
then the method), so that the machine's other work falls on both. Ways that would take minutes run with 5 of 50 samples
or steps and are extrapolated (marked ×10). Memory is the peak above the loaded model, in a process of its own: on a CPU
of resident pages, on a GPU of the allocator.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import timm
import torch
from pydantic import Field
from torch import Tensor
from usual_ways import REPEATED, WAYS

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import UsageError
from lidc_xai.explain import explain
from lidc_xai.files import write_text
from lidc_xai.run import Run

MODELS = {"s16": "vit_small_patch16_224", "s8": "vit_small_patch8_224", "b16": "vit_base_patch16_224"}
LAST_BLOCK = ["cdam", "smooth_cdam", "integrated_cdam", "gradcam", "reciprocam", "attention"]
OURS: dict[str, tuple[str | list[str], dict[str, Any]]] = {
    **{name: (name, {}) for name in LAST_BLOCK},
    "all six": (LAST_BLOCK, {}),
    "xgradcam": ("xgradcam", {}),
    "token_ablation, last": ("token_ablation", {"at": "last"}),
    "partial_lrp": ("partial_lrp", {}),
    "attention_rollout": ("attention_rollout", {}),
    "relevance_propagation": ("relevance_propagation", {}),
    "gradient_rollout": ("gradient_rollout", {}),
    "transformer_attribution": ("transformer_attribution", {}),
    "token_input_x_gradient": ("token_input_x_gradient", {}),
    "attn_lrp": ("attn_lrp", {}),
    "attn_lrp, γ": ("attn_lrp", {"gamma_linear": 0.05, "gamma_conv": 0.25, "at": "pixels"}),
    "libragrad": ("libragrad", {}),
    "legrad": ("legrad", {}),
    "saliency": ("saliency", {}),
    "fullgrad": ("fullgrad", {}),
    "smoothgrad": ("smoothgrad", {}),
    "integrated_gradients": ("integrated_gradients", {}),
    "token_ablation": ("token_ablation", {}),
}
SLOW = ("token_ablation", "smoothgrad", "integrated_gradients")
Call = Callable[[], Any]


def others(name: str, model: Any, x: Tensor, classes: list[int]) -> dict[str, tuple[Call, int]]:
    """The same by other people's code: label → (call, factor by which its time is extrapolated)."""
    found: dict[str, tuple[Call, int]] = {}
    if name in WAYS:
        extra = {REPEATED[name]: 5} if name in REPEATED else {}
        found["usual way"] = (lambda: WAYS[name](model, x, classes, **extra), 10 if extra else 1)
    import captum.attr as captum

    def each(attribution: Any, **options: Any) -> Call:
        return lambda: [attribution.attribute(x, target=c, **options) for c in classes]

    if name == "cdam":
        found["captum"] = (each(captum.LayerGradientXActivation(model, model.blocks[-1].norm1)), 1)
    if name == "saliency":
        found["captum"] = (each(captum.Saliency(model), abs=False), 1)
    if name == "integrated_gradients":
        found["captum"] = (each(captum.IntegratedGradients(model), n_steps=5), 10)
    if name == "smoothgrad":
        tunnel = captum.NoiseTunnel(captum.Saliency(model))
        found["captum"] = (each(tunnel, nt_samples=5, nt_samples_batch_size=1, stdevs=0.5, abs=False), 10)
    if name in ("gradcam", "xgradcam"):
        found["grad-cam"] = (_grad_cam(name, model, x, classes), 1)
    if name == "attn_lrp, γ" and find_spec("zennit") is not None:
        found["zennit"] = (_zennit(model, x, classes), 1)
    return found


def _zennit(model: Any, x: Tensor, classes: list[int]) -> Call:
    """zennit's γ rule on every linear layer and convolution, one backward pass a target; the rest is plain gradient."""
    from zennit.composites import LayerMapComposite
    from zennit.rules import Gamma

    def run() -> None:
        rules = [(torch.nn.Conv2d, Gamma(0.25)), (torch.nn.Linear, Gamma(0.05))]
        with LayerMapComposite(rules).context(model) as changed:
            pixels = x.clone().requires_grad_()
            y = changed(pixels)
            for c in classes:
                torch.autograd.grad(y[0, c], pixels, retain_graph=True)

    return run


def _grad_cam(name: str, model: Any, x: Tensor, classes: list[int]) -> Call:
    from pytorch_grad_cam import GradCAM, XGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rows, columns = model.patch_embed.grid_size

    def to_maps(t: Tensor) -> Tensor:
        return t[:, model.num_prefix_tokens :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    made = {"gradcam": GradCAM, "xgradcam": XGradCAM}[name](model, [model.blocks[-1].norm1], to_maps)
    return lambda: [made(x, [ClassifierOutputTarget(c)]) for c in classes]


def in_forwards(call: Call, forward: Call, repeats: int, clock: Callable[[], float], wait: Call) -> float:
    """Median over pairs of time(call) / time(forward)."""
    ratios = []
    for _ in range(repeats):
        marks = []
        for step in (forward, call):
            wait()
            start = clock()
            step()
            wait()
            marks.append(clock() - start)
        ratios.append(marks[1] / marks[0])
    return median(ratios)


def build(name: str, device: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(MODELS[name], num_classes=8).eval().to(device)
    return model, torch.randn(1, 3, 224, 224, device=device)


def plain_forward(model: Any, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def times(args: Options, name: str, targets: int) -> list[dict[str, Any]]:
    model, x = build(name, args.device)
    classes = list(range(targets))
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    rows = []
    for label in args.methods or OURS:
        method, options = OURS[label]
        calls: dict[str, tuple[Call, int]] = {
            "ours": (lambda m=method, o=options: explain(model, x, classes, m, **o), 1)  # type: ignore[misc]
        }
        calls |= {} if args.only_ours else others(label, model, x, classes)
        for who, (call, factor) in calls.items():
            repeats = args.repeats if who == "ours" and label not in SLOW else max(1, args.repeats // 5)
            if repeats > 1:
                call()
            value = factor * in_forwards(call, lambda: plain_forward(model, x), repeats, clock, wait)
            rows.append({"model": name, "targets": targets, "method": label, "who": who, "forwards": value})
            rows[-1]["extrapolated"] = factor
            print(
                f"{name} {targets} targets  {label:24s} {who:10s} {value:9.2f}{' ×10' if factor > 1 else ''}",
                flush=True,
            )
    return rows


def peak_bytes(name: str, targets: int, label: str, device: str) -> int:
    """Peak memory above the loaded model of one call (of a plain forward pass for the label "forward")."""
    model, x = build(name, device)
    run: Call = lambda: plain_forward(model, x)  # noqa: E731
    if label != "forward":
        method, options = OURS[label]
        run = lambda: explain(model, x, list(range(targets)), method, **options)  # noqa: E731
    run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(args: Options, name: str, targets: int) -> dict[str, int]:
    """Each label in a process of its own, whose malloc gives pages back at once."""
    found = {}
    for label in ["forward", *(args.methods or [label for label in OURS if label not in SLOW])]:
        call = f"from explain import peak_bytes; print(peak_bytes({name!r}, {targets}, {label!r}, {args.device!r}))"
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        ran = subprocess.run(
            [sys.executable, "-c", call], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            env=environment,
        )  # fmt: skip
        found[label] = int(ran.stdout.split()[-1])
        print(f"{name} {targets} targets  {label:24s} {found[label] / 2**20:9.1f} MiB", flush=True)
    return found


def markdown(rows: list[dict[str, Any]], peaks: dict[str, dict[str, int]], title: str) -> str:
    lines = [
        title,
        "",
        "| model | targets | method | ours | usual way | captum | grad-cam | zennit | peak / forward's |",
    ]
    lines.append("|" + "---|" * 9)
    for model, targets, label in dict.fromkeys((row["model"], row["targets"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["targets"], row["method"]) == (model, targets, label)]
        cells = {row["who"]: f"{row['forwards']:.2f}" + (" (×10)" if row["extrapolated"] > 1 else "") for row in mine}
        peak = peaks.get(f"{model} {targets}", {})
        ratio = f"{peak[label] / peak['forward']:.2f}" if label in peak else ""
        who = [cells.get(name, "") for name in ("ours", "usual way", "captum", "grad-cam", "zennit")]
        lines.append(f"| {model} | {targets} | {label} | " + " | ".join(who) + f" | {ratio} |")
    return "\n".join(lines) + "\n"


class Options(Config):
    """What is timed, on what."""

    models: list[Literal["s16", "s8", "b16"]] = Field(["s16", "s8"], description="Repeat for several.")
    targets: list[int] = Field([1, 8], description="Classes that are explained at once; repeat for several.")
    methods: list[str] = Field([], description="Repeat for several (none: all).")
    repeats: int = Field(15, ge=1, description="Pairs of which the median counts.")
    threads: int = Field(1, ge=1, description="Processor threads.")
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["wall", "cpu"] = Field("wall", description="cpu: for a machine that others use.")
    only_ours: bool = Field(False, description="No other library's methods.")
    no_memory: bool = Field(False, description="Times alone.")


class Timed(Protocol):
    """What a table tells of its machine."""

    device: str
    threads: int
    clock: str


def title_of(args: Timed) -> str:
    """What the figures are, and of which machine."""
    cpu = f"CPU, {args.threads} thread(s), {args.clock} clock"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    libraries = f"torch {torch.__version__}, timm {timm.__version__}"
    return f"In plain forward passes; {machine}; {libraries}; 224 px, 1 image"


def keep(args: Config, name: str, text: str) -> None:
    """Write the table beside run.json, where a folder was given."""
    if args.out:
        write_text(need_out(args) / name, text)


def compare(args: Options, run: Run) -> None:
    """Time every method beside the others' and print the table."""
    for label in args.methods:
        if label not in OURS:
            raise UsageError(f"--methods {label}: wanted {', '.join(OURS)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    rows, peaks = [], {}
    for name in args.models:
        for targets in args.targets:
            rows += times(args, name, targets)
            if not args.no_memory:
                peaks[f"{name} {targets}"] = memory(args, name, targets)
    title = title_of(args)
    print(markdown(rows, peaks, title))
    run.results = {"title": title, "times": rows, "peak_bytes": peaks}
    keep(args, "explain.md", markdown(rows, peaks, title))


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("explain", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
