"""Which DICOM series lie in a folder, a DICOMDIR's folder or a zip, found by file header: names, extensions and folders
do not matter.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.config import disable_value_validation

from lidc_xai.bounded import open_zip, read_member
from lidc_xai.dicom_stream import read_dataset
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import path_safe
from lidc_xai.progress import track

_BATCH = 256
_LONGEST_UID = 64
_FIRST_ELEMENTS = (
    b"\x02\x00\x00\x00",
    b"\x08\x00\x00\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
)
_MACOS = "._"
"""Begins the names of what macOS leaves beside every file on other disks."""


@dataclass
class SeriesFiles:
    """The files of one series as their headers sort them."""

    series_uid: str
    modality: str
    paths: list[Path] = field(default_factory=list)


@dataclass
class FolderIndex:
    """All series under a folder, and files that claim to be DICOM (by name) but cannot be read: (path, reason).

    ``foreign``: number of files that are not DICOM (reader XML and a DICOMDIR apart). ``zip_file``: what the folder was
    unpacked from.
    """

    folder: Path
    series: dict[str, SeriesFiles] = field(default_factory=dict)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    foreign: int = 0
    zip_file: Path | None = None

    @property
    def source(self) -> Path:
        """What the user gave: the folder or the zip."""
        return self.zip_file or self.folder

    @property
    def ct(self) -> dict[str, SeriesFiles]:
        """The series with Modality CT."""
        return {uid: files for uid, files in self.series.items() if files.modality == "CT"}

    def damaged_beside(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Damaged files in the folders that hold ``paths``: perhaps slices of the same series."""
        folders = {path.parent for path in paths}
        return [(path, reason) for path, reason in self.damaged if path.parent in folders]

    def passed_over(self) -> list[str]:
        """The files that are not DICOM, in a word."""
        return [f"{self.foreign} file(s) that are not DICOM passed over"] if self.foreign else []

    def modalities(self) -> str:
        """How many series of which modality, in words."""
        modalities = [series.modality or "unknown" for series in self.series.values()]
        return ", ".join(f"{modalities.count(name)} {name}" for name in sorted(set(modalities)))


_Found = tuple[Path, str, str, str]
"""A file, what is wrong with it ("": nothing), its series and modality."""


def index_folder(folder: Path | str, jobs: int = 1) -> FolderIndex:
    """Read the head of every file under ``folder`` (0.5 ms each) and group files by SeriesInstanceUID.

    Raises UsageError where the folder is missing or holds no DICOM file at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    unreadable: list[tuple[Path, str]] = []
    paths = sorted(_files_below(folder, unreadable))
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    index = FolderIndex(folder, damaged=unreadable)
    seen = set()
    for files in _read_batches(batches, jobs):
        for path, problem, series_uid, modality in files:
            seen.add(path)
            if problem:
                index.damaged.append((path, problem))
            else:
                index.series.setdefault(series_uid, SeriesFiles(series_uid, modality)).paths.append(path)
    index.foreign = sum(path not in seen and not is_companion(path) for path in paths)
    if not index.series and not index.damaged:
        raise UsageError(f"{folder}: holds no DICOM file ({len(paths)} files looked at)")
    return index


def _read_batches(batches: list[list[Path]], jobs: int) -> Iterable[list[_Found]]:
    if jobs == 1 or len(batches) < 2:
        return track((_read_batch(batch) for batch in batches), "reading headers", total=len(batches))
    from joblib import Parallel, delayed

    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_read_batch)(batch) for batch in batches)
    return track(work, "reading headers", total=len(batches))


def _files_below(folder: Path, unreadable: list[tuple[Path, str]]) -> Iterable[Path]:
    """Ordinary files, links to folders followed, every folder once; folders that may not be read go to the list."""

    def note(error: OSError) -> None:
        unreadable.append((Path(str(error.filename)), f"folder cannot be read ({error.strerror})"))

    top = os.path.realpath(folder)
    walked = {top}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        new = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if real not in walked and not top.startswith(os.path.join(real, "")):  # nor what the folder itself lies in
                walked.add(real)
                new.append(name)
        folders[:] = new
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(_MACOS) and os.path.isfile(path):  # a pipe would never end
                yield Path(path)


def _read_batch(paths: Iterable[Path]) -> list[_Found]:
    return [header for header in map(_read_one, paths) if header is not None]


def _read_one(path: Path) -> _Found | None:
    """Series and modality of one file; ``None`` for a file that is not DICOM and does not claim to be."""
    claims = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
        if not begins_like_dicom(head):
            return (path, "is not DICOM or its head is damaged", "", "") if claims else None
        with disable_value_validation():  # what is odd and no harm is not remarked on file by file
            header, opened, _ = read_dataset(path, ["SeriesInstanceUID", "Modality"])
            opened.close()
            series_uid = str(header.get("SeriesInstanceUID", "") or "")  # converted here, as late as pydicom can
            modality = str(header.get("Modality", "") or "")
        if len(series_uid) > _LONGEST_UID or not series_uid.isascii() or not series_uid.isprintable():
            return path, "SeriesInstanceUID is damaged", "", ""
    except DataError as error:
        return path, str(error).removeprefix(f"{path.name}: "), "", ""
    except Exception as error:  # pydicom raises anything on damaged bytes; the file is named by whoever reports it
        return path, f"header cannot be read ({error})", "", ""
    if not series_uid:
        # A DICOMDIR has no series and is no loss; an image without one cannot be placed.
        return (path, "header has no SeriesInstanceUID", "", "") if claims else None
    return path, "", series_uid, modality


def begins_like_dicom(head: bytes) -> bool:
    """The first 132 bytes: a preamble with DICM, or (older files without one) an element of group 2 or 8 at once."""
    return head[128:132] == b"DICM" or head[:4] in _FIRST_ELEMENTS


def is_companion(path: Path) -> bool:
    """Whether a file that is not DICOM belongs beside a series: reader XML, a DICOMDIR, a licence."""
    return path.suffix.lower() == ".xml" or path.name.upper() in ("DICOMDIR", "LICENSE", "LICENSE.TXT")


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
