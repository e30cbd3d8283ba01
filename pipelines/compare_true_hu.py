"""What the loss of HU costs: the same nodules as true HU and as the PNG edition, read by the fold that saw neither.

    python pipelines/compare_true_hu.py --slices LIDC-IDRI-slices.zip \\
        --volumes volumes51.npz --store runs/png --runs runs/png-seed0 --out runs/png-true-hu

Cubes of true HU are matched to nodules as in validate_png_hu.py. Writes predictions.csv (both rows of every nodule) and
summary.json: per output the correlation of the two, and their errors against the readers, with intervals by patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import roc_auc_score
from validate_png_hu import matched_cubes

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.commands.common import need_out, need_path, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.files import write_json
from lidc_xai.imaging import CropStore, NoduleCrop
from lidc_xai.imaging.png.match import match_nodule
from lidc_xai.imaging.png.source import PngEdition
from lidc_xai.nodules._predict import predict
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.run import Run


class Options(Config):
    """The two editions of the same nodules, and who reads them."""

    slices: Path = Field(description="The PNG edition.")
    volumes: Path = Field(description="volumes51.npz.")
    store: Path = Field(description="The store made from --slices.")
    runs: list[str] = Field(min_length=1, description="Cross-validated runs (seeds), separated by commas.")


def work(options: Options, run: Run) -> None:
    """Match, predict, compare."""
    out, runs = need_out(options), [need_path(Path(name), "--runs") for name in words(options.runs)]
    need_path(options.slices, "--slices")
    need_path(options.volumes, "--volumes")
    store = CropStore(options.store)
    crops = true_crops(options.slices, options.volumes, round(float(store.manifest["size_mm"].iloc[0])))
    ids = [crop.nodule_id for crop in crops if crop.nodule_id in set(store.nodule_ids)]
    models = [path for folder in runs for path in sorted(folder.glob("fold-*/model"))]
    true = predict(models, [crop for crop in crops if crop.nodule_id in set(ids)])
    estimated = predict(models, store, nodule_ids=ids)
    both = true.merge(estimated, on=["nodule_id", "patient_id"], suffixes=("_true_hu", "_png"))
    both = both[both["out_of_fold_true_hu"].astype(bool)].merge(
        store.manifest[["nodule_id", "label", "n_readers", *BIOMARKERS]], on="nodule_id"
    )
    write_csv(out / "predictions.csv", both)
    summary = compare(both)
    write_json(out / "summary.json", summary)
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
    agreement: dict[str, object] = {"nodules": len(both), "patients": int(both["patient_id"].nunique())}
    rated = both[both["label"].notna() & (both["n_readers"] >= 3)]
    moved = (both["malignancy_probability_true_hu"] - both["malignancy_probability_png"]).abs()
    agreement["malignancy"] = {
        "spearman_true_hu_png": float(spearman(both["malignancy_logit_true_hu"], both["malignancy_logit_png"])),
        "mean_change_of_probability": str(bootstrap_mean(moved, both["patient_id"].tolist())),
        "rated_nodules": len(rated),
        **{f"auc_{kind}": _auc(rated, f"malignancy_logit_{kind}") for kind in ("true_hu", "png")},
    }
    for name in BIOMARKERS:
        read = both[both[name].notna()] if name in both else pd.DataFrame()
        if f"{name}_true_hu" in both and len(read):
            errors = {kind: (read[f"{name}_{kind}"] - read[name]).abs() for kind in ("true_hu", "png")}
            agreement[name] = {
                "spearman_true_hu_png": float(spearman(read[f"{name}_true_hu"], read[f"{name}_png"])),
                **{f"mae_{kind}": str(bootstrap_mean(e, read["patient_id"].tolist())) for kind, e in errors.items()},
            }
    return agreement


def _auc(table: pd.DataFrame, column: str) -> float | None:
    labels = table["label"].astype(int)
    return float(roc_auc_score(labels, table[column])) if labels.nunique() == 2 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("compare_true_hu", Options, work, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
