"""The ways in: a folder, a DICOMDIR (its folder is meant) or a zip, as one index of series."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lidc_xai.bounded import open_zip, read_member
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.ct.dicom_index import FolderIndex, begins_like_dicom, index_folder, is_companion
from lidc_xai.imaging.names import path_safe

_ZIP = b"PK\x03\x04"


def is_medium(path: Path) -> bool:
    """Whether a path is searched for series: a folder, a zip, a DICOMDIR."""
    return path.is_dir() or is_zip(path) or path.name.upper() == "DICOMDIR"


def is_zip(path: Path) -> bool:
    """Whether a file is a zip by its name or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == _ZIP


@contextmanager
def indexed(path: Path, jobs: int = 1) -> Iterator[FolderIndex]:
    """The series of a folder, a DICOMDIR's folder or a zip.

    A zip is unpacked into a temporary folder, which is there as long as the block runs. Its members that cannot be
    unpacked are damaged files of the index. Raises UsageError for a missing path or one without DICOM, DataError for a
    zip that cannot be opened.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not is_zip(path):
        yield index_folder(path.parent if path.name.upper() == "DICOMDIR" and path.is_file() else path, jobs)
        return
    with TemporaryDirectory(prefix="lidc-xai-") as folder:
        try:
            lost, count = _unpack(path, Path(folder))
        except OSError as error:
            raise DataError(f"{path}: cannot be unpacked in {folder} ({error.strerror}); set TMPDIR") from error
        try:
            index = index_folder(folder, jobs)
        except UsageError:
            index = FolderIndex(Path(folder))
        index.zip_file = path
        index.damaged += lost
        index.foreign += count
        if not index.series and not index.damaged:
            raise UsageError(f"{path}: holds no DICOM file ({count} files looked at)")
        yield index


def _unpack(path: Path, folder: Path) -> tuple[list[tuple[Path, str]], int]:
    """Write what may be DICOM, and reader XML; returns members that are damaged, and how many are of other kinds."""
    lost: list[tuple[Path, str]] = []
    others = 0
    with open_zip(path) as archive:
        for number, info in enumerate(archive.infolist()):
            name = info.filename.rpartition("/")[2]
            if info.is_dir() or name.startswith("._"):
                continue
            target = _target(folder, info, number)
            try:
                wanted = target.suffix.lower() in (".dcm", ".dicom", ".ima", ".xml")
                if not wanted and not begins_like_dicom(read_member(archive, info, 132)):
                    others += not is_companion(target)
                    continue
                data = read_member(archive, info)
            except DataError as error:
                lost.append((target, str(error)))
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return lost, others


def _target(folder: Path, info: zipfile.ZipInfo, number: int) -> Path:
    """Where a member goes: names from a zip never leave ``folder``, whatever they say."""
    *parents, name = (path_safe(part) for part in info.filename.split("/"))
    target = folder.joinpath("-".join(part for part in parents if part)[-100:] or ".", name or f"member{number}")
    return target if not target.exists() else target.with_name(f"{number}-{target.name}")
