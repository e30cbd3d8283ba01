"""``read_ct``: a DICOM series (in any layout of files) or one volume file as a :class:`CTVolume`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.ct.dicom_geometry import SeriesGeometry, arrange, shared_issues
from lidc_xai.imaging.ct.dicom_headers import SliceHeader, headers_of
from lidc_xai.imaging.ct.dicom_index import FolderIndex, SeriesFiles, indexed, is_medium
from lidc_xai.imaging.ct.dicom_pixels import read_slices
from lidc_xai.imaging.ct.formats.volume_file import is_volume_file, read_single_volume
from lidc_xai.imaging.ct.volume import AIR_HU, CTVolume, between_slices

LUNG_HU = -300.0
_FEW = 3


def read_ct(path: Path | str, series_uid: str | None = None) -> CTVolume:
    """Read one CT.

    ``path``: a folder with DICOM files in any layout, a zip of one, a DICOMDIR, one enhanced (multi-frame) DICOM file,
    or one NIfTI, NRRD or MHD volume in HU. ``series_uid``: which series of a folder with several. Every slice is
    decoded once.
    Raises UsageError for a missing path, a folder without DICOM, an unknown or ambiguous series; DataError (with the
    reason) for a series that is not one readable CT volume. What could be met is in ``.issues``.

    >>> ct = read_ct(dicom)
    >>> ct.array.ndim, ct.series_uid == nodule.series_uid
    (3, True)
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if is_medium(path):
        with indexed(path) as index:
            files = _choose(index, series_uid)
            ct = read_series(files, index.damaged_beside(files.paths))
        ct.issues += index.passed_over()
        ct.source = str(index.zip_file or ct.source)
        return ct
    if is_volume_file(path):
        return _read_volume_file(path)
    files = SeriesFiles("", "CT", [path])
    return read_series(files, [])


def read_series(files: SeriesFiles, damaged: Sequence[tuple[Path, str]] = ()) -> CTVolume:
    """Read the files of one series. ``damaged``: files beside them that cannot be read, to be named in ``.issues``."""
    name = f"series {files.series_uid}" if files.series_uid else str(files.paths[0])
    slices, issues = _usable_headers(files.paths)
    issues += [f"{path.name}: {reason}: left out" for path, reason in damaged[:_FEW]]
    if len(damaged) > _FEW:
        issues.append(f"{len(damaged) - _FEW} more damaged files left out")
    if not slices:
        raise DataError(f"{name}: no usable slice ({'; '.join(issues[:_FEW]) or 'no image'})")
    geometry = arrange(slices, name)
    stored, failed, remarks = read_slices(geometry.slices)
    if failed:
        issues += _few([f"{reason}: left out" for reason in failed.values()])
        lost = {id(geometry.slices[place]) for place in failed}
        # A slice that cannot be decoded is a missing slice; a duplicate of it may take its place.
        geometry = arrange([one for one in slices if id(one) not in lost], name)
        stored, failed, remarks = read_slices(geometry.slices)
        if failed:
            raise DataError(f"{name}: pixels cannot be decoded ({next(iter(failed.values()))})")
    issues += geometry.issues + shared_issues(geometry.slices) + _duplicate_issues(geometry, stored, name)
    volume = _as_volume(geometry, stored, issues + _not_hu(stored) + remarks, files)
    volume.outside_view = remarks
    return volume


def _choose(index: FolderIndex, series_uid: str | None) -> SeriesFiles:
    series = index.ct
    if series_uid is not None:
        if series_uid in series:
            return series[series_uid]
        if series_uid in index.series:
            modality = index.series[series_uid].modality
            raise DataError(f"{index.source}: series {series_uid} has Modality {modality or 'unknown'}, not CT")
        raise UsageError(f"{index.source}: has no series {series_uid}; it has {', '.join(series) or 'no CT series'}")
    if not series:
        damaged = "; ".join(f"{path.name}: {reason}" for path, reason in index.damaged[:1])
        raise DataError(f"{index.source}: has no CT series (found {index.modalities() or damaged})")
    if len(series) > 1:
        listed = ", ".join(f"{uid} ({len(files.paths)} files)" for uid, files in series.items())
        raise UsageError(f"{index.source}: has {len(series)} CT series; name one with series_uid: {listed}")
    return next(iter(series.values()))


