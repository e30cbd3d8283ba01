"""The header of a MetaImage file (.mhd beside its voxels, .mha with them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lidc_xai.bounded import BoundedFile
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import VolumeHeader, data_beside

_LONGEST_LINE, _MOST_LINES = 4096, 200
_KINDS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def metaimage_header(path: Path) -> VolumeHeader:
    """The header of ``path``. DataError naming the field that is missing or wrong."""
    try:
        fields, end = _fields(path)
        return _checked(path, fields, end)
    except ValueError as error:  # a field that should be numbers is not
        raise DataError(f"{path}: cannot be read as an image (damaged MetaImage header: {error})") from error


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Fields up to ElementDataFile, which is the last, and where the header ends."""
    fields: dict[str, str] = {}
    with BoundedFile(path) as stream:
        for _ in range(_MOST_LINES):
            line = stream.readline(_LONGEST_LINE)
            name, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                break
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                return fields, stream.tell()
    raise DataError(f"{path}: cannot be read as an image (no MetaImage header: no ElementDataFile)")


def _checked(path: Path, fields: dict[str, str], end: int) -> VolumeHeader:
    axes = int(fields.get("NDims", "0"))
    if not 1 <= axes <= 10:
        raise ValueError(f"NDims is {axes}")
    sizes = tuple(int(size) for size in fields.get("DimSize", "").split())
    if len(sizes) != axes:
        raise ValueError(f"DimSize has {len(sizes)} of {axes} sizes")
    while axes > 3 and sizes[-1] == 1:
        axes, sizes = axes - 1, sizes[:-1]
    kind = fields.get("ElementType", "")
    if kind not in _KINDS:
        raise ValueError(f"ElementType {kind!r} is not read")
    if not _true(fields, "BinaryData", "BinaryData" not in fields):
        raise ValueError("BinaryData is not True")
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    name = fields["ElementDataFile"]
    if name.upper() == "LIST" or "%" in name or (len(name.split()) > 1 and not (path.parent / name).exists()):
        raise DataError(f"{path}: its voxels are in several files; store them as one .mha, .nrrd or .nii.gz")
    local = name.upper() == "LOCAL"
    data = path if local else data_beside(path, name)
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    issues: list[str] = []
    header = VolumeHeader(
        sizes=sizes if channels == 1 else (channels, *sizes),
        dtype=np.dtype((">" if big else "<") + _KINDS[kind]),
        affine=_affine(fields, len(fields["DimSize"].split()), issues),
        data=data,
        offset=end if local else 0,
        encoding="zlib" if _true(fields, "CompressedData") else "raw",
        list_axis=None if channels == 1 else 0,
        issues=issues,
    )
    header.skip(int(fields.get("HeaderSize", "0")), "HeaderSize")
    return header


def _affine(fields: dict[str, str], axes: int, issues: list[str]) -> np.ndarray:
    """MetaImage's coordinates are LPS mm; a row of the matrix is the direction of one axis."""
    affine = np.eye(4)
    if axes < 3:
        return affine
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), axes)
    if spacing is None:
        issues.append("MetaImage without ElementSpacing: 1 mm taken")
        spacing = np.ones(axes)
    if not spacing[:3].min() > 0:
        raise ValueError(f"ElementSpacing {spacing.tolist()} is not above 0")
    direction = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), axes * axes)
    origin = _numbers(fields, ("Offset", "Position", "Origin"), axes)
    if direction is None:
        issues.append("MetaImage without TransformMatrix: axes taken as left, posterior, superior")
        direction = np.eye(axes).ravel()
    affine[:3, :3] = direction.reshape(axes, axes)[:3, :3].T * spacing[:3]
    if origin is not None:
        affine[:3, 3] = origin[:3]
    return affine


def _numbers(fields: dict[str, str], names: tuple[str, ...], count: int) -> np.ndarray | None:
    for name in names:
        if name in fields:
            values = np.array([float(value) for value in fields[name].split()])
            if len(values) != count or not np.isfinite(values).all():
                raise ValueError(f"{name} has {len(values)} of {count} numbers")
            return values
    return None


def _true(fields: dict[str, str], name: str, default: bool = False) -> bool:
    return fields[name].upper() in ("TRUE", "1", "T") if name in fields else default
