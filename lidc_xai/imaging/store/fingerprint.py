"""What a store holds, in figures: counts, spacings, HU statistics, versions and a hash over every crop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

import lidc_xai

_LIBRARIES = ("numpy", "scipy", "simpleitk", "pydicom", "pandas", "pylidc")


def describe_store(manifest: pd.DataFrame, records: Sequence[dict[str, Any]], n_skipped: int) -> dict[str, Any]:
    """Figures over all crops. The same crops give the same figures: no time, no path, no order of processing."""
    return {
        "counts": _counts(manifest, n_skipped),
        "pixel_spacing_mm": _spread(manifest["pixel_spacing_mm"]),
        "slice_thickness_mm": _spread(manifest["slice_thickness_mm"]),
        "hu": _hu(records),
        "versions": {"lidc_xai": lidc_xai.__version__} | {name: metadata.version(name) for name in _LIBRARIES},
        "sha256": _hash(records),
    }


def _counts(manifest: pd.DataFrame, n_skipped: int) -> dict[str, int]:
    flags = ("ambiguous", "padded", "larger_than_box", "hu_calibrated", "simulated")
    return {
        "nodules": len(manifest),
        "patients": manifest["patient_id"].nunique(),
        "series": manifest.loc[manifest["series_uid"] != "", "series_uid"].nunique(),
        "label_1": int((manifest["label"] == 1).sum()),
        "label_0": int((manifest["label"] == 0).sum()),
        "no_label": int(manifest["label"].isna().sum()),
        **{name: int(manifest[name].sum()) for name in flags},
        "with_issues": int((manifest["issues"] != "").sum()),
        "skipped": n_skipped,
    }


def _spread(values: pd.Series) -> dict[str, float] | None:
    known = values.dropna()
    if known.empty:
        return None
    return {"lowest": known.min(), "median": known.median(), "highest": known.max()}


def _hu(records: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Mean and standard deviation over all voxels, raw and clamped to [−1000, 400] HU (the window of the models)."""
    if not records:
        return None
    sums = {name: float(np.sum([record["hu"][name] for record in records])) for name in records[0]["hu"]}
    voxels = sums["voxels"]
    mean, clamped_mean = sums["sum"] / voxels, sums["clamped_sum"] / voxels
    return {
        "voxels": int(voxels),
        "mean": mean,
        "sd": float(np.sqrt(max(0.0, sums["sum_of_squares"] / voxels - mean**2))),
        "clamped_mean": clamped_mean,
        "clamped_sd": float(np.sqrt(max(0.0, sums["clamped_sum_of_squares"] / voxels - clamped_mean**2))),
        "lowest": min(record["hu"]["lowest"] for record in records),
        "highest": max(record["hu"]["highest"] for record in records),
    }


def _hash(records: Sequence[dict[str, Any]]) -> str:
    lines = sorted(f"{record['row']['nodule_id']} {record['sha256']}" for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
