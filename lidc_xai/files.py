"""Atomic files: whoever reads a path finds the whole of a file or none of it, also after a kill.

What is being written is called ``.tmp-<host>-<process>-<random>-<name>``, so that others can tell whether its writer
still lives.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from lidc_xai.errors import DataError, StorageError

State = tuple[tuple[int, int, int], ...]
"""Of every file: inode, time of the last change, size."""
_LARGEST_JSON = 1 << 28
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}-")
_FORGOTTEN_S = 3600.0
"""A temporary file that nobody has touched for this long has no writer any more, wherever that was."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary name beside ``path`` (same extension); rename it to ``path`` when the block ends well.

    Works for one file and for a folder (an existing folder is replaced). After an exception nothing remains.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent}: cannot be written ({error.strerror}); choose another --out") from error
    temporary = path.parent / f".tmp-{_HOST}-{os.getpid()}-{uuid4().hex[:8]}-{path.name[-80:]}"
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # raised by a library for its own reasons: not a fault of the disk
            raise
        remedy = "free space or choose another --out"
        raise StorageError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON atomically; NaN is refused, since other readers of JSON refuse it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold: NumPy scalars and arrays to Python, NaN, infinity and pandas' NA to ``None``, other objects
    to text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; DataError where it is damaged, nested without end, or too large for a record."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, more than any record of this package")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def state_of(path: Path | str) -> State:
    """What changes when a file, or one directly in a folder, is replaced or written: what a cache keyed by a path keeps
    beside what it read. Empty where there is nothing."""
    path = Path(path)
    try:
        items = sorted(os.scandir(path), key=lambda item: item.name) if path.is_dir() else []
        states = [path.stat(), *(item.stat() for item in items)]
    except OSError:
        return ()
    return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)


def remove_half_written(folder: Path | str) -> int:
    """Remove what killed processes left under ``folder``; returns how many files and folders that were.

    What a process that still lives is writing stays: on this host by its number, on another one for an hour.
    """
    left = [Path(parent) / name for parent, name in _temporaries(Path(folder)) if _is_left_over(Path(parent) / name)]
    for item in left:
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return len(left)


def _temporaries(folder: Path) -> Iterator[tuple[str, str]]:
    for parent, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if name.startswith(".tmp-")]
        folders[:] = [name for name in folders if not name.startswith(".tmp-")]
        yield from ((parent, name) for name in names)


def _is_left_over(item: Path) -> bool:
    name = _TEMPORARY.match(item.name)
    if name is None:
        return True
    try:
        if time.time() - item.lstat().st_mtime > _FORGOTTEN_S:
            return True
    except OSError:  # finished or removed in the meantime
        return False
    host, process = name.groups()
    return host == _HOST and not _lives(int(process))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


MOST_BYTES = 100
"""File systems allow 255 bytes for a name; temporary names are longer than their target."""


def path_safe(text: str, default: str = "") -> str:
    """``text`` with letters and digits of any script, ``.``, ``_`` and ``-``; everything else becomes one ``-``.

    Composed (NFC), without ``-`` and ``.`` at its ends, at most 100 bytes of UTF-8 (longer ones keep their beginning
    and get a hash); ``default`` where nothing is left.

    >>> path_safe("Узел 1"), path_safe("../../etc"), path_safe("???", "point")
    ('Узел-1', 'etc', 'point')
    """
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text)).strip("-.")
    if len(name.encode()) > MOST_BYTES:
        mark = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[: MOST_BYTES - 9].decode("utf-8", "ignore").rstrip("-.") + f"-{mark}"
    return name or default
