"""Atomic files: whoever reads a path finds the whole of a file or none of it, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from lidc_xai.errors import LidcXaiError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary name beside ``path`` (same extension); rename it to ``path`` when the block ends well.

    Works for one file and for a folder (an existing folder is replaced). After an exception nothing remains.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LidcXaiError(f"{path.parent}: cannot be written ({error.strerror}); choose another --out") from error
    temporary = path.parent / f".tmp-{uuid4().hex[:8]}-{path.name}"
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # raised by a library for its own reasons: not a fault of the disk
            raise
        remedy = "free space or choose another --out"
        raise LidcXaiError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error
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


def remove_half_written(folder: Path | str) -> int:
    """Remove what a killed run left under ``folder``; returns how many such files and folders there were."""
    left = list(Path(folder).rglob(".tmp-*"))
    for item in left:
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return len(left)
