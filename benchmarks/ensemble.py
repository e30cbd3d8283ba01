"""What several models cost beside one: five fine-tuned copies of a backbone explained together, one by one, and alone.

    OMP_NUM_THREADS=1 python benchmarks/ensemble.py [--backbone dinov2_vits14] [--size 112] [--learned 4] [--models 5]

The copies share all but their last ``--learned`` blocks, norm and head, which are moved at random (a time does not
depend on the values). One crop, one plane, eight turns, CDAM of nine outputs. The medians over ``--rounds`` rounds, in
which the three ways take turns, and their ratios; and the floating point operations of the matrix products, which a
busy machine does not change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median

import numpy as np
import torch
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode

from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.imaging import NoduleCrop
from lidc_xai.models import NoduleModel, Preprocess, build_model
from lidc_xai.nodules.ensemble import Ensemble
from lidc_xai.ratings import OUTPUTS
from lidc_xai.run import Run


def tuned(base: NoduleModel, learned: int, seed: int) -> NoduleModel:
    """A copy whose last blocks, norm and head are its own."""
    copied = deepcopy(base)
    blocks: torch.nn.Module = copied.backbone.blocks  # type: ignore[assignment]
    parts = [*list(blocks.children())[-learned:], copied.backbone.norm, copied.head]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():  # type: ignore[union-attr]
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    return copied


class Options(Config):
    """The models that are explained."""

    backbone: str = Field("dinov2_vits14", description="Backbone of every model.")
    size: int = Field(112, ge=16, description="Side of the input in pixels.")
    learned: int = Field(4, ge=1, description="Last blocks that are each model's own.")
    models: int = Field(5, ge=1, description="How many.")
    rounds: int = Field(5, ge=1, description="Of which the medians are taken.")


def measure(options: Options, run: Run) -> None:
    """Measure and print."""
    base = build_model(
        options.backbone, OUTPUTS, size=options.size, seed=0, preprocess=Preprocess(views=("axial",), turns=8)
    )
    models = [tuned(base, options.learned, seed) for seed in range(options.models)]
    voxels = np.random.default_rng(0).normal(-700, 250, (32, 32, 32)).astype(np.float32)
    crop = NoduleCrop(voxels, np.eye(4), nodule_id="P-1-s1-n0")
    together, single = Ensemble(models), Ensemble(models[:1])
    ones = [Ensemble([model]) for model in models]
    every = list(range(len(models)))
    ways: dict[str, Callable[[], object]] = {
        "one model": lambda: single.maps(crop, [0], ["cdam"], None, {}),
        f"{len(models)} one by one": lambda: [one.maps(crop, [0], ["cdam"], None, {}) for one in ones],
        f"{len(models)} together": lambda: together.maps(crop, every, ["cdam"], None, {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()  # what is found out about each model once
    for _ in range(options.rounds):
        for name, call in ways.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    threads = torch.get_num_threads()
    print(f"{options.backbone}, {options.size} px, last {options.learned} blocks learned; {threads} thread(s)")
    first = median(seconds["one model"])
    counted = {}
    for name, call in ways.items():
        with FlopCounterMode(display=False) as counter:
            call()
        counted[name] = counter.get_total_flops()
    for name, times in seconds.items():
        timed, operations = median(times) / first, counted[name] / counted["one model"]
        print(f"{name:16} {median(times):7.3f} s of a processor  {timed:5.2f} x   operations {operations:5.2f} x")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("ensemble", Options, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
