"""Which DICOM series lie under a folder, found by file header: names, extensions and folders do not matter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydicom

from lidc_xai.errors import UsageError
from lidc_xai.progress import track

_BATCH = 256
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
    """All series under a folder, and files that claim to be DICOM (by name) but cannot be read: (path, reason)."""

    folder: Path
    series: dict[str, SeriesFiles] = field(default_factory=dict)
    damaged: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def ct(self) -> dict[str, SeriesFiles]:
        """The series with Modality CT."""
        return {uid: found for uid, found in self.series.items() if found.modality == "CT"}

    def damaged_beside(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Damaged files in the folders that hold ``paths``: perhaps slices of the same series."""
        folders = {path.parent for path in paths}
        return [(path, reason) for path, reason in self.damaged if path.parent in folders]

    def modalities(self) -> str:
        """How many series of which modality, in words."""
        found = [series.modality or "unknown" for series in self.series.values()]
        return ", ".join(f"{found.count(name)} {name}" for name in sorted(set(found)))


_Found = tuple[Literal["series"], Path, str, str] | tuple[Literal["damaged"], Path, str]


def index_folder(folder: Path | str, jobs: int = 1) -> FolderIndex:
    """Read the head of every file under ``folder`` (0.5 ms each) and group files by SeriesInstanceUID.

    Raises UsageError where the folder is missing or holds no DICOM file at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    paths = sorted(_files_below(folder))
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    index = FolderIndex(folder)
    for found in _read_batches(batches, jobs):
        for item in found:
            if item[0] == "damaged":
                index.damaged.append((item[1], item[2]))
                continue
            _, path, series_uid, modality = item
            index.series.setdefault(series_uid, SeriesFiles(series_uid, modality)).paths.append(path)
    if not index.series and not index.damaged:
        raise UsageError(f"{folder}: holds no DICOM file ({len(paths)} files looked at)")
    return index


def _read_batches(batches: list[list[Path]], jobs: int) -> Iterable[list[_Found]]:
    if jobs == 1 or len(batches) < 2:
        return track((_read_batch(batch) for batch in batches), "reading headers", total=len(batches))
    from joblib import Parallel, delayed

    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_read_batch)(batch) for batch in batches)
    return track(work, "reading headers", total=len(batches))


def _files_below(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(_MACOS):
                yield Path(place, name)


def _read_batch(paths: Iterable[Path]) -> list[_Found]:
    return [found for found in map(_read_one, paths) if found is not None]


def _read_one(path: Path) -> _Found | None:
    """Series and modality of one file; ``None`` for a file that is not DICOM and does not claim to be."""
    claims = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    try:
        if not _begins_like_dicom(path):
            return ("damaged", path, "is not DICOM or its head is damaged") if claims else None
        tags = ["SeriesInstanceUID", "Modality"]
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
        series_uid = str(header.get("SeriesInstanceUID", "") or "")
        modality = str(header.get("Modality", "") or "")
    except Exception as error:  # pydicom raises anything on damaged bytes; the file is named by whoever reports it
        return ("damaged", path, f"header cannot be read ({error})")
    if not series_uid:
        # A DICOMDIR has no series and is no loss; an image without one cannot be placed.
        return ("damaged", path, "header has no SeriesInstanceUID") if claims else None
    return ("series", path, series_uid, modality)


def _begins_like_dicom(path: Path) -> bool:
    """A preamble with DICM, or (older files without one) an element of group 2 or 8 at once."""
    with path.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or head[:4] in _FIRST_ELEMENTS
