"""The header of an NRRD file (.nrrd, or .nhdr beside its voxels), with the names that 3D Slicer gives its segments."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lidc_xai.bounded import BoundedFile
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import Encoding, Segment, VolumeHeader, data_beside

_MOST_HEADER = 2**22
_KINDS = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4", "double": "f8",
}  # fmt: skip
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "text": "text", "txt": "text", "ascii": "text",
}  # fmt: skip
_SPACES = {  # sign of x and y on the way to LPS
    "left-posterior-superior": (1, 1), "lps": (1, 1), "right-anterior-superior": (-1, -1), "ras": (-1, -1),
    "left-anterior-superior": (1, -1), "las": (1, -1),
}  # fmt: skip
_VECTOR = re.compile(r"\(([^()]*)\)|none")


def nrrd_header(path: Path) -> VolumeHeader:
    """The header of ``path``. DataError naming the field that is missing or wrong."""
    try:
        fields, keys, end = _fields(path)
        return _checked(path, fields, keys, end)
    except ValueError as error:  # a field that should be numbers is not
        raise DataError(f"{path}: cannot be read as an image (damaged NRRD header: {error})") from error


def _fields(path: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Fields, keys with values, and where the header ends: at an empty line."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    with BoundedFile(path) as stream:
        if not stream.readline(16).startswith(b"NRRD000"):
            raise ValueError("it does not begin with NRRD000")
        while stream.tell() < _MOST_HEADER:
            line = stream.readline(_MOST_HEADER).decode("utf-8", "replace").rstrip("\r\n")
            if not line:
                return fields, keys, stream.tell()
            key, is_key, value = line.partition(":=")
            name, is_field, rest = line.partition(": ")
            if line.startswith("#"):
                continue
            if is_key and ": " not in key:
                keys[key] = value
            elif is_field:
                fields[name.strip().lower()] = rest.strip()
    raise ValueError("it has no end")


def _checked(path: Path, fields: dict[str, str], keys: dict[str, str], end: int) -> VolumeHeader:
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "").lower()
    if kind not in _KINDS:
        raise ValueError(f"type {kind!r} is not read")
    if encoding not in _ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is not read")
    endian = fields.get("endian", "little").lower()
    if endian not in ("little", "big"):
        raise ValueError(f"endian is {endian!r}")
    axes = int(fields.get("dimension", "0"))
    sizes = tuple(int(size) for size in fields.get("sizes", "").split())
    if not 1 <= axes <= 16 or len(sizes) != axes:
        raise ValueError(f"sizes has {len(sizes)} numbers, dimension is {axes}")
    if int(_either(fields, "line skip", "lineskip") or 0):
        raise ValueError("line skip is not read")
    name = _either(fields, "data file", "datafile")
    if name and (name.upper().startswith("LIST") or "%" in name):
        raise DataError(f"{path}: its voxels are in several files; store them as one .nrrd or .nii.gz")
    issues: list[str] = []
    affine, list_axis = _affine(fields, sizes, issues)
    header = VolumeHeader(
        sizes=sizes,
        dtype=np.dtype((">" if endian == "big" else "<") + _KINDS[kind]),
        affine=affine,
        data=data_beside(path, name) if name else path,
        offset=0 if name else end,
        encoding=_ENCODINGS[encoding],
        list_axis=list_axis,
        segments=_segments(keys, list_axis is not None),
        issues=issues,
    )
    header.skip(int(_either(fields, "byte skip", "byteskip") or 0), "byte skip")
    if list_axis == axes - 1 and sizes[-1] == 1:
        header.sizes, header.list_axis = sizes[:-1], None
    return header


def _affine(fields: dict[str, str], sizes: tuple[int, ...], issues: list[str]) -> tuple[np.ndarray, int | None]:
    """The three axes in space, and which axis is not one of them."""
    vectors = _vectors(fields.get("space directions", ""))
    kinds = fields.get("kinds", "").lower().split()
    if vectors:
        if len(vectors) != len(sizes):
            raise ValueError(f"space directions has {len(vectors)} of {len(sizes)} vectors")
        others = [axis for axis, vector in enumerate(vectors) if vector is None]
    else:
        others = [axis for axis, kind in enumerate(kinds) if kind not in ("domain", "space", "???")]
        others = others or list(range(3, len(sizes)))
    spatial = [axis for axis in range(len(sizes)) if axis not in others]
    affine = np.eye(4)
    if len(spatial) != 3 or len(others) > 1:
        return affine, others[0] if others else None  # not one volume: refused by whoever wants one
    if vectors:
        affine[:3, :3] = np.column_stack([vector for vector in vectors if vector is not None])
        origin = _vectors(fields.get("space origin", ""))
        if origin and origin[0] is not None:
            affine[:3, 3] = origin[0]
        else:
            issues.append("NRRD without a space origin: taken as 0")
    else:
        spacing = [float(value) for value in fields.get("spacings", "").split()]
        if len(spacing) != len(sizes) or not all(spacing[axis] > 0 for axis in spatial):
            raise ValueError("neither space directions nor spacings give the voxel size")
        affine[:3, :3] = np.diag([spacing[axis] for axis in spatial])
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "millimeter", "millimeters", ""}
    if units:
        raise ValueError(f"space units are {', '.join(sorted(units))}, not mm")
    space = fields.get("space", "").lower()
    if space not in _SPACES:
        issues.append(
            f"NRRD {f'in space {space}' if space else 'without a space'}: axes taken as left, posterior, superior"
        )
    return np.diag([*_SPACES.get(space, (1, 1)), 1, 1]) @ affine, others[0] if others else None


def _vectors(text: str) -> list[np.ndarray | None]:
    vectors: list[np.ndarray | None] = []
    for match in _VECTOR.finditer(text):
        if match.group() == "none":
            vectors.append(None)
            continue
        vector = np.array([float(value) for value in match.group(1).split(",")])
        if len(vector) != 3:
            raise ValueError(f"the vector {match.group()} has not three numbers")
        vectors.append(None if np.isnan(vector).all() else vector)
    return vectors


def _segments(keys: dict[str, str], layered: bool) -> list[Segment]:
    """3D Slicer's segments; before it knew layers, each segment was a layer of its own with label 1."""
    segments = []
    numbers = sorted({int(match[1]) for key in keys if (match := re.match(r"Segment(\d{1,5})_", key))})
    for number in numbers:
        key = f"Segment{number}_"
        name = keys.get(f"{key}Name") or keys.get(f"{key}ID") or f"segment{number}"
        layer = keys.get(f"{key}Layer")
        segments.append(
            Segment(name, int(keys.get(f"{key}LabelValue", "1")), int(layer) if layer else number if layered else 0)
        )
    return segments


def _either(fields: dict[str, str], *names: str) -> str:
    return next((fields[name] for name in names if name in fields), "")
