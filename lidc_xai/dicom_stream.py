"""A DICOM file open for reading: how it is encoded, where its pixels lie and what compressed ones say of themselves,
checked before pydicom or GDCM meet it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import UID, AllTransferSyntaxes, ImplicitVRLittleEndian

from lidc_xai.bounded import BoundedFile, inflate
from lidc_xai.errors import DataError

_PREAMBLE = 132
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PLAIN = b"1.2.840.10008.1.2.1\0\0\0"
_INFLATED_BYTES, _INFLATED_RATIO = 2**26, 20
_PIXELS, _FLOAT_PIXELS = (0x7FE0, 0x0010), ((0x7FE0, 0x0008), (0x7FE0, 0x0009))
_UNDEFINED = 0xFFFFFFFF
_TRAILING = 64
_FRAGMENT, _END_OF_FRAGMENTS = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
MOST_SIDE = 8192
"""No CT slice has more rows or columns; decoders reserve what a compressed picture claims."""
_RLE_RATIO = 64
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class PixelPlace:
    """Where the pixels of a file are: ``length`` bytes from ``start`` on; compressed ones with their items around."""

    syntax: UID
    start: int
    length: int


def read_dataset(path: Path, tags: Sequence[str]) -> tuple[pydicom.Dataset, BinaryIO, UID]:
    """The elements ``tags`` up to the pixels, the stream (standing where pydicom stopped), and the transfer syntax.

    Raises whatever pydicom raises on damaged bytes, and DataError for a transfer syntax that the bytes belie. Close
    the stream.
    """
    stream, syntax = open_dicom(path)
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(tags), force=True), stream, syntax
    except BaseException:
        stream.close()
        raise


def open_dicom(path: Path) -> tuple[BinaryIO, UID]:
    """The file as a stream that reserves no more than is there, and its transfer syntax; a deflated one is inflated.

    DataError where TransferSyntaxUID is unknown or the first bytes are of another kind.
    """
    stream: BinaryIO = BoundedFile(path)
    try:
        named, end = _meta(stream)
        syntax = UID(named or ImplicitVRLittleEndian)
        if syntax not in AllTransferSyntaxes:
            raise DataError(f"{path.name}: TransferSyntaxUID {named[:64]!r} is no transfer syntax that is read")
        if syntax.is_deflated:
            stream = _inflated(path, stream, end)
            syntax = UID(_PLAIN.decode().rstrip("\0"))
        stream.seek(end)
        first = stream.read(2)
        if named and first in (b"\x08\0", b"\0\x08") and (first == b"\x08\0") != syntax.is_little_endian:
            actual = "little endian" if first == b"\x08\0" else "big endian"
            raise DataError(f"{path.name}: TransferSyntaxUID says {syntax.name}, but the file is {actual}")
        stream.seek(0)
    except BaseException:
        stream.close()
        raise
    return stream, syntax


def _meta(stream: BinaryIO) -> tuple[str, int]:
    """The transfer syntax that the file names ("" where none), and where its meta header ends."""
    stream.seek(0)
    if stream.read(_PREAMBLE)[128:] != b"DICM":
        return "", 0
    named = b""
    while True:
        at = stream.tell()
        head = stream.read(8)
        if len(head) < 8 or head[:2] != b"\x02\0":
            return named.decode("ascii", "replace").strip("\0 "), at
        if head[4:6] in _LONG_VR:
            (length,) = struct.unpack("<I", stream.read(4).ljust(4, b"\xff"))
        else:
            (length,) = struct.unpack("<H", head[6:])
        value = stream.read(length)
        if head[:4] == b"\x02\0\x10\0":
            named = value
        if len(value) < length:
            return named.decode("ascii", "replace").strip("\0 "), stream.tell()


def _inflated(path: Path, stream: BinaryIO, end: int) -> BinaryIO:
    """The whole file as if it had never been deflated."""
    with stream:
        stream.seek(0)
        head = stream.read(end)
        packed = stream.read()
    limit = max(_INFLATED_BYTES, _INFLATED_RATIO * len(packed))
    try:
        data = inflate(packed, limit, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise DataError(f"{path.name}: TransferSyntaxUID says deflated, but the bytes are not ({error})") from error
    if len(data) >= limit:
        raise DataError(f"{path.name}: inflates to more than {limit:,} bytes")
    return io.BytesIO(head.replace(_DEFLATED, _PLAIN) + data)


def pixel_place(path: Path, stream: BinaryIO, syntax: UID, expected: int) -> PixelPlace:
    """Where the pixels are; ``stream`` stands where the header ended, ``expected``: their bytes when unpacked.

    DataError where they are not there, not all there, or encoded in another way than the transfer syntax says.
    """
    at = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(at)
    head = stream.read(12)
    order = "<" if syntax.is_little_endian else ">"
    tag = struct.unpack(f"{order}HH", head[:4]) if len(head) == 12 else (0, 0)
    if tag in _FLOAT_PIXELS:
        raise DataError(f"{path.name}: has floating-point pixels, not stored CT values")
    if tag != _PIXELS:
        raise DataError(f"{path.name}: is truncated (0 of {expected} bytes of pixels)")
    explicit = head[4:6] in _LONG_VR
    start = at + (12 if explicit else 8)
    (length,) = struct.unpack(f"{order}I", head[8:] if explicit else head[4:8])
    if syntax.is_encapsulated != (length == _UNDEFINED):
        actual = "compressed" if length == _UNDEFINED else "not compressed"
        raise DataError(f"{path.name}: TransferSyntaxUID says {syntax.name}, but the pixels are {actual}")
    if syntax.is_encapsulated:
        return PixelPlace(syntax, start, _end_of_fragments(path, stream, start, size) - start)
    if size - start < expected:
        raise DataError(f"{path.name}: is truncated ({size - start} of {expected} bytes of pixels)")
    if length < expected:
        raise DataError(f"{path.name}: PixelData has {length} of {expected} bytes")
    stream.seek(min(size, start + length))
    after = stream.read(_TRAILING)
    if after.strip(b"\0") and (len(after) < 8 or struct.unpack(f"{order}H", after[:2])[0] <= _PIXELS[0]):
        raise DataError(f"{path.name}: is damaged (what follows its pixels is not DICOM: bytes were put in or lost)")
    return PixelPlace(syntax, start, expected)


def _end_of_fragments(path: Path, stream: BinaryIO, start: int, size: int) -> int:
    """Where the item begins that ends compressed pixels."""
    at = start
    while at + 8 <= size:
        stream.seek(at)
        group, element, length = struct.unpack("<HHL", stream.read(8))
        if (group, element) == _END_OF_FRAGMENTS:
            return at
        if (group, element) != _FRAGMENT:
            raise DataError(f"{path.name}: is damaged (its compressed pixels are not a row of fragments)")
        at += 8 + length
    raise DataError(f"{path.name}: is truncated (its compressed pixels have no end)")


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
