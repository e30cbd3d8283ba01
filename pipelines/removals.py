"""Do removals agree on which map is more faithful? Rank correlations of the methods' order between all removals.

    python pipelines/removals.py --bench runs/fidelity-small,runs/fidelity-dinov2 --out runs/removals
    python pipelines/removals.py --photos photos/msrc --weights dinov2_vits14.safetensors --out runs/removals-photos

``--bench``: folders of ``lidc-xai benchmark`` with fidelity by several replacements, inpainting and ``--model-masked``
(METHODS 13; the parts of several folders count as one cohort). ``--photos``: DINOv2 ViT-S/14 with a linear head, a copy
of it tuned here on the head's training part with patches blurred, and the same benchmark (blur, mean, inpainting) on
photographs of neither. orders.csv: mean area (LIF − MIF) by method and removal; removals.csv: Spearman's ρ of two
removals' orders with a 95 % interval by patient (photograph), random numbers and the centred disc left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tune_masked import MAY_RISE, with_patches_removed

from lidc_xai.commands.common import need_out, need_path, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.benchmark.options import DISC, BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import read_parts, run_benchmark
from lidc_xai.evaluation.cases import Case
from lidc_xai.evaluation.replacement import Replacement
from lidc_xai.evaluation.statistics import spearman
from lidc_xai.models.weights import load_weights
from lidc_xai.progress import say
from lidc_xai.run import Run

NO_METHOD = (DISC, "random")
AREA = "/area"


class Removals(Config):
    """Fields of the script."""

    bench: list[str] = Field([], description="Folders of benchmarks, separated by commas.")
    photos: Path | None = Field(None, description="Folder of MSRC v2: images, masks, classes.json.")
    weights: Path | None = Field(None, description="DINOv2 ViT-S/14, for the photographs.")
    methods: list[str] = Field(["cdam", "attn_lrp", "attention", "gradcam"], description="Maps of photographs.")
    photo_size: int = Field(112, ge=28, description="Side of the photographs in pixels, a multiple of 14.")
    photos_to_learn: int = Field(200, ge=20, description="Photographs for the head, and for the tuned copy.")
    limit: int = Field(40, ge=2, description="Photographs that are measured; as many others watch the tuning.")
    points: int = Field(11, ge=3, description="Points of the curves; 50 % is one of them.")
    epochs: int = Field(3, ge=1, description="Passes of the tuning.")
    rate: float = Field(1e-5, gt=0, description="Learning rate of the tuning.")
    resamples: int = Field(1000, ge=100, description="Resamples of the intervals.")


def measure(config: Removals, run: Run) -> None:
    """The tables of what was measured; the photographs are measured here."""
    folders = [Path(name) for name in words(config.bench)]
    if bool(folders) == (config.photos is not None):
        raise UsageError("give either --bench or --photos")
    out = need_out(config)
    if config.photos is not None:
        folders = [measure_photographs(config, config.photos, out, run)]
    rows = pd.concat([read_parts(folder) for folder in folders], ignore_index=True)
    orders, table = correlations(rows, config.resamples, config.seed)
    write_csv(out / "orders.csv", orders.round(2).reset_index())
    write_csv(out / "removals.csv", table)
    print(out / "removals.csv")


def correlations(rows: pd.DataFrame, resamples: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Methods × removals: mean areas; and ρ of every two removals over the methods, with intervals by cluster."""
    metric, value = rows["metric"].astype(str), rows["value"]
    kept = rows[metric.str.startswith("fidelity") & metric.str.endswith(AREA) & rows["x"].isna() & value.notna()]
    kept = kept.assign(removal=kept["metric"].astype(str).str.removesuffix(AREA), method=kept["method"].astype(str))
    cases = kept.pivot_table(
        index=["cluster", "case"], columns=["removal", "method"], values="value", aggfunc="mean", observed=True
    ).dropna()
    if cases.empty:
        raise DataError("no case has fidelity of every method and removal")
    orders = cases.mean().unstack("removal")
    named = [name for name in orders.index if name not in NO_METHOD]
    removals = list(orders.columns)
    stack = cases.to_numpy().reshape(len(cases), -1)
    at = {key: k for k, key in enumerate(cases.columns)}
    places = np.array([[at[removal, name] for name in named] for removal in removals])
    groups = [np.flatnonzero(cases.index.get_level_values(0) == one) for one in cases.index.unique(0)]
    rng, pairs = np.random.default_rng(seed), list(combinations(range(len(removals)), 2))
    a, b = np.array(pairs).T

    def rho(chosen: np.ndarray) -> np.ndarray:
        means = stack[chosen].mean(0)[places]
        return spearman(means[a], means[b])

    whole = rho(np.arange(len(cases)))
    draws = [rng.integers(len(groups), size=len(groups)) for _ in range(resamples)]
    drawn = np.stack([rho(np.concatenate([groups[k] for k in draw])) for draw in draws])
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    counts = {"methods": len(named), "cases": len(cases), "clusters": len(groups)}
    found = [
        {"a": removals[i], "b": removals[j], "rho": round(whole[k], 3), "low": round(low[k], 3)}
        | {"high": round(high[k], 3)} | counts
        for k, (i, j) in enumerate(pairs)
    ]  # fmt: skip
    return orders, pd.DataFrame(found)


