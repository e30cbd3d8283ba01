"""TCIA's reader XML as a second source: the same nodules as the database for the same series.

One file holds one CT series: up to four reading sessions, each with nodules of 3 mm and more (rated, outlined on every
slice), smaller nodules (one point, no ratings) and non-nodules (one point). As in the database, the first alone count.
The XML does not know the patient, the pixel spacing or the slices. They come from the database where it has the series,
and otherwise from the headers of the DICOM files beside the XML (or anywhere in the folder).
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.database import Scan, database_scans, nearest_slices, nodules_of, reading_labels
from lidc_xai.annotations.nodule import Contour, Nodule, Reading
from lidc_xai.errors import DataError, DependencyError, UsageError
from lidc_xai.ratings import READER_RATINGS, SCALES

ROOT = "LidcReadMessage"
"""Root element of a CT reading; the same archive holds readings of chest radiographs under another root."""

HIGHEST_CODE = 5
"""Where a scale ends earlier (internal structure: 4), LIDC still holds a 5; calcification alone goes to 6."""

MOST_PIXEL = 2**15
MOST_SESSIONS, MOST_READINGS, MOST_POINTS = 12, 300, 4000
"""LIDC has four readers, and no scan of it more than 49 readings of 3 mm and more; readings and the points of an
outline are compared all with all."""

XML_NAMES = {name: "internalStructure" if name == "internal_structure" else name for name in READER_RATINGS}
_FIELDS = [
    "Modality", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ContrastBolusAgent",
]  # fmt: skip
_Headers = list[tuple[Path, dict[str, Any]]]


@dataclass(frozen=True)
class _Message:
    path: Path
    series_uid: str
    study_uid: str
    readings: list[Reading]  # spacing and slice indices are not known yet


def read_xml_folder(source: Path, *, use_database: bool = True) -> list[Nodule]:
    """Nodules of all CT reader XML under ``source`` (a folder in any layout, or one file), grouped per series.

    Other XML is left alone. ``use_database=False`` takes patient and geometry from DICOM headers alone. Raises
    UsageError where there is no reader XML, DataError for a damaged file, for a series whose geometry is nowhere to
    be found, and for two files about one series; the text names the file.
    """
    messages = [message for path in _xml_files(source) if (message := _read_message(path)) is not None]
    if not messages:
        raise UsageError(f"{source}: no LIDC reader XML of a CT series ({ROOT}) found; give the folder that holds it")
    seen: dict[str, Path] = {}
    for message in messages:
        if message.series_uid in seen:
            raise DataError(
                f"{message.path}: series {message.series_uid} is already read from {seen[message.series_uid]}; "
                "keep one of the two"
            )
        seen[message.series_uid] = message.path
    known = {scan.series_uid: (key, scan) for key, scan in _scans(use_database).items()}
    headers = SeriesHeaders(source if source.is_dir() else source.parent)
    nodules: list[Nodule] = []
    counts: Counter[str] = Counter()
    for message in sorted(messages, key=lambda m: m.series_uid):
        key, scan = known.get(message.series_uid, (None, None))
        if scan is None:
            z_mm = [contour.z_mm for reading in message.readings for contour in reading.contours]
            scan = headers.scan(message.path, message.series_uid, message.study_uid, z_mm)
            counts[scan.patient_id] += 1
            before = sum(other.patient_id == scan.patient_id for _, other in known.values())
            scan = replace(scan, scan_index=before + counts[scan.patient_id])
        nodules += nodules_of(scan, _readings(message, scan, key))
    return sorted(nodules, key=lambda n: (n.patient_id, n.scan_index, n.cluster_index))


def _scans(use_database: bool) -> dict[int, Scan]:
    try:
        return database_scans() if use_database else {}
    except DependencyError:  # XML and DICOM are enough
        return {}


def _readings(message: _Message, scan: Scan, key: int | None) -> list[Reading]:
    """Readings with slice indices; with the database's ids where the file tells what the database tells."""
    ids: list[int] = list(range(1, len(message.readings) + 1))
    if key is not None:
        recorded = reading_labels(key)
        told = [(raw.label, tuple(raw.ratings[name] for name in READER_RATINGS)) for raw in message.readings]
        if told == [(label, ratings) for _, label, ratings in recorded]:
            ids = [annotation_id for annotation_id, _, _ in recorded]
    readings = []
    for annotation_id, raw in zip(ids, message.readings, strict=True):
        slices = nearest_slices(scan.slice_positions_mm, np.array([contour.z_mm for contour in raw.contours]))
        contours = [replace(contour, k=int(k)) for contour, k in zip(raw.contours, slices, strict=True)]
        spacing = scan.pixel_spacing_mm
        readings.append(replace(raw, annotation_id=annotation_id, contours=contours, pixel_spacing_mm=spacing))
    return readings


