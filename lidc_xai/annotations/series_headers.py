"""Patient and geometry of a CT series from the headers of its DICOM files (for XML that the database does not know)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.database import Scan
from lidc_xai.errors import DataError

_FIELDS = [
    "Modality", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ContrastBolusAgent",
]  # fmt: skip

_Headers = list[tuple[Path, dict[str, Any]]]


class SeriesHeaders:
    """Headers of the CT series in ``folder``: looked for beside the XML first, then everywhere, which is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scan(self, xml: Path, series_uid: str, study_uid: str, z_mm: Sequence[float]) -> Scan:
        """The scan of ``series_uid``, with ``scan_index`` 1; ``z_mm`` are the heights of its outlines.

        A height without a slice (part of the series is not here) gets a place in the order of slices, so that
        grouping still sees true neighbours. Raises DataError where the series is not found or its headers lack
        what is needed.
        """
        headers = _by_series(p for p in xml.parent.iterdir() if p.is_file()).get(series_uid)
        headers = headers or self._everywhere.get(series_uid)
        if not headers:
            raise DataError(
                f"{xml}: series {series_uid} is neither in the annotation database nor among the DICOM files of "
                f"{self.folder}; put the XML beside the DICOM files of its series"
            )
        path, first = headers[0]
        rows_mm, columns_mm = _numbers(path, first, "PixelSpacing", 2)
        if abs(rows_mm - columns_mm) > 1e-3:
            raise DataError(f"{path}: PixelSpacing is {rows_mm:g}, {columns_mm:g} mm; outlines need square pixels")
        if not first.get("PatientID"):
            raise DataError(f"{path}: DICOM field PatientID is missing; fetch the series again")
        slices = np.unique([_numbers(where, header, "ImagePositionPatient", 3)[2] for where, header in headers])
        step = float(np.median(np.diff(slices))) if len(slices) > 1 else 1.0
        positions = _with_missing(slices, np.unique(z_mm), step)
        positions.setflags(write=False)
        return Scan(
            patient_id=str(first["PatientID"]),
            series_uid=series_uid,
            study_uid=study_uid or str(first["StudyInstanceUID"] or ""),
            scan_index=1,
            pixel_spacing_mm=columns_mm,
            slice_thickness_mm=_positive(first["SliceThickness"]) or step,
            slice_positions_mm=positions,
            is_from_initial=None,
            contrast_used=bool(first.get("ContrastBolusAgent")),
        )

    @cached_property
    def _everywhere(self) -> dict[str, _Headers]:
        return _by_series(p for p in self.folder.rglob("*") if p.is_file())


def _with_missing(slices: NDArray[np.float64], outlines: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    apart = np.abs(outlines[:, None] - slices[None]).min(axis=1)
    return np.sort(np.concatenate([slices, outlines[apart > step / 2]]))


def _by_series(paths: Iterable[Path]) -> dict[str, _Headers]:
    from lidc_xai.dicom_stream import read_dataset  # pydicom takes a second

    by_uid: dict[str, _Headers] = defaultdict(list)
    for path in sorted(paths):
        if path.suffix.lower() == ".xml":
            continue
        try:
            header, stream, _ = read_dataset(path, _FIELDS)
            stream.close()
            values = {name: header.get(name) for name in _FIELDS}  # converted here, where a damaged one is met
        except Exception:  # not DICOM: a licence, a table, a half-copied or damaged file
            continue
        if values["Modality"] == "CT" and values["SeriesInstanceUID"]:
            by_uid[str(values["SeriesInstanceUID"])].append((path, values))
    return by_uid


def _positive(value: Any) -> float | None:
    """A number above 0; None where it is absent or another."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def _numbers(path: Path, header: Any, field: str, count: int) -> list[float]:
    value = header.get(field)
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):  # absent, no number, or one number where several belong
        numbers = []
    if len(numbers) != count:
        raise DataError(f"{path}: DICOM field {field} is {value!r}, expected {count} numbers; fetch the series again")
    return numbers
