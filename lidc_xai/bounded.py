"""Reading no more than a file can hold: lengths and sizes in damaged or hostile files are met before memory is."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lidc_xai.errors import DataError

PACKED_RATIO = 100
"""More than this is not believed of packed data, beyond what :data:`UNPACKED_BYTES` allows anyway."""
UNPACKED_BYTES = 2**30
"""One packed file or archive may always unpack to so much: a blank label volume packs 1000 to 1."""
_CHUNK = 2**24
_SMALL = 2**16


class BoundedFile(io.BufferedReader):
    """A file open for reading whose ``read`` reserves no more than what is left of it.

    An ordinary file reserves what it is asked for, and a damaged length asks for 4 GB.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile() as file:
    ...     _ = file.write(b"abc"), file.flush()
    ...     with BoundedFile(Path(file.name)) as bounded:
    ...         bounded.read(2**40), bounded.size
    (b'abc', 3)
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self.size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, and at most what is left."""
        if size is None or size < 0 or size > _SMALL:
            left = max(0, self.size - self.tell())
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)


def unpacked_limit(packed_bytes: int) -> int:
    """How many bytes something of ``packed_bytes`` may unpack to: the larger of 1 GiB and 100 times its size.

    >>> unpacked_limit(6_000_000) == 2**30, unpacked_limit(2**30) == 100 * 2**30
    (True, True)
    """
    return max(UNPACKED_BYTES, PACKED_RATIO * packed_bytes)


def read_up_to(read: Callable[[int], bytes], count: int) -> bytearray:
    """``count`` bytes from ``read(size)``, fewer where it ends before; memory grows with what comes.

    >>> bytes(read_up_to(io.BytesIO(b"abc").read, 2**50))
    b'abc'
    """
    content = bytearray()
    while len(content) < count:
        part = read(min(_CHUNK, count - len(content)))
        if not part:
            break
        content += part
    return content


def inflate(packed: bytes | memoryview, count: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """The first ``count`` bytes (at most) of a deflated stream; zlib.error where it is damaged."""
    return zlib.decompressobj(wbits).decompress(packed, count)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip open for reading. DataError where it is none, or says that it unpacks to more than it can hold."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds on damaged directories
        raise DataError(f"{path}: cannot be read as a zip ({error})") from error
    declared = sum(info.file_size for info in archive.infolist())
    if declared > unpacked_limit(path.stat().st_size):
        archive.close()
        raise DataError(
            f"{path}: says that {path.stat().st_size:,} bytes unpack to {declared:,}; if you trust it, unpack it and "
            "give its folder"
        )
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """One member of a zip, or its first ``most`` bytes.

    DataError naming it where it is encrypted, packed in an unknown way or damaged.
    """
    name = f"{Path(str(archive.filename)).name}: {info.filename}"
    try:
        with archive.open(info) as stream:
            data = read_up_to(stream.read, info.file_size if most is None else most)
    except RuntimeError as error:  # also NotImplementedError: a method that zipfile does not know
        words = "is encrypted" if info.flag_bits & 1 else f"is packed in a way that is not read ({error})"
        raise DataError(f"{name}: {words}; unpack the zip and give its folder") from error
    except Exception as error:
        raise DataError(f"{name}: cannot be unpacked ({error})") from error
    return bytes(data)


_LARGEST = 1 << 30
_DAMAGE = (
    EOFError, ValueError, KeyError, SyntaxError, tokenize.TokenError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz(path: Path | str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays ``names`` of an ``.npz`` file; DataError where it is damaged, lacks one, or says more than it holds.

    Raises FileNotFoundError where there is no file. Pickled objects are not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _read_member(archive, f"{name}.npy") for name in names}
    except FileNotFoundError:
        raise
    except (*_DAMAGE, OSError) as error:
        raise DataError(f"{path}: cannot be read as arrays ({error})") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    if size > _LARGEST:
        raise ValueError(f"{name} would take {size} bytes")
    with archive.open(name) as packed:
        data = packed.read(size + 1)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of format {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(stream)
    if kind.hasobject or math.prod(shape) * kind.itemsize != len(data) - stream.tell():
        raise ValueError(f"{name} says {shape} of {kind}, which is not what it holds")
    return np.load(io.BytesIO(data), allow_pickle=False)
