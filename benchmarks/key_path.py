"""How much of CDAM runs through the keys, the path that the published per-token formula leaves out.

    python benchmarks/key_path.py --model runs/demo/run --store runs/demo/store

For every output: the key path's share of the summed magnitude, mean |S_key| / (|S_key| + |S_value|) over images with
sums over tokens; Spearman's correlation of the value path alone with the whole map; and the share of tokens whose sign
the value path alone gets wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from scipy.stats import spearmanr

from lidc_xai.explain import explain
from lidc_xai.imaging import CropStore
from lidc_xai.imaging.planes import VIEWS
from lidc_xai.models import load_model
from lidc_xai.nodules.maps import nodule_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    args = parser.parse_args()
    model, store = load_model(args.model), CropStore(args.store)
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


if __name__ == "__main__":
    main()
