"""What compressed pixels say of themselves: their kind and size, compared with the header before they are decoded."""

from __future__ import annotations

import struct
from pathlib import Path

from pydicom.uid import UID

from lidc_xai.errors import DataError

MOST_SIDE = 8192
"""No CT slice has more rows or columns; decoders reserve what a compressed picture claims."""
_RLE_RATIO = 64
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_codestream(
    path: Path, syntax: UID, items: bytes, length: int, shape: tuple[int, int, int], bits: int
) -> None:
    """Refuse compressed pixels of another kind or size than the header's.

    ``items``: the fragments with their tags, as much of them as holds the first one's head; ``length``: of all of them
    in bytes; ``shape``: frames, rows and columns of ``bits`` allocated each, as the header says.

    DataError naming what differs.
    """
    frames, rows, columns = shape
    if max(rows, columns) > MOST_SIDE:
        raise DataError(f"{path.name}: {rows} x {columns} compressed pixels are not a CT slice")
    first = _first_fragment(items)
    kind, size = _kind(first)
    wanted = _wanted(syntax)
    if kind != wanted:
        raise DataError(f"{path.name}: TransferSyntaxUID says {syntax.name}, but the pixels are {kind or 'damaged'}")
    if size is not None and size != (rows, columns):
        raise DataError(
            f"{path.name}: its compressed pixels are {size[0]} x {size[1]}, its header says {rows} x {columns}"
        )
    if kind == "RLE" and frames * rows * columns * bits // 8 > _RLE_RATIO * length:
        raise DataError(f"{path.name}: {length} bytes of RLE cannot hold {frames} x {rows} x {columns} pixels")


def _wanted(syntax: UID) -> str:
    if "RLE" in syntax.name:
        return "RLE"
    for name in ("JPEG-LS", "JPEG 2000", "JPEG"):
        if name in syntax.name:
            return name
    return syntax.name


def _first_fragment(items: bytes) -> bytes:
    """The first item after the table of offsets."""
    (table,) = struct.unpack_from("<I", items, 4) if len(items) >= 8 else (0,)
    at = 8 + table
    if at + 8 > len(items):
        return b""
    (length,) = struct.unpack_from("<I", items, at + 4)
    return items[at + 8 : at + 8 + length]


def _kind(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """Its kind by its first bytes, and rows and columns where these say so."""
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        at = data.find(b"\xff\x4f\xff\x51")
        if at < 0 or len(data) < at + 42:
            return "damaged JPEG 2000", None
        width, height, left, top = struct.unpack_from(">4I", data, at + 8)
        (colours,) = struct.unpack_from(">H", data, at + 40)
        return _grey("JPEG 2000", colours), (height - top, width - left)
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if len(data) >= 64 and 1 <= struct.unpack_from("<I", data)[0] <= 15:
        return "RLE", None
    return "", None


def _jpeg(data: bytes) -> tuple[str, tuple[int, int] | None]:
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            return _grey("JPEG-LS" if marker == 0xF7 else "JPEG", data[at + 9]), (rows, columns)
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return "damaged JPEG", None


def _grey(kind: str, colours: int) -> str:
    return kind if colours == 1 else f"{kind} of {colours} colours"
