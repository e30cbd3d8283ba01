"""Every backbone: does it build, load a file in its publisher's format, take a training step, explain; and what a step
costs.

    python benchmarks/backbones.py [--names dino_vits16,deit_small] [--batch 2] [--repeats 3]

A step is what training does with a batch that is in memory (augment, preprocess, forward, loss, backward, optimiser);
"plain" is the timm network's forward and backward on images that are ready, in the same process; both in seconds of
processor time. The file is written here with random numbers under the publisher's keys and shapes
(tests/models/official_keys). Prints a Markdown table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.common import words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.data.augmentation import Augmentation
from lidc_xai.data.transforms import MovePlanes
from lidc_xai.explain import explain
from lidc_xai.models import BACKBONES, Backbone, build_backbone, build_model, list_backbones
from lidc_xai.ratings import OUTPUTS
from lidc_xai.run import Run
from lidc_xai.training.loop.losses import masked_loss
from lidc_xai.training.loop.optimiser import build_optimiser
from lidc_xai.training.options import LossOptions, OptimiserOptions

KEYS = Path(__file__).resolve().parents[1] / "tests" / "models" / "official_keys"


class Options(Config):
    """Which backbones, in what portions."""

    names: list[str] = Field([], description="Separated by commas (none: all).")
    batch: int = Field(2, ge=1, description="Planes per step.")
    repeats: int = Field(3, ge=1, description="Steps of which the fastest counts.")


def table(options: Options, run: Run) -> None:
    """Try each backbone and print its row."""
    print(f"threads {torch.get_num_threads()}, batch {options.batch}, best of {options.repeats}\n")
    print("| backbone | tokens | builds | official file | one step | explains | step | plain | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in words(options.names) or list_backbones():
        print(row(BACKBONES[name], options.batch, options.repeats), flush=True)


def row(entry: Backbone, batch: int, repeats: int) -> str:
    """One line of the table; a failure is an exception, not a cell."""
    torch.manual_seed(0)
    loaded = load_official(entry)
    model = build_model(entry.name, OUTPUTS, seed=0)
    planes = torch.randn(batch, 32, 32) * 300 - 600
    targets = torch.cat([torch.randint(2, (batch, 1)).float(), torch.randn(batch, len(OUTPUTS) - 1)], dim=1)
    optimiser = build_optimiser(model, OptimiserOptions())
    before = [parameter.detach().clone() for parameter in model.head.parameters()]
    numbers = torch.stack([Augmentation().draw(str(item), 0, 0, 3).numbers() for item in range(batch)])
    move = MovePlanes(model.preprocess.mean)

    def step() -> None:
        changed = move({"image": planes[:, None], "numbers": numbers})["image"][:, 0]
        outputs = model(model.preprocess.apply(changed))
        masked_loss(outputs, targets, model.output_kinds, LossOptions()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    network = build_backbone(entry.name, num_classes=len(OUTPUTS)).train()
    images = torch.randn(batch, 3, entry.input_size, entry.input_size)

    def plain() -> None:
        network(images).square().mean().backward()
        network.zero_grad(set_to_none=True)

    model.train()
    ours, theirs = best_of((step, plain), repeats)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.head.parameters(), strict=True))
    model.eval()
    method = "cdam" if entry.kind == "vit" else "gradcam"
    found = explain(model, model.preprocess.apply(planes[:1]), method=method)
    engine = f"{method} ({found.engine})" if torch.isfinite(found.relevance).all() else "not finite"
    tokens = (entry.input_size // entry.patch) ** 2 + entry.prefix_tokens if entry.patch else "–"
    shown = (entry.name, tokens, "yes", loaded, "yes" if moved else "no", engine, f"{ours:.2f} s", f"{theirs:.2f} s")
    return f"| {' | '.join(map(str, shown))} | {ours / theirs:.2f} |"


def load_official(entry: Backbone) -> str:
    """Write a file in the publisher's layout and load it; "none published" for this project's own networks."""
    if entry.official_format is None:
        return "none published"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pth"
        state = official_tensors(entry.name)
        torch.save({"model": state} if entry.official_format == "deit" else state, path)
        network = build_backbone(entry.name, weights=path)
    return "yes" if all(torch.isfinite(parameter).all() for parameter in network.parameters()) else "no"


def official_tensors(name: str) -> dict[str, Tensor]:
    """Small random numbers under the publisher's keys."""
    tensors: dict[str, Tensor] = {}
    for line in (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            key, shape = line.split(" ")
            tensors[key] = torch.randn([int(side) for side in shape.split("x") if side]) * 0.02
    return tensors


def best_of(functions: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Processor seconds of each function's fastest call, called in turn; the machine's other work hardly counts."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, found in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            found.append(time.process_time() - start)
    return [min(found[1:]) for found in times]


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("backbones", Options, table, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