def _xml_files(source: Path) -> list[Path]:
    if not source.exists():
        raise UsageError(f"{source}: does not exist; give a folder with LIDC reader XML")
    if source.is_file():
        return [source]
    # Names that begin with "._" are what macOS leaves beside a file on other disks.
    return sorted(p for p in source.rglob("*") if p.suffix.lower() == ".xml" and not p.name.startswith("._"))


def _read_message(path: Path) -> _Message | None:
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, LookupError, ValueError, RecursionError) as error:  # also an encoding that nobody knows
        raise DataError(f"{path}: damaged XML ({error}); fetch the file again from TCIA") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for element in root.iter():  # the namespace differs between releases
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != ROOT:
        return None
    header = root.find("ResponseHeader")
    if header is None:
        raise _damaged(path, "<ResponseHeader> is missing")
    series = _text(header, "SeriesInstanceUid", path)
    study = (header.findtext("StudyInstanceUID") or "").strip()
    return _Message(path, series, study, list(_rated_nodules(root, path)))


def _rated_nodules(root: ET.Element, path: Path) -> Iterator[Reading]:
    sessions = root.findall("readingSession")
    if len(sessions) > MOST_SESSIONS:
        raise _damaged(path, f"{len(sessions)} reading sessions, where at most {MOST_SESSIONS} belong")
    count = sum(len(session.findall("unblindedReadNodule/characteristics")) for session in sessions)
    if count > MOST_READINGS:
        raise _damaged(path, f"{count} readings, where at most {MOST_READINGS} belong")
    for session in sessions:
        for nodule in session.findall("unblindedReadNodule"):
            label = _text(nodule, "noduleID", path)
            rated = nodule.find("characteristics")
            if rated is None or len(rated) == 0:  # smaller than 3 mm
                continue
            ratings = {name: _rating(rated, name, label, path) for name in READER_RATINGS}
            contours = [_contour(roi, label, path) for roi in nodule.findall("roi")]
            if not contours:
                raise _damaged(path, f"nodule {label!r} has ratings but no <roi>")
            yield Reading(0, ratings, contours, math.nan, label)


def _rating(rated: ET.Element, name: str, label: str, path: Path) -> int:
    value = _number(rated, XML_NAMES[name], label, path)
    highest = max(HIGHEST_CODE, int(SCALES[name].high))
    if value != int(value) or not 1 <= value <= highest:
        raise _damaged(path, f"nodule {label!r}: {XML_NAMES[name]} is {value:g}, expected 1 to {highest}")
    return int(value)


def _contour(roi: ET.Element, label: str, path: Path) -> Contour:
    z_mm = _number(roi, "imageZposition", label, path)
    points = [
        (_number(edge, "xCoord", label, path), _number(edge, "yCoord", label, path)) for edge in roi.findall("edgeMap")
    ]
    if not points:
        raise _damaged(path, f"nodule {label!r}: <roi> at z {z_mm:g} has no <edgeMap>")
    inclusion = _text(roi, "inclusion", path).upper()
    if inclusion not in {"TRUE", "FALSE"}:
        raise _damaged(path, f"nodule {label!r}: inclusion is {inclusion!r}, expected TRUE or FALSE")
    if len(points) > MOST_POINTS:
        raise _damaged(path, f"nodule {label!r}: <roi> at z {z_mm:g} has {len(points)} points")
    if np.abs(points).max() > MOST_PIXEL:
        raise _damaged(path, f"nodule {label!r}: <roi> at z {z_mm:g} has a point at {max(points)}, which is no pixel")
    ij = np.array(points).astype(np.int32)
    ij.setflags(write=False)
    return Contour(z_mm, ij, inclusion == "TRUE", 0, (roi.findtext("imageSOP_UID") or "").strip() or None)


def _number(element: ET.Element, tag: str, label: str, path: Path) -> float:
    text = _text(element, tag, path)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise _damaged(path, f"nodule {label!r}: <{tag}> is {text!r}, expected a number")
    return value


def _text(element: ET.Element, tag: str, path: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise _damaged(path, f"<{tag}> is missing or empty in <{element.tag}>")
    return text


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: damaged reader XML: {what}; fetch the file again from TCIA")


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
