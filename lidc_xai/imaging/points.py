"""Points named in a CSV file, in LPS mm, RAS mm or voxel indices: the header must say which."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import path_safe
from lidc_xai.imaging.ct.volume import CTVolume

SYSTEMS = ("lps", "ras", "voxel")
_FORMS = "x_lps,y_lps,z_lps or x_ras,y_ras,z_ras (mm), or i,j,k (voxel: column, row, slice)"
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class NamedPoint:
    """A place of interest: its id, its three numbers and the system they are in ("lps", "ras" or "voxel")."""

    name: str
    values: tuple[float, float, float]
    system: str = "lps"

    def to_lps(self, ct: CTVolume) -> NDArray[np.float64]:
        """(3,) LPS mm in ``ct``; voxel indices count from 0 on the grid of ``ct.array``."""
        values = np.array(self.values)
        if self.system == "ras":
            return values * _RAS_TO_LPS
        if self.system == "voxel":
            return ct.affine[:3, :3] @ values + ct.affine[:3, 3]
        return values


def read_points(path: Path | str, default_prefix: str = "point") -> tuple[list[NamedPoint], list[tuple[str, str]]]:
    """Points of a CSV file, and rows that cannot be used: (name, reason).

    The columns name the system: x_lps,y_lps,z_lps; x_ras,y_ras,z_ras; or i,j,k. A column ``nodule_id`` names the
    points, else they are ``<default_prefix>-1`` and so on. Raises UsageError for a missing file or a header that does
    not name the system, DataError for a file that is no CSV text. A second row of the same name cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = [str(name or "").strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [{key: value for key, value in row.items() if isinstance(value, str)} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not CSV text ({error})") from error
    system, columns = _system(path, header)
    points, unusable = [], []
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        given = row.get("nodule_id") or f"{default_prefix}-{number}"
        name = path_safe(given, f"{default_prefix}-{number}")
        if name in names:
            again = f"{name}-row{number}"
            if names[name] == given:
                unusable.append((again, f"{path.name}: row {number}: nodule_id {name!r} is there twice"))
                continue
            name = again  # another id that makes the same name of a folder
        names[name] = given
        try:
            values = [float(row[column]) for column in columns]
        except (KeyError, ValueError):
            values = [math.nan]
        if all(map(math.isfinite, values)):
            points.append(NamedPoint(name, (values[0], values[1], values[2]), system))
        else:
            given = ", ".join(repr(row.get(column, "")) for column in columns)
            unusable.append((name, f"{path.name}: row {number}: {', '.join(columns)} are not three numbers ({given})"))
    if not rows:
        raise DataError(f"{path}: has a header and no point")
    return points, unusable


def _system(path: Path, header: Sequence[str]) -> tuple[str, list[str]]:
    """Which system the columns name, and the three columns in order."""
    columns_of: dict[str, dict[str, str]] = {system: {} for system in SYSTEMS}
    for name in header:
        words = set(re.split(r"[^a-z]+", name.lower())) - {"mm", "index", ""}
        for axis in "xyz":
            for system in ("lps", "ras"):
                if words == {axis, system}:
                    columns_of[system][axis] = name
        for axis in "ijk":
            if words - {"voxel"} == {axis}:
                columns_of["voxel"][axis] = name
    complete = [system for system, columns in columns_of.items() if len(columns) == 3]
    if len(complete) != 1:
        what = f"names {' and '.join(complete)}" if complete else "does not name the coordinate system"
        raise UsageError(f"{path}: the header ({', '.join(header) or 'empty'}) {what}; use one of {_FORMS}")
    return complete[0], [columns_of[complete[0]][axis] for axis in ("ijk" if complete[0] == "voxel" else "xyz")]
