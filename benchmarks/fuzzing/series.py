"""Series of DICOM slices, as files and in a ZIP, and the PNG edition."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from fuzzing.mutators import Rng, damage_bytes, pick
from fuzzing.watch import Kind
from lidc_xai.imaging import read_ct
from lidc_xai.imaging.png.source import PngEdition

SERIES: dict[str, Kind] = {}
SHAPE = (6, 20, 24)
_RNG = 7


def identifier(*words: str) -> str:
    return generate_uid(entropy_srcs=["lidc_xai fuzz", *words])


def example_hu() -> np.ndarray:
    hu = np.random.default_rng(_RNG).integers(-900, -700, SHAPE)
    hu[2:4, 8:12, 8:14] = 40
    return hu.astype(np.int16)


def write_series(folder: Path, change: Callable[[Dataset, int], None] | None = None) -> None:
    """A small CT series; its last two slices are compressed (RLE)."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, values in enumerate(example_hu()):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = identifier("slice", str(k))
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = identifier("series"), identifier("study")
        dataset.FrameOfReferenceUID = identifier("frame")
        dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", "P1", k + 1
        dataset.ImageType, dataset.AcquisitionNumber, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, 120
        dataset.ConvolutionKernel, dataset.SliceThickness = "B30f", "2.5"
        dataset.ImagePositionPatient = [-8, -6, -14 + 2.5 * k]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
        dataset.Rows, dataset.Columns = values.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
        dataset.PixelPaddingValue = -2000
        dataset["PixelPaddingValue"].VR = "SS"
        dataset.PixelData = (values + 1024).astype("<i2").tobytes()
        if k >= 4:
            dataset.compress(RLELossless, generate_instance_uid=False)
        if change is not None:
            change(dataset, k)
        dataset.save_as(folder / f"slice{k}.dcm", enforce_file_format=True)


_FIELDS = (
    "InstanceNumber", "PixelRepresentation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "PixelPaddingValue", "AcquisitionNumber", "KVP", "ImageType", "SamplesPerPixel",
    "PhotometricInterpretation", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "PatientID",
)  # fmt: skip
_VRS = (b"US", b"SS", b"UL", b"FD", b"FL", b"IS", b"DS", b"SQ", b"OB", b"OW", b"UN", b"AT", b"PN", b"UI", b"DA", b"ZZ")
_TEXTS = (
    "",
    "x",
    "1e9",
    "-1",
    "nan",
    "1.5",
    "1\\2",
    "99999999999",
    "\u00b5",
    "10000",
    "1000000000",
    "Z_EFF",
    "DOSE_INFO",
)
_SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2.3",
)  # fmt: skip


def damage_dicom(path: Path, rng: Rng) -> str:
    """One DICOM file: bytes anywhere, a VR, a value, the transfer syntax, or a length."""
    way = int(rng.integers(6))
    if way <= 1:
        return damage_bytes(path, rng, None if way else 900)
    data = path.read_bytes()
    name = pick(_FIELDS, rng)
    tag = struct.pack("<HH", *divmod(pydicom.datadict.tag_for_keyword(name) or 0, 65536))
    at = data.find(tag, 132)
    if way == 2 and at > 0:
        vr = pick(_VRS, rng)
        path.write_bytes(data[: at + 4] + vr + data[at + 6 :])
        return f"{path.name}: {name} has VR {vr!r}"
    if way == 3 and at > 0:
        length = int(rng.integers(0, 65536))
        path.write_bytes(data[: at + 6] + struct.pack("<H", length) + data[at + 8 :])
        return f"{path.name}: {name} has length {length}"
    if way == 4:
        syntax = pick(_SYNTAXES, rng).encode()
        for known in (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"):
            data = data.replace(struct.pack("<H", len(known)) + known, struct.pack("<H", len(syntax)) + syntax, 1)
        path.write_bytes(data)
        return f"{path.name}: TransferSyntaxUID {syntax.decode()}"
    if at > 0:
        (length,) = struct.unpack_from("<H", data, at + 6)
        text = pick(_TEXTS, rng).encode("utf-8")
        path.write_bytes(data[: at + 6] + struct.pack("<H", len(text)) + text + data[at + 8 + length :])
        return f"{path.name}: {name} is {text!r}"
    return damage_bytes(path, rng)


def damage_series(folder: Path, rng: Rng) -> str:
    paths = sorted(folder.glob("slice*.dcm"))
    count = int(rng.integers(1, 3)) if rng.random() < 0.8 else len(paths)
    return "; ".join(damage_dicom(paths[place], rng) for place in rng.permutation(len(paths))[:count])


SERIES["dicom"] = Kind(write_series, damage_series, read_ct)


def _zip_series(folder: Path) -> None:
    write_series(folder / "series")
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "series").iterdir()):
            archive.write(path, f"a/{path.name}")
    shutil.rmtree(folder / "series")


def _damage_zip(folder: Path, rng: Rng) -> str:
    path = next(folder.glob("*.zip"))
    way = int(rng.integers(5))
    if way <= 1:
        return damage_bytes(path, rng)
    data = bytearray(path.read_bytes())
    places = [at for mark in (b"PK\1\2", b"PK\3\4") for at in _all(data, mark)]
    words = []
    for at in places:
        if rng.random() < 0.5:
            continue
        field = {b"PK\1\2": (8, 10, 20, 24, 42), b"PK\3\4": (6, 8, 18, 22, 26)}[bytes(data[at : at + 4])]
        offset = int(pick(field, rng))
        data[at + offset : at + offset + 2] = pick((b"\1\0", b"\x63\0", b"\xff\xff", b"\x0c\0", rng.bytes(2)), rng)
        words.append(f"{offset} at {at}")
    if way == 4:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(pick(("../../evil.dcm", "/etc/x.dcm", "bomb.dcm", "x" * 300), rng), bytes(2**22))
        return "a member that leaves the zip, or unpacks to 4 MiB"
    path.write_bytes(bytes(data))
    return f"{path.name}: {', '.join(words)}"


def _all(data: bytes | bytearray, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


SERIES["zip"] = Kind(_zip_series, _damage_zip, lambda folder: read_ct(next(folder.glob("*.zip"))))


def _png_edition(folder: Path) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(content, "PNG")
    with zipfile.ZipFile(folder / "slices.zip", "w") as archive:
        for part in ("images", *(f"mask-{reader}" for reader in range(4))):
            for number in range(2):
                archive.writestr(f"LIDC-IDRI-0001/nodule-0/{part}/slice-{number}.png", content.getvalue())


def _read_png(folder: Path) -> None:
    edition = PngEdition(next(folder.glob("*.zip")))
    for patient, groups in edition.patients.items():
        for group in groups:
            edition.read(patient, group)


SERIES["png"] = Kind(_png_edition, _damage_zip, _read_png)
