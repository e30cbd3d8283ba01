"""What pixel and CAM methods cost on a CNN, in plain forward passes of the same model, beside captum and grad-cam.

    python benchmarks/explain_cnn.py --models resnet50 --targets 1 --targets 8 --clock cpu --out runs/speed-cnn

Figures are made as in ``explain.py``. Methods along a path or over noise run with 5 of 50 points and are extrapolated
(×10), ours and theirs alike.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import captum.attr as captum
import pytorch_grad_cam as grad_cam
import timm
import torch
from explain import Call, in_forwards, keep, markdown, plain_forward, title_of
from pydantic import Field
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.explain import explain
from lidc_xai.run import Run

LAYERS = {"resnet50": "layer4", "vgg16": "features.29", "convnext_tiny": "stages.3"}
GRAD_CAM = {
    "gradcam": grad_cam.GradCAM,
    "gradcam_plus_plus": grad_cam.GradCAMPlusPlus,
    "xgradcam": grad_cam.XGradCAM,
    "linear_approximation": grad_cam.HiResCAM,
    "fullgrad": grad_cam.FullGrad,
}
LONG: dict[str, dict[str, Any]] = {
    "rsi_gradcam": {"steps": 5, "baseline": "black"},
    "smoothgrad": {"samples": 5},
    "integrated_gradients": {"steps": 5},
}
METHODS = [*GRAD_CAM, "saliency", "input_x_gradient", *LONG]


def calls(method: str, name: str, model: Any, x: Tensor, classes: list[int]) -> dict[str, Call]:
    """Who → call, for every class in ``classes``."""
    layer = LAYERS[name]
    module = model.get_submodule(layer)
    options = LONG.get(method, {})
    where = {"layer": layer} if (method in GRAD_CAM and method != "fullgrad") or method == "rsi_gradcam" else {}
    found: dict[str, Call] = {"ours": lambda: explain(model, x, classes, method, **where, **options)}

    def each(attribution: Any, **more: Any) -> Call:
        return lambda: [attribution.attribute(x, target=c, **more) for c in classes]

    if method in GRAD_CAM:
        theirs = GRAD_CAM[method](model, [] if method == "fullgrad" else [module])
        found["grad-cam"] = lambda: [theirs(x, [ClassifierOutputTarget(c)]) for c in classes]
    if method == "gradcam":
        found["captum"] = each(captum.LayerGradCam(model, module))
    elif method == "saliency":
        found["captum"] = each(captum.Saliency(model), abs=False)
    elif method == "input_x_gradient":
        found["captum"] = each(captum.InputXGradient(model))
    elif method == "integrated_gradients":
        found["captum"] = each(captum.IntegratedGradients(model), n_steps=5)
    elif method == "smoothgrad":
        found["captum"] = each(captum.NoiseTunnel(captum.Saliency(model)), nt_samples=5, stdevs=0.5, abs=False)
    return found


def times(args: Options, name: str, targets: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=8).eval().to(args.device)
    x = torch.randn(1, 3, 224, 224, device=args.device)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    rows = []
    for method in METHODS:
        factor = 10 if method in LONG else 1
        for who, call in calls(method, name, model, x, list(range(targets))).items():
            call()
            repeats = args.repeats if who == "ours" and factor == 1 else max(1, args.repeats // 3)
            value = factor * in_forwards(call, lambda: plain_forward(model, x), repeats, clock, wait)
            row = {"model": name, "targets": targets, "method": method, "who": who, "forwards": value}
            rows.append({**row, "extrapolated": factor})
            print(
                f"{name} {targets} targets  {method:22s} {who:10s} {value:8.2f}{' ×10' if factor > 1 else ''}",
                flush=True,
            )
    return rows


class Options(Config):
    """What is timed, on what."""

    models: list[Literal["resnet50", "vgg16", "convnext_tiny"]] = Field(["resnet50"], description="Repeat for several.")
    targets: list[int] = Field([1, 8], description="Classes that are explained at once; repeat for several.")
    repeats: int = Field(9, ge=1, description="Pairs of which the median counts.")
    threads: int = Field(1, ge=1, description="Processor threads.")
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["wall", "cpu"] = Field("wall", description="cpu: for a machine that others use.")


def compare(args: Options, run: Run) -> None:
    """Time every method beside the others' and print the table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    rows = [row for name in args.models for targets in args.targets for row in times(args, name, targets)]
    title = title_of(args)
    print(markdown(rows, {}, title))
    run.results = {"title": title, "times": rows}
    keep(args, "explain_cnn.md", markdown(rows, {}, title))


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("explain_cnn", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
