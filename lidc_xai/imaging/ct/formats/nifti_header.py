"""The header of a NIfTI file (1 and 2, both byte orders): sizes, type, and which of its two forms places it.

Where sform and qform are both set and differ, the one that is said to be of the scanner (code 1) is taken, else the
sform, as nibabel does; with neither, the standard's method 1 (x, y, z = voxel size times index). All of it is said.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import VolumeHeader

LONGEST_HEADER = 540
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_KINDS = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_SCANNER = 1
_SAME_MM = 0.05
_SPACING_DIFFERS = 0.01


@dataclass(frozen=True)
class _Fields:
    sizes: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    offset: int
    scale: tuple[float, float]
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    srow: tuple[float, ...]
    units: int
    magic: bytes


def nifti_header(path: Path, head: bytes, packed: bool) -> VolumeHeader:
    """The header from the first :data:`LONGEST_HEADER` (unpacked) bytes. DataError where it is none or is damaged."""
    try:
        fields = _fields(head)
    except (struct.error, ValueError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as an image (damaged or not NIfTI: {error})") from error
    if fields.magic[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path}: cannot be read as an image (no voxels in a file with the mark {fields.magic[:3]!r})")
    if fields.datatype not in _KINDS:
        raise DataError(
            f"{path}: is not one 3D volume of single values (NIfTI datatype {fields.datatype}: colour, complex or none)"
        )
    issues: list[str] = []
    order = "<" if struct.unpack_from("<i", head)[0] in (348, 540) else ">"
    slope, intercept = fields.scale
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError(f"{path}: scl_slope {slope:g} and scl_inter {intercept:g} are not numbers")
    return VolumeHeader(
        sizes=_without_ones(fields.sizes),
        dtype=np.dtype(order + _KINDS[fields.datatype]),
        affine=_affine(path, fields, issues),
        data=path,
        offset=fields.offset,
        encoding="gzip" if packed else "raw",
        scale=None if slope == 0 or (slope, intercept) == (1, 0) else (slope, intercept),
        issues=issues,
    )


def _fields(head: bytes) -> _Fields:
    for order in "<>":
        (length,) = struct.unpack_from(f"{order}i", head)
        if length == 348:
            read = _reader(head, order)
            dim, (datatype,), pixdim = read("8h", 40), read("h", 70), read("8f", 76)
            offset, scale, (units,) = read("f", 108)[0], read("2f", 112), read("B", 123)
            codes, quaternion, srow, magic = read("2h", 252), read("6f", 256), read("12f", 280), head[344:348]
        elif length == 540:
            read = _reader(head, order)
            dim, (datatype,), pixdim = read("8q", 16), read("h", 12), read("8d", 104)
            offset, scale, (units,) = read("q", 168)[0], read("2d", 176), read("i", 500)
            codes, quaternion, srow, magic = read("2i", 344), read("6d", 352), read("12d", 400), head[4:8]
        else:
            continue
        if not 1 <= dim[0] <= 7:
            raise ValueError(f"dim[0] is {dim[0]}, not 1 to 7")
        start = int(offset) or length + 4  # ValueError where it is no number
        if start < length:
            raise ValueError(f"vox_offset is {start}, inside the header")
        sizes, (qform_code, sform_code) = dim[1 : dim[0] + 1], codes
        return _Fields(
            sizes, datatype, pixdim, start, (scale[0], scale[1]), qform_code, sform_code, quaternion, srow, units, magic
        )
    raise ValueError("no NIfTI header")


def _reader(head: bytes, order: str) -> Callable[[str, int], tuple[Any, ...]]:
    return lambda kinds, at: struct.unpack_from(order + kinds, head, at)


def _without_ones(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes beyond the third that count one thing are none."""
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes


def _affine(path: Path, fields: _Fields, issues: list[str]) -> NDArray[np.float64]:
    forms = {}
    if fields.sform_code > 0:
        forms["sform"] = np.vstack([np.reshape(fields.srow, (3, 4)), [0, 0, 0, 1]])
    if fields.qform_code > 0:
        forms["qform"] = _qform(path, fields)
    if not forms:
        forms["voxel size"] = np.diag([*_voxel_size(path, fields), 1.0])
        issues.append(
            "NIfTI without orientation (sform and qform codes are 0): axes taken as right, anterior, superior from 0"
        )
    chosen = next(iter(forms))
    if len(forms) == 2:
        if fields.sform_code != _SCANNER and fields.qform_code == _SCANNER:
            chosen = "qform"
        _compare(forms["sform"], forms["qform"], fields.sizes, chosen, issues)
    affine = forms[chosen]
    if fields.units & 7 not in (0, 2):
        if fields.units & 7 not in _UNITS_MM:
            raise DataError(f"{path}: xyzt_units {fields.units} is no unit of length")
        affine = affine * np.array([[_UNITS_MM[fields.units & 7]]] * 3 + [[1.0]])
        issues.append(f"NIfTI in {'m' if fields.units & 7 == 1 else 'micrometres'}: converted to mm")
    if chosen == "sform":
        norms = np.linalg.norm(forms["sform"][:3, :3], axis=0)
        size = np.array(fields.pixdim[1:4])
        if not np.allclose(norms, size, rtol=_SPACING_DIFFERS):
            issues.append(f"NIfTI pixdim {_words(size)} differs from the sform's spacing {_words(norms)}: sform taken")
    return _RAS_TO_LPS @ affine


def _voxel_size(path: Path, fields: _Fields) -> list[float]:
    size = list(fields.pixdim[1:4])
    if len(fields.sizes) < 3 or not all(np.isfinite(size)) or min(size) <= 0:
        raise DataError(f"{path}: NIfTI pixdim {_words(size)} is no voxel size (mm above 0), and no sform is set")
    return size


def _qform(path: Path, fields: _Fields) -> NDArray[np.float64]:
    b, c, d, *offset = fields.quaternion
    length = b * b + c * c + d * d
    if not np.isfinite([*fields.quaternion]).all() or length > 1.01:
        raise DataError(f"{path}: NIfTI quaternion {_words((b, c, d))} is no rotation")
    a = np.sqrt(max(0.0, 1.0 - length))
    if length > 1:
        b, c, d = np.array([b, c, d]) / np.sqrt(length)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * _voxel_size(path, fields) * [1, 1, -1 if fields.pixdim[0] < 0 else 1]
    affine[:3, 3] = offset
    return affine


def _compare(
    sform: NDArray[np.float64], qform: NDArray[np.float64], sizes: tuple[int, ...], chosen: str, issues: list[str]
) -> None:
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in sizes[:3]])).reshape(3, -1)
    apart = np.abs((sform - qform)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])).max()
    if not apart <= _SAME_MM:
        issues.append(f"NIfTI sform and qform disagree by up to {apart:.2f} mm: {chosen} taken")


def _words(values: object) -> str:
    return " x ".join(f"{value:.4g}" for value in np.asarray(values))
