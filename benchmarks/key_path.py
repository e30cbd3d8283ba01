"""How much of CDAM runs through the keys, the path that the published per-token formula leaves out.

    python benchmarks/key_path.py --model runs/demo/run --store runs/demo/store

For every output: the key path's share of the summed magnitude, mean |S_key| / (|S_key| + |S_value|) over images with
sums over tokens; Spearman's correlation of the value path alone with the whole map; and the share of tokens whose sign
the value path alone gets wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from scipy.stats import spearmanr

from lidc_xai.commands.common import need_model, need_path
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.explain import explain
from lidc_xai.imaging import CropStore
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.run import Run


class Options(Config):
    """The model and the nodules."""

    model: str = Field(description="Folder of a model, or the name of one that is shipped.")
    store: Path = Field(description="Store of crops.")


def measure(options: Options, run: Run) -> None:
    """Explain every plane by either path and print a row per output."""
    model, store = need_model(options.model), CropStore(need_path(options.store, "--store"))
    images = torch.cat([nodule_images(model, store.load(name), VIEWS) for name in store.nodule_ids])
    value, key = (explain(model, images, parts=part).relevance.flatten(2) for part in ("value", "key"))
    whole = value + key
    share = key.abs().sum(-1) / (key.abs().sum(-1) + value.abs().sum(-1))
    wrong = (whole * value < 0).float().mean(-1)
    print(f"{len(images)} planes of {len(store)} nodules\n\n| output | key share | Spearman | sign differs |")
    print("|---|---|---|---|")
    for t, name in enumerate(model.output_names):
        ranks = [spearmanr(whole[b, t], value[b, t]).statistic for b in range(len(images))]
        print(f"| {name} | {share[:, t].mean():.2f} | {sum(ranks) / len(ranks):.2f} | {wrong[:, t].mean():.2f} |")
    print(f"| mean | {share.mean():.2f} | | {wrong.mean():.2f} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("key_path", Options, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
