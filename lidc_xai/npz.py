"""Arrays of an ``.npz`` file, read without trust: sizes are checked against the file before memory is taken."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lidc_xai.errors import DataError

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
