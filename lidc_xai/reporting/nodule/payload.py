"""What a page's script needs, in one compressed block: a JSON header and raw arrays, gzip, base64.

Layout before compression: 4 bytes header length (little endian), the header as UTF-8, padding to 8 bytes, then the
arrays, each padded to 8 bytes. The header's ``arrays`` give ``dtype``, ``shape`` and ``offset`` (from the first array).
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGN = 8
_DTYPES = ("int16", "uint8", "float32")


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> str:
    """Header (JSON-able) and arrays (int16, uint8 or float32) as base64 text, the same text for the same content."""
    table, blocks, offset = {}, [], 0
    for name, array in arrays.items():
        dtype = str(array.dtype)
        if dtype not in _DTYPES:
            raise TypeError(f"array {name!r} has dtype {dtype}; a page's script reads {', '.join(_DTYPES)}")
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        table[name] = {"dtype": dtype, "shape": list(array.shape), "offset": offset}
        blocks.append(data + bytes(-len(data) % _ALIGN))
        offset += len(blocks[-1])
    text = json.dumps({**header, "arrays": table}, separators=(",", ":"), allow_nan=False).encode("utf-8")
    body = len(text).to_bytes(4, "little") + text
    body += bytes(-len(body) % _ALIGN)
    return base64.b64encode(gzip.compress(body + b"".join(blocks), 6, mtime=0)).decode("ascii")


def unpack(text: str) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The inverse of ``pack``."""
    body = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    start = 4 + length + -(4 + length) % _ALIGN
    arrays = {}
    for name, entry in header.pop("arrays").items():
        count = int(np.prod(entry["shape"]))
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        arrays[name] = np.frombuffer(body, dtype, count, start + entry["offset"]).reshape(entry["shape"])
    return header, arrays


def differences(volume: NDArray, step: float = 1.0) -> NDArray[np.int16]:
    """HU (z, y, x) rounded to ``step`` and differenced along x: small numbers, which compress well.

    The script adds them up again: value[x] = step · (d[0] + … + d[x]).
    """
    levels = np.clip(np.round(np.asarray(volume, np.float32) / step), -32768 // 2, 32767 // 2).astype(np.int16)
    return np.diff(levels, axis=-1, prepend=np.int16(0)).astype(np.int16)
