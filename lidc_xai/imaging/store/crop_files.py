"""The files of one crop in a store: NIfTI volumes and the record ``nodule.json`` beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lidc_xai.errors import DataError
from lidc_xai.files import write_json
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.ct.nifti import read_nifti, write_nifti
from lidc_xai.ratings import BIOMARKERS

RECORD = "nodule.json"
_CAUSE = "cause_"


def write_crop_files(
    folder: Path, crop: NoduleCrop, record: Mapping[str, Any], causes: Mapping[str, np.ndarray] | None
) -> None:
    """Write every file of one nodule into the new ``folder``; ``record`` gets the affine and the hash of the arrays."""
    folder.mkdir(parents=True)
    write_nifti(folder / "ct.nii.gz", crop.ct.astype(np.float32, copy=False), crop.affine)
    if crop.reader_masks is not None:
        write_nifti(folder / "readers.nii.gz", crop.reader_masks, crop.affine)
    if crop.consensus is not None:
        write_nifti(folder / "consensus.nii.gz", crop.consensus, crop.affine)
    for name, mask in (causes or {}).items():
        if name not in BIOMARKERS:
            raise DataError(f"{crop.nodule_id}: cause of {name!r}: not a biomarker ({', '.join(BIOMARKERS)})")
        write_nifti(folder / f"{_CAUSE}{name}.nii.gz", np.asarray(mask, dtype=bool), crop.affine)
    arrays = [crop.ct, crop.reader_masks, crop.consensus, *(causes or {}).values()]
    write_json(
        folder / RECORD,
        {
            **plain(record),
            "affine": crop.affine.tolist(),
            "hu": _hu_sums(crop.ct),
            "sha256": _hash(array for array in arrays if array is not None),
        },
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of one nodule's folder."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete the folder and run prepare again") from error


def read_crop_files(folder: Path) -> NoduleCrop:
    """One nodule's crop, with the affine at full precision (NIfTI keeps float32)."""
    record = read_record(folder)
    row = record["row"]
    ct, _ = read_nifti(folder / "ct.nii.gz")
    readers, consensus = folder / "readers.nii.gz", folder / "consensus.nii.gz"
    return NoduleCrop(
        ct=ct.astype(np.float32, copy=False),
        affine=np.array(record["affine"], dtype=np.float64),
        reader_masks=_as_mask(readers, 4) if readers.exists() else None,
        consensus=_as_mask(consensus, 3) if consensus.exists() else None,
        issues=[issue for issue in row["issues"].split("; ") if issue],
        nodule_id=row["nodule_id"],
        series_uid=row["series_uid"] or "",
        padded=row["padded"],
        larger_than_box=row["larger_than_box"],
    )


def read_causes(folder: Path) -> dict[str, np.ndarray]:
    """Voxels that carry each biomarker (simulated nodules only), by biomarker."""
    files = sorted(folder.glob(f"{_CAUSE}*.nii.gz"))
    return {path.name.removeprefix(_CAUSE).removesuffix(".nii.gz"): _as_mask(path, 3) for path in files}


def plain(value: Any) -> Any:
    """``value`` as JSON types: NumPy scalars and arrays unpacked, NaN and pandas' NA as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return str(value)


def _as_mask(path: Path, dimensions: int) -> np.ndarray:
    array, _ = read_nifti(path)
    if array.ndim == dimensions - 1:  # one reader: some programs save the 4D file without its last axis
        array = array[np.newaxis]
    return array > 0


def _hu_sums(ct: np.ndarray) -> dict[str, float]:
    values = ct.astype(np.float64)
    clamped = np.clip(values, -1000.0, 400.0)
    return {
        "voxels": int(values.size),
        "sum": float(values.sum()),
        "sum_of_squares": float(np.square(values).sum()),
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "clamped_sum": float(clamped.sum()),
        "clamped_sum_of_squares": float(np.square(clamped).sum()),
    }


def _hash(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
