"""Images per second of fidelity and box sensitivity against plain batched forward passes, and the straightforward way.

Three figures for each model, in the same process and on the same images:
  ceiling         plain model(batch) passes of ready-made images, batches of the same size
  fidelity, boxes the package's functions, counted in perturbed images
  straightforward one image and one percentage at a time, sorting anew for each

On a CPU the clock counts processor seconds of this process, so that other work on the machine does not count.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --models demo,dino_vits16 --images 4 --out runs/speed
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time

import torch
from pydantic import Field
from torch import Tensor, nn

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.evaluation import box_sensitivity, fidelity
from lidc_xai.evaluation.replacement import Replacement
from lidc_xai.models import build_model
from lidc_xai.run import Run

MODELS = {"demo": ("vit_small64_p8", 64), "dino_vits16": ("dino_vits16", 224), "dino_vits8": ("dino_vits8", 224)}


class Options(Config):
    """What is timed, and how often."""

    models: list[str] = Field(["demo", "dino_vits16"], min_length=1, description=f"Of {', '.join(MODELS)}.")
    images: int = Field(4, ge=1, description="Images whose maps are measured.")
    batch: int = Field(32, ge=1, description="Images per forward pass.")
    boxes: int = Field(100, ge=3, description="Boxes of each of the ten sizes.")
    repeats: int = Field(3, ge=1, description="Runs of each; the median counts.")
    device: str = Field("cpu", description="cpu, cuda or cuda:N.")


def compare(options: Options, run: Run) -> None:
    """Measure each model and print its row."""
    if options.out:
        need_out(options)
    print("model         forward/s  fidelity/s  of ceiling  boxes/s  of ceiling  straightforward/s  faster by")
    rows = []
    for name in words(options.models):
        row = measure(name, options)
        rows.append(row)
        print(
            f"{name:12}  {row['ceiling']:9.1f}  {row['fidelity']:10.1f}  {row['fidelity'] / row['ceiling']:10.0%}  "
            f"{row['boxes']:7.1f}  {row['boxes'] / row['ceiling']:10.0%}  {row['straightforward']:17.1f}  "
            f"{row['fidelity'] / row['straightforward']:8.1f}x"
        )
    run.results = {"rows": rows}


def measure(name: str, options: Options) -> dict[str, float | str]:
    """Images per second of one model, each way; the ways take turns, so that a busy machine hurts all alike."""
    backbone, size = MODELS[name]
    model = build_model(backbone, ["malignancy"], seed=0).to(options.device).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, size, size, generator=generator).to(options.device)
    patch = model.backbone.patch_embed.patch_size[0]
    maps = torch.randn(options.images, size // patch, size // patch, generator=generator)
    ready = torch.randn(options.batch, 3, size, size, generator=generator).to(options.device)
    perturbed = options.images * 2 * 19 + 2 * options.images
    boxed = options.images * (10 * options.boxes + 1)
    ways = {
        "ceiling": (perturbed, lambda: plain(model, ready, perturbed)),
        "fidelity": (perturbed, lambda: fidelity(model, images, maps, "malignancy", max_batch=options.batch)),
        "boxes": (
            boxed,
            lambda: box_sensitivity(model, images, maps, "malignancy", boxes=options.boxes, max_batch=options.batch),
        ),
        "straightforward": (21 * 2, lambda: straightforward(model, images[:1], maps[:1])),
    }
    for _, run in ways.values():  # warm up
        run()
    clock = perf_counter if options.device.startswith("cuda") else process_time
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, (count, run) in ways.items():
            started = clock()
            run()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[way].append((clock() - started) / count)
    return {"model": name, **{way: 1 / median(times) for way, times in seconds.items()}}


def plain(model: nn.Module, ready: Tensor, count: int) -> None:
    """``count`` images through the model in full batches (the last one cut)."""
    with torch.no_grad():
        for start in range(0, count, len(ready)):
            model(ready[: min(len(ready), count - start)])


def straightforward(model: nn.Module, images: Tensor, maps: Tensor) -> list[list[float]]:
    """MIF and LIF as one would write them down: for each percentage the sorted pixels are replaced one index list."""
    size = images.shape[-1]
    blurred = Replacement().of(images)
    curves = []
    for image, other, tokens in zip(images, blurred, maps, strict=True):
        pixels = tokens.repeat_interleave(size // len(tokens), 0).repeat_interleave(size // len(tokens), 1)
        for descending in (True, False):
            scores = []
            for percent in range(0, 101, 5):
                order = pixels.flatten().argsort(descending=descending)
                changed = image.clone()
                gone = order[: round(percent / 100 * size * size)].to(image.device)
                changed.view(3, -1)[:, gone] = other.reshape(3, -1)[:, gone]
                with torch.no_grad():
                    scores.append(float(model(changed[None])[0, 0]))
            curves.append(scores)
    return curves


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("evaluation", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
