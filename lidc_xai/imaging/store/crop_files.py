"""The files of one crop in a store: NIfTI volumes and the record ``nodule.json`` beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lidc_xai.errors import DataError
from lidc_xai.files import plain, read_json, write_json
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop, check_crop
from lidc_xai.imaging.ct.formats.volume_file import read_nifti, write_nifti
from lidc_xai.ratings import BIOMARKERS

RECORD = "nodule.json"
_CAUSE = "cause_"
_SUMS = (
    "voxels", "sum", "sum_of_squares", "lowest", "highest", "clamped_sum", "clamped_sum_of_squares",
)  # fmt: skip
_NIFTI_MM = 1e-4
_OTHER = "is not what prepare wrote (damaged, replaced or missing); delete the folder and run prepare again"


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
    named = {"ct": crop.ct, "readers": crop.reader_masks, "consensus": crop.consensus}
    named |= {f"{_CAUSE}{name}": mask for name, mask in (causes or {}).items()}
    write_json(
        folder / RECORD,
        {
            **plain(record),
            "affine": crop.affine.tolist(),
            "hu": _hu_sums(crop.ct),
            "sha256": _hash(array for array in named.values() if array is not None),
            "arrays": {name: _hash([_as_stored(name, a)]) for name, a in named.items() if a is not None},
        },
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of one nodule's folder; DataError where it is damaged or of another nodule."""
    path = folder / RECORD
    try:
        record = read_json(path)
        _check_record(record, folder.name)
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"has no field {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: {reason}; delete the folder and run prepare again") from error
    return record


def _check_record(record: dict[str, Any], name: str) -> None:
    """What every reader of a record takes for granted."""
    row = record["row"]
    if row["nodule_id"] != name:
        raise ValueError(f"is the record of nodule {row['nodule_id']!r}")
    texts = (row["nodule_id"], row["issues"], record["sha256"], row["series_uid"] or "", row["patient_id"] or "")
    if not all(isinstance(text, str) for text in texts) or not isinstance(record["votes"], list):
        raise ValueError("holds a field of another kind than prepare writes")
    if not all(isinstance(row[flag], bool) for flag in ("padded", "larger_than_box")):
        raise ValueError("padded and larger_than_box are not true or false")
    if not _is_affine(record["affine"]):
        raise ValueError("its affine is not 4 x 4 numbers")
    if not isinstance(row.get("padded_share") or 0.0, int | float):
        raise ValueError("padded_share is no number")
    for sum_name in _SUMS:
        float(record["hu"][sum_name])
    if not isinstance(record.get("arrays", {}), dict):
        raise ValueError("its hashes are no group of fields")


def _is_affine(value: Any) -> bool:
    rows = value if isinstance(value, list) and all(isinstance(row, list) for row in value) else []
    return [len(row) for row in rows] == [4] * 4 and all(type(cell) in (int, float) for row in rows for cell in row)


def read_crop_files(folder: Path, voxels: int | None = None) -> NoduleCrop:
    """One nodule's crop, with the affine at full precision (NIfTI keeps float32).

    ``voxels``: along each side, where the store says so. DataError where an array is not the one that prepare wrote
    (its hash), or no crop that can be used (``check_crop``).
    """
    record = read_record(folder)
    row = record["row"]
    ct, affine = read_nifti(folder / "ct.nii.gz")
    if voxels is not None and ct.shape != (voxels, voxels, voxels):
        raise DataError(f"{folder / 'ct.nii.gz'}: has {ct.shape} voxels, the store's crops have {voxels} a side")
    readers, consensus = folder / "readers.nii.gz", folder / "consensus.nii.gz"
    crop = NoduleCrop(
        ct=ct.astype(np.float32, copy=False),
        affine=np.array(record["affine"], dtype=np.float64),
        reader_masks=_as_mask(readers, 4) if readers.exists() else None,
        consensus=_as_mask(consensus, 3) if consensus.exists() else None,
        issues=[issue for issue in row["issues"].split("; ") if issue],
        nodule_id=row["nodule_id"],
        series_uid=row["series_uid"] or "",
        padded=row["padded"],
        larger_than_box=row["larger_than_box"],
        padded_share=float(row.get("padded_share") or 0.0),
    )
    if not np.abs(crop.affine - affine).max() <= _NIFTI_MM * max(1.0, float(np.abs(affine).max())):
        raise DataError(f"{folder / 'ct.nii.gz'}: lies elsewhere than {RECORD} says; run prepare again")
    _check_hashes(folder, record, {"ct": crop.ct, "readers": crop.reader_masks, "consensus": crop.consensus})
    check_crop(crop)
    return crop


def read_causes(folder: Path) -> dict[str, np.ndarray]:
    """Voxels that carry each biomarker (simulated nodules only), by biomarker."""
    files = sorted(folder.glob(f"{_CAUSE}*.nii.gz"))
    causes = {path.name.removesuffix(".nii.gz"): _as_mask(path, 3) for path in files}
    if causes:
        _check_hashes(folder, read_record(folder), causes)
    return {name.removeprefix(_CAUSE): mask for name, mask in causes.items()}


def _check_hashes(folder: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray | None]) -> None:
    """DataError where an array differs from what was written, or one is missing or too much."""
    known = record.get("arrays")
    if known is None:  # a store of an earlier version: one hash over all arrays, in an order that it does not tell
        ct = arrays.get("ct")
        if ct is not None and _hu_sums(ct) != record["hu"]:
            raise DataError(f"{folder / 'ct.nii.gz'}: {_OTHER}")
        return
    for name, array in arrays.items():
        if (None if array is None else _hash([array])) != known.get(name):
            raise DataError(f"{folder / name}.nii.gz: {_OTHER}")


def _as_stored(name: str, array: np.ndarray) -> np.ndarray:
    """The array as it comes back from its file."""
    return np.asarray(array).astype(np.float32 if name == "ct" else bool, copy=False)


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
