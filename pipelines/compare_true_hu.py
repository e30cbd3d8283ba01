"""What the loss of HU costs: the same nodules as true HU and as the PNG edition, read by the fold that saw neither.

    python pipelines/compare_true_hu.py --slices ../shared/lidc/LIDC-IDRI-slices.zip \\
        --volumes ../shared/lidc/volumes51.npz --store runs/png --runs runs/png-seed0 --out runs/png-true-hu

Cubes of true HU are matched to nodules as in validate_png_hu.py. Writes predictions.csv (both rows of every nodule) and
summary.json: per output the correlation of the two, and their errors against the readers, with intervals by patient.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from validate_png_hu import matched_cubes

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.files import write_json
from lidc_xai.imaging import CropStore, NoduleCrop
from lidc_xai.imaging.png.match import match_nodule
from lidc_xai.imaging.png.source import PngEdition
from lidc_xai.nodules._predict import predict
from lidc_xai.ratings import BIOMARKERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and say what stopped it in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, required=True, help="the PNG edition")
    parser.add_argument("--volumes", type=Path, required=True, help="volumes51.npz")
    parser.add_argument("--store", type=Path, required=True, help="the store made from --slices")
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="cross-validated runs (seeds)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        for path in (options.slices, options.volumes, *options.runs):
            if not path.exists():
                raise UsageError(f"{path}: no such file or folder")
        options.out.mkdir(parents=True, exist_ok=True)
        run(options)
    except LidcXaiError as error:
        print(f"compare_true_hu: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(options: argparse.Namespace) -> None:
    """Match, predict, compare."""
    store = CropStore(options.store)
    crops = true_crops(options.slices, options.volumes, round(float(store.manifest["size_mm"].iloc[0])))
    ids = [crop.nodule_id for crop in crops if crop.nodule_id in set(store.nodule_ids)]
    models = [path for run in options.runs for path in sorted(run.glob("fold-*/model"))]
    true = predict(models, [crop for crop in crops if crop.nodule_id in set(ids)])
    estimated = predict(models, store, nodule_ids=ids)
    both = true.merge(estimated, on=["nodule_id", "patient_id"], suffixes=("_true_hu", "_png"))
    both = both[both["out_of_fold_true_hu"].astype(bool)].merge(
        store.manifest[["nodule_id", "label", "n_readers", *BIOMARKERS]], on="nodule_id"
    )
    write_csv(options.out / "predictions.csv", both)
    summary = compare(both)
    write_json(options.out / "summary.json", summary)
    for name, values in summary.items():
        print(name, values)


def true_crops(slices: Path, volumes: Path, size: int) -> list[NoduleCrop]:
    """Crops of ``size`` mm at 1 mm about the middle of the cube's own mask, one per nodule (the surest match)."""
    edition = PngEdition(slices)
    known: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        known.setdefault(nodule.patient_id, []).append(nodule)
    best: dict[str, tuple[float, NoduleCrop]] = {}
    for cube, mask, (sure, png, *_) in matched_cubes(edition, known, volumes):
        nodule = match_nodule(png, known[png.patient_id]).nodule
        ct = np.moveaxis(cube, -1, 0).astype(np.float32)
        middle = _middle(ct, np.moveaxis(mask, -1, 0), size)
        crop = NoduleCrop(middle, np.eye(4), None, None, [], nodule.nodule_id, nodule.series_uid)
        if sure > best.get(nodule.nodule_id, (0.0, crop))[0]:
            best[nodule.nodule_id] = (sure, crop)
    return [crop for _, crop in best.values()]


def _middle(ct: NDArray, mask: NDArray, size: int) -> NDArray:
    where = np.argwhere(mask)
    first = np.round((where.min(0) + where.max(0) + 1) / 2 - size / 2).astype(int)
    low, high = np.maximum(-first, 0), np.maximum(first + size - ct.shape, 0)
    padded = np.pad(ct, list(zip(low, high, strict=True)), constant_values=-1000)
    k, j, i = first + low
    return padded[k : k + size, j : j + size, i : i + size]


def compare(both: pd.DataFrame) -> dict[str, object]:
    """Per output: how far the two rows agree, and how each agrees with the readers."""
    found: dict[str, object] = {"nodules": len(both), "patients": int(both["patient_id"].nunique())}
    rated = both[both["label"].notna() & (both["n_readers"] >= 3)]
    moved = (both["malignancy_probability_true_hu"] - both["malignancy_probability_png"]).abs()
    found["malignancy"] = {
        "spearman_true_hu_png": float(spearman(both["malignancy_logit_true_hu"], both["malignancy_logit_png"])),
        "mean_change_of_probability": str(bootstrap_mean(moved, both["patient_id"].tolist())),
        "rated_nodules": len(rated),
        **{f"auc_{kind}": _auc(rated, f"malignancy_logit_{kind}") for kind in ("true_hu", "png")},
    }
    for name in BIOMARKERS:
        own = both[both[name].notna()] if name in both else pd.DataFrame()
        if f"{name}_true_hu" in both and len(own):
            errors = {kind: (own[f"{name}_{kind}"] - own[name]).abs() for kind in ("true_hu", "png")}
            found[name] = {
                "spearman_true_hu_png": float(spearman(own[f"{name}_true_hu"], own[f"{name}_png"])),
                **{f"mae_{kind}": str(bootstrap_mean(e, own["patient_id"].tolist())) for kind, e in errors.items()},
            }
    return found


def _auc(table: pd.DataFrame, column: str) -> float | None:
    labels = table["label"].astype(int)
    return float(roc_auc_score(labels, table[column])) if labels.nunique() == 2 else None


if __name__ == "__main__":
    raise SystemExit(main())
