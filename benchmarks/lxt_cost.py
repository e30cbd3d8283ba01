"""What lxt's AttnLRP costs on torchvision's ViT of the size of S/16, in plain forward passes of it.

    python benchmarks/lxt_cost.py --targets 8 --repeats 5

lxt patches torchvision's classes for the whole process, so that it is measured in one of its own; it has no rules for
timm's classes. One backward pass a target, on one forward pass with gradients, as its authors have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Literal

import torch
import torchvision
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.run import Run


def small_vit() -> Any:
    """Torchvision's class with the width, depth and heads of ViT-S/16."""
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536, num_classes=8).eval()


def maps(model: Any, x: Tensor, targets: int) -> list[Tensor]:
    """Pixel × gradient under the patched classes, for each target."""
    pixels = x.clone().requires_grad_()
    y = model(pixels)
    slopes = [torch.autograd.grad(y[0, c], pixels, retain_graph=c < targets - 1)[0] for c in range(targets)]
    return [x * slope for slope in slopes]


def forwards(targets: int, repeats: int, clock: Callable[[], float]) -> float:
    """Median over pairs of time(maps) / time(plain forward pass); the plain passes run before lxt patches."""
    from lxt.efficient import monkey_patch

    model, x = small_vit(), torch.randn(1, 3, 224, 224)
    model.requires_grad_(False)

    def plain() -> None:
        with torch.inference_mode():
            model(x)

    def timed(call: Callable[[], Any]) -> float:
        start = clock()
        call()
        return clock() - start

    plain()
    before = [timed(plain) for _ in range(2 * repeats)]
    monkey_patch(torchvision.models.vision_transformer, verbose=False)
    maps(model, x, targets)
    return median(timed(lambda: maps(model, x, targets)) for _ in range(repeats)) / median(before)


class Options(Config):
    """What to measure."""

    targets: int = Field(1, ge=1, description="Maps of one picture.")
    repeats: int = Field(5, ge=1, description="Timings, of which the median counts.")
    clock: Literal["wall", "cpu"] = Field("cpu", description="Time that passed, or of the processor.")


def measure(options: Options, run: Run) -> None:
    """One line: the figure."""
    torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(f"{forwards(options.targets, options.repeats, clock):.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("lxt_cost", Options, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