def measure_photographs(config: Removals, photos: Path, out: Path, run: Run) -> Path:
    """The folder of the benchmark of photographs."""
    if config.weights is None:
        raise UsageError("--photos needs --weights, DINOv2 ViT-S/14")
    names = sorted(path.stem for path in (photos / "images").glob("*.jpg"))
    if len(names) < config.photos_to_learn + 2 * config.limit:
        wanted = config.photos_to_learn + 2 * config.limit
        raise DataError(f"{photos}: holds {len(names)} photographs; wanted {wanted} (photos_to_learn and twice limit)")
    names = [names[place] for place in np.random.default_rng(config.seed).permutation(len(names))]
    parts = names[: config.photos_to_learn], *np.split(np.array(names[config.photos_to_learn :]), [config.limit])
    learn, chosen, watch = (list(map(str, part)) for part in (*parts[:2], parts[2][: config.limit]))
    model = with_head(config, photos, learn)
    tuned, rise = tuned_copy(config, model, read(config, photos, learn), read(config, photos, watch))
    run.results = {"rise": rise, "usable": rise <= MAY_RISE}
    options = BenchmarkOptions(
        methods=tuple(words(config.methods)), metrics=("fidelity",), replacements=("blur", "mean"), inpaint=True,
        up_to=50, points=config.points, curves=False, seed=config.seed,
    )  # fmt: skip
    cases = [
        Case(images=image[None], targets=target[None], case_id=name, cluster=name)
        for image, target, name in zip(*read(config, photos, chosen), chosen, strict=True)
    ]
    return run_benchmark(model, cases, out / "bench", options, model_masked=tuned, total=len(cases)).out


def read(config: Removals, photos: Path, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(B,3,size,size) the middle squares, normalised as DINOv2 was trained, and the classes (B,) with most pixels."""
    images, classes = [], []
    for name in names:
        image = _square(Image.open(photos / "images" / f"{name}.jpg").convert("RGB"))
        image = image.resize((config.photo_size, config.photo_size), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255)
        mask = np.asarray(_square(Image.open(next((photos / "masks").glob(f"{name}*")))))
        counts = np.bincount(mask.ravel(), minlength=2)
        classes.append(int(counts[1:].argmax() + 1) if counts[1:].any() else 0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(images) - mean.view(3, 1, 1)) / std.view(3, 1, 1), torch.tensor(classes)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def with_head(config: Removals, photos: Path, learn: Sequence[str]) -> nn.Module:
    """DINOv2 ViT-S/14 with a linear head, fitted to name the largest thing in a picture."""
    if config.photo_size % 14:
        raise UsageError(f"photo_size is a multiple of 14, not {config.photo_size}")
    classes = json.loads((photos / "classes.json").read_text(encoding="utf-8"))
    model: Any = timm.create_model("vit_small_patch14_dinov2", img_size=config.photo_size, num_classes=0)
    load_weights(model, need_path(config.weights, "--weights"), "dinov2_vits14")
    model.eval()
    images, truth = read(config, photos, learn)
    with torch.no_grad():
        features = torch.cat([model(part) for part in images.split(32)]).numpy()
        fitted = LogisticRegression(C=0.1, max_iter=1000).fit(features, truth.numpy())
        model.reset_classifier(len(classes) + 1)
        model.head.weight.zero_()
        model.head.bias.fill_(-20.0)  # what the head never saw is out of the question
        model.head.weight[fitted.classes_] = torch.from_numpy(fitted.coef_).float()
        model.head.bias[fitted.classes_] = torch.from_numpy(fitted.intercept_).float()
    return model


def tuned_copy(
    config: Removals, model: nn.Module, learn: tuple[Tensor, Tensor], watch: tuple[Tensor, Tensor]
) -> tuple[nn.Module, float]:
    """A copy that has seen up to half of the patches blurred; and how far its loss on whole images rose."""
    copied: Any = deepcopy(model)
    removed = Replacement("blur").of(learn[0])
    generator = torch.Generator().manual_seed(config.seed)
    optimiser = torch.optim.AdamW(copied.parameters(), lr=config.rate)
    before = _loss(copied, *watch)
    copied.train()
    for _ in range(config.epochs):
        for places in torch.randperm(len(learn[0]), generator=generator).split(32):
            grid = copied.patch_embed.grid_size
            images = with_patches_removed(learn[0][places], removed[places], grid, generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(copied(images), learn[1][places]).backward()
            optimiser.step()
    after = _loss(copied.eval(), *watch)
    say(f"loss on whole photographs {before:.4f} before, {after:.4f} after")
    return copied, after / before - 1


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, truth: Tensor) -> float:
    return float(nn.functional.cross_entropy(torch.cat([model(part) for part in images.split(32)]), truth))


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("removals", Removals, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