def _usable_headers(paths: Sequence[Path]) -> tuple[list[SliceHeader], list[str]]:
    """Headers of all slices, copies of one instance once, and what was left out and why."""
    slices: dict[tuple[str, int, bytes], SliceHeader] = {}
    reasons: list[str] = []
    copies = 0
    for path in paths:
        try:
            frames = headers_of(path)
        except DataError as error:
            reasons.append(f"{error}: left out")
            continue
        for frame in frames:
            key = (frame.sop_instance_uid, frame.frame, frame.position.tobytes())
            copies += key in slices
            slices.setdefault(key, frame)
    issues = _few(reasons)
    if copies:
        issues.append(f"{copies} file(s) present twice (same SOPInstanceUID), used once")
    return list(slices.values()), issues


def _few(reasons: list[str]) -> list[str]:
    return reasons[:_FEW] + ([f"{len(reasons) - _FEW} more like this"] if len(reasons) > _FEW else [])


def _duplicate_issues(geometry: SeriesGeometry, stored: np.ndarray, name: str) -> list[str]:
    """Say for slices at one place whether they show the same. DataError where a second volume lies there unnumbered."""
    if not geometry.duplicates:
        return []
    place_of = {id(one): place for place, one in enumerate(geometry.slices)}
    differ = tied = 0
    for kept, other in geometry.duplicates:
        values, failed, _ = read_slices([other])
        if failed or not np.array_equal(values[0], stored[place_of[id(kept)]]):
            differ += 1
            tied += kept.instance_number == other.instance_number
    if tied > max(2, len(stored) / 10):
        raise DataError(
            f"{name}: {tied} slices lie at the place of another with other content and the same InstanceNumber: "
            "several acquisitions that no field tells apart; give one of them in a folder of its own"
        )
    words = "all equal" if not differ else f"{differ} with other content"
    return [f"{len(geometry.duplicates)} slice(s) at the place of another ({words}), lowest instance number kept"]


def _not_hu(array: np.ndarray) -> list[str]:
    """A chest has air in it; values that begin near zero are grey levels or lack their intercept."""
    lowest, highest = float(array.min()), float(array.max())
    if lowest < LUNG_HU:
        return []
    return [f"values from {lowest:g} to {highest:g}: nothing below {LUNG_HU:.0f}, so these may not be HU"]


def _as_volume(geometry: SeriesGeometry, stored: np.ndarray, issues: list[str], files: SeriesFiles) -> CTVolume:
    first = geometry.slices[0]
    return CTVolume(
        array=stored if geometry.even else _on_even_grid(stored, geometry),
        affine=geometry.affine,
        series_uid=files.series_uid,
        issues=issues,
        stored=stored,
        positions_mm=geometry.positions_mm,
        slice_z_mm=np.array([one.position[2] for one in geometry.slices]),
        sop_instance_uids=[one.sop_instance_uid for one in geometry.slices],
        patient_id=first.patient_id,
        study_uid=first.study_uid,
        slice_thickness_mm=first.slice_thickness_mm,
        scanner=first.scanner,
        simulated=any(one.simulated for one in geometry.slices),
        source=str(files.paths[0].parent),
    )


def _on_even_grid(stored: np.ndarray, geometry: SeriesGeometry) -> np.ndarray:
    """Slices interpolated linearly, from their true positions, to the even grid of the affine."""
    positions = geometry.positions_mm
    step = float(geometry.slices[0].normal @ geometry.affine[:3, 2])
    count = int(np.floor((positions[-1] - positions[0]) / step + 1e-6)) + 1
    return between_slices(stored, positions, positions[0] + np.arange(count) * step)


def _read_volume_file(path: Path) -> CTVolume:
    values, header = read_single_volume(path)
    if min(values.shape) < 2:
        raise DataError(f"{path}: a volume needs at least 2 slices, rows and columns (size {header.sizes})")
    array = values.astype(np.float32, copy=False)
    issues = list(header.issues)
    unknown = ~np.isfinite(array)
    if unknown.any():
        array[unknown] = AIR_HU
        issues.append(f"{np.count_nonzero(unknown)} voxels without a number read as {AIR_HU:.0f} HU")
    return CTVolume(array=array, affine=header.affine, issues=issues + _not_hu(array), source=str(path))
