"""The PNG edition on disk: a zip or a folder with ``<patient>/nodule-<k>/{images,mask-0,…,mask-3}/slice-<j>.png``."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lidc_xai.bounded import open_zip, read_member
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import State, state_of

READERS = 4
MOST_PIXELS = 2**20
"""The edition's pictures have 128 x 128; a picture that says it is larger than 1024 x 1024 is not unpacked."""
_MOST_BYTES = 2**22
_PLACE = re.compile(r"(LIDC-IDRI-\d{4})/nodule-(\d+)/(images|mask-[0-3])/slice-(\d+)\.png$")


@dataclass(frozen=True, eq=False)
class PngNodule:
    """One nodule of the edition: ``images`` (n, rows, columns) uint8, ``masks`` (4, n, rows, columns) bool."""

    patient_id: str
    group: int
    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """Its place in the edition."""
        return f"{self.patient_id}/nodule-{self.group}"


class PngEdition:
    """All nodules of one zip or folder. UsageError where the path is missing or holds nothing of the kind."""

    def __init__(self, source: Path | str) -> None:
        self.source = Path(source)
        names, self._bytes = _open(self.source)
        self._files: dict[tuple[str, int], dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
        for name in names:
            place = _PLACE.search(name)
            if place:
                patient, group, part, number = place.groups()
                self._files[patient, int(group)][part][int(number)] = name
        if not self._files:
            raise UsageError(f"{self.source}: has no LIDC-IDRI-…/nodule-…/images/slice-….png; is it the PNG edition?")

    @property
    def patients(self) -> dict[str, list[int]]:
        """Groups of every patient, in order."""
        groups: dict[str, list[int]] = defaultdict(list)
        for patient, group in sorted(self._files):
            groups[patient].append(group)
        return dict(groups)

    def read(self, patient_id: str, group: int) -> PngNodule:
        """Images and masks of one nodule; DataError where a file is missing, damaged or of another size."""
        parts = self._files[patient_id, group]
        name = f"{patient_id}/nodule-{group}"
        n = len(parts["images"])
        wanted = ["images", *(f"mask-{reader}" for reader in range(READERS))]
        for part in wanted:
            if sorted(parts[part]) != list(range(n)) or n == 0:
                raise DataError(
                    f"{name}: {part} has {len(parts[part])} slices where images has {n}; the copy is damaged"
                )
        stacks = [[self._decode(parts[part][number]) for number in range(n)] for part in wanted]
        shapes = {image.shape for stack in stacks for image in stack}
        if len(shapes) > 1:
            raise DataError(f"{name}: pictures differ in size: {', '.join(map(str, sorted(shapes)))}")
        images, *masks = (np.stack(stack) for stack in stacks)
        return PngNodule(patient_id, group, images, np.stack(masks) > 0)

    def _decode(self, name: str) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(self._bytes(name)), formats=["PNG"]) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"{self.source}: {name} has {image.width} x {image.height} pixels; 128 x 128 belong"
                    )
                values = np.asarray(image)
        except DataError:
            raise
        except Exception as error:  # Pillow raises many kinds on damaged bytes
            raise DataError(f"{self.source}: {name} cannot be read ({error})") from error
        if values.ndim != 2 or values.dtype not in (np.uint8, np.bool_):
            raise DataError(f"{self.source}: {name} is not an 8-bit grey picture ({values.dtype}, {values.shape})")
        return values.astype(np.uint8)


def open_edition(source: Path) -> PngEdition:
    """The edition at ``source``, indexed once per process as long as the file or folder there is the same."""
    return _indexed(source, state_of(source))


@lru_cache(maxsize=2)
def _indexed(source: Path, state: State) -> PngEdition:
    return PngEdition(source)


def _open(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if source.is_dir():
        names = [path.relative_to(source.parent).as_posix() for path in source.rglob("slice-*.png")]
        return names, lambda name: _small(source.parent / name)
    if not source.is_file():
        raise UsageError(f"{source}: no such file or folder")
    try:
        archive = open_zip(source)
    except DataError as error:
        raise UsageError(f"{error}; is it the PNG edition, a zip or a folder?") from error
    members = {info.filename: info for info in archive.infolist() if info.file_size <= _MOST_BYTES}
    return list(members), lambda name: read_member(archive, members[name])


def _small(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES)
