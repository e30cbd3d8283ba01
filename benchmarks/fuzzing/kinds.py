"""The kinds of input that are damaged. Others register theirs in :data:`KINDS`."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydantic import Field
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from fuzzing.mutators import Rng, damage_bytes, damage_text, pick
from fuzzing.watch import Kind
from lidc_xai.annotations import load_nodules
from lidc_xai.config import Config, load_config
from lidc_xai.imaging import prepare_dicom, read_ct
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.label_volumes import read_label_volume
from lidc_xai.imaging.mask_files import read_masks
from lidc_xai.imaging.png.source import PngEdition
from lidc_xai.imaging.points import read_points

KINDS: dict[str, Kind] = {}
_SHAPE = (6, 20, 24)
_RNG = 7


def _uid(*words: str) -> str:
    return generate_uid(entropy_srcs=["lidc_xai fuzz", *words])


def _hu() -> np.ndarray:
    hu = np.random.default_rng(_RNG).integers(-900, -700, _SHAPE)
    hu[2:4, 8:12, 8:14] = 40
    return hu.astype(np.int16)


def write_series(folder: Path, change: Callable[[Dataset, int], None] | None = None) -> None:
    """A small CT series; its last two slices are compressed (RLE)."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, values in enumerate(_hu()):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid("slice", str(k))
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = _uid("series"), _uid("study")
        dataset.FrameOfReferenceUID = _uid("frame")
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


def _damage_series(folder: Path, rng: Rng) -> str:
    paths = sorted(folder.glob("slice*.dcm"))
    count = int(rng.integers(1, 3)) if rng.random() < 0.8 else len(paths)
    return "; ".join(damage_dicom(paths[place], rng) for place in rng.permutation(len(paths))[:count])


KINDS["dicom"] = Kind(write_series, _damage_series, read_ct)


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


KINDS["zip"] = Kind(_zip_series, _damage_zip, lambda folder: read_ct(next(folder.glob("*.zip"))))


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


KINDS["png"] = Kind(_png_edition, _damage_zip, _read_png)


def _image(kind: str) -> sitk.Image:
    values = np.zeros(_SHAPE, np.uint8) if kind == "labels" else _hu()
    if kind == "labels":
        values[2:4, 8:12, 8:14] = 1
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.6, 0.7, 2.5))
    image.SetOrigin((-8, -6, -14))
    return image


def _volume(name: str, packed: bool = False) -> Callable[[Path], object]:
    return lambda folder: sitk.WriteImage(_image("ct"), str(folder / name), useCompression=packed)


def _read_file(folder: Path) -> object:
    return read_ct(next(path for path in sorted(folder.iterdir()) if path.suffix not in (".raw", ".zraw")))


def _damage_nifti(folder: Path, rng: Rng) -> str:
    path = next(folder.iterdir())
    if rng.random() < 0.3:
        return damage_bytes(path, rng)
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    words = []
    for _ in range(int(rng.integers(1, 4))):
        at, kinds = pick(
            ((40, "h"), (42, "h"), (44, "h"), (46, "h"), (70, "h"), (76, "f"), (80, "f"), (84, "f"), (88, "f"),
             (108, "f"), (112, "f"), (116, "f"), (123, "B"), (252, "h"), (254, "h"), (256, "f"), (260, "f"), (268, "f"),
             (280, "f"), (284, "f"), (300, "f"), (320, "f"), (0, "i")), rng,
        )  # fmt: skip
        values = {"h": (0, -1, 1, 7, 32767, -32768, 300), "B": (0, 1, 3, 255), "i": (0, 540, -1)}.get(
            kinds, (0.0, -1.0, float("nan"), float("inf"), 1000.0, 1e30, 1e-9)
        )
        struct.pack_into(f"<{kinds}", data, at, pick(values, rng))
        words.append(str(at))
    path.write_bytes(gzip.compress(bytes(data), 1) if path.suffix == ".gz" else bytes(data))
    return f"fields at {', '.join(words)}"


KINDS["nifti"] = Kind(_volume("ct.nii"), _damage_nifti, _read_file)
KINDS["nifti-gz"] = Kind(_volume("ct.nii.gz"), _damage_nifti, _read_file)


def _damage_header(folder: Path, rng: Rng) -> str:
    """The text at the beginning of NRRD and MetaImage files, or any byte."""
    path = next(path for path in sorted(folder.iterdir()) if path.suffix not in (".raw", ".zraw"))
    if rng.random() < 0.3:
        return damage_bytes(pick(tuple(sorted(folder.iterdir())), rng), rng)
    data = path.read_bytes()
    end = data.find(b"\n\n") if path.suffix == ".nrrd" else len(data)
    if path.suffix == ".mha":
        end = data.find(b"LOCAL") + 5
    text = path.with_name("header.txt")
    text.write_bytes(data[:end])
    words = damage_text(text, rng)
    path.write_bytes(text.read_bytes() + data[end:])
    text.unlink()
    return words


KINDS["nrrd"] = Kind(_volume("ct.nrrd", packed=True), _damage_header, _read_file)
KINDS["mhd"] = Kind(_volume("ct.mhd"), _damage_header, _read_file)
KINDS["mha"] = Kind(_volume("ct.mha", packed=True), _damage_header, _read_file)


def _layered(folder: Path) -> None:
    """As 3D Slicer writes segments that overlap."""
    layers = np.zeros((*_SHAPE, 2), np.uint8)
    layers[2:4, 8:12, 8:14, 0] = 1
    layers[3:5, 9:12, 9:14, 1] = 1
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: 2 {_SHAPE[2]} {_SHAPE[1]} {_SHAPE[0]}\nspace directions: none (0.6,0,0) (0,0.7,0) (0,0,2.5)\n"
        "kinds: list domain domain domain\nencoding: gzip\nspace origin: (-8,-6,-14)\nSegment0_ID:=Segment_1\n"
        "Segment0_LabelValue:=1\nSegment0_Layer:=0\nSegment0_Name:=Nodule\nSegment1_ID:=Segment_2\n"
        "Segment1_LabelValue:=1\nSegment1_Layer:=1\nSegment1_Name:=Vessel\n\n"
    )
    (folder / "mask.seg.nrrd").write_bytes(head.encode() + gzip.compress(layers.tobytes()))


def _read_labels(folder: Path) -> list[object]:
    return list(read_label_volume(next(folder.glob("mask*")))[0])


KINDS["labels"] = Kind(_layered, _damage_header, _read_labels)


def _ct() -> CTVolume:
    affine = np.diag([0.6, 0.7, 2.5, 1.0])
    affine[:3, 3] = -8, -6, -14
    return CTVolume(_hu().astype(np.float32), affine)


def _rtstruct(folder: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid("rt")
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", _uid("rt series")
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number in (1, 2):
        name, roi = Dataset(), Dataset()
        name.ROINumber, name.ROIName = number, f"nodule {number}"
        roi.ReferencedROINumber, roi.ContourSequence = number, []
        for k in (2, 3):
            contour = Dataset()
            z = -14 + 2.5 * k
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
            contour.ContourData = [-4, -1, z, 0, -1, z, 0, 3, z, -4, 3, z]
            roi.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(name)
        dataset.ROIContourSequence.append(roi)
    dataset.save_as(folder / "mask.dcm", enforce_file_format=True)


def _damage_rtstruct(folder: Path, rng: Rng) -> str:
    path = folder / "mask.dcm"
    return damage_bytes(path, rng, None if rng.random() < 0.5 else 1500)


KINDS["rtstruct"] = Kind(_rtstruct, _damage_rtstruct, lambda folder: read_masks(folder / "mask.dcm", _ct()))


def _seg(folder: Path) -> None:
    """As highdicom writes it."""
    import highdicom
    from highdicom.sr.coding import CodedConcept
    from pydicom.uid import SegmentationStorage

    write_series(folder / "ct")
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").glob("*.dcm"))[:4]]
    for one in slices:
        one.PatientName = one.PatientBirthDate = one.PatientSex = one.StudyDate = one.StudyTime = ""
        one.AccessionNumber = one.StudyID = one.ReferringPhysicianName = ""
    mask = np.zeros((4, *_SHAPE[1:]), np.uint8)
    mask[1:3, 8:12, 8:14] = 1
    code = CodedConcept("27925004", "SCT", "Nodule")
    segment = highdicom.seg.SegmentDescription(1, "nodule", code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    highdicom.seg.Segmentation(
        slices, mask, "BINARY", [segment], _uid("seg series"), 1, _uid("seg"), 1, "lidc_xai", "fuzz", "1", "1",
        omit_empty_frames=False,
    ).save_as(folder / "mask.dcm")  # fmt: skip
    assert pydicom.dcmread(folder / "mask.dcm").SOPClassUID == SegmentationStorage
    shutil.rmtree(folder / "ct")


KINDS["seg"] = Kind(_seg, _damage_rtstruct, lambda folder: read_masks(folder / "mask.dcm", _ct()), slow=4)


def _xml(folder: Path) -> None:
    write_series(folder)
    ratings = "".join(
        f"<{name}>3</{name}>"
        for name in ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation",
                     "spiculation", "texture", "malignancy")
    )  # fmt: skip
    points = ((8, 8), (14, 8), (14, 12))
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord>\n<yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    roi = f"<roi><imageZposition>-9.0</imageZposition>\n<inclusion>TRUE</inclusion>{edges}</roi>"
    rated = f"<noduleID>N1</noduleID>\n<characteristics>{ratings}</characteristics>\n{roi}"
    session = f"<readingSession>\n<unblindedReadNodule>\n{rated}</unblindedReadNodule>\n</readingSession>\n"
    header = f"<ResponseHeader><SeriesInstanceUid>{_uid('series')}</SeriesInstanceUid></ResponseHeader>\n"
    root = '<LidcReadMessage xmlns="http://www.nih.gov">'
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{root}\n{header}{session * 3}</LidcReadMessage>'
    (folder / "readers.xml").write_text(text, encoding="utf-8")


def _damage_xml(folder: Path, rng: Rng) -> str:
    path = folder / "readers.xml"
    text = path.read_text(encoding="utf-8")
    way = int(rng.integers(8))
    if way == 0:
        encoding = pick(("klingon", "utf-16", "utf-7", "big5", "ascii", "cp037"), rng)
        path.write_text(text.replace("UTF-8", encoding, 1), encoding="utf-8")
        return f"encoding {encoding}"
    if way == 1:
        start, end = text.index("<readingSession>"), text.index("</readingSession>") + 17
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 1200)) + text[end:], encoding="utf-8")
        return "many readers"
    if way == 2:
        start, end = text.index("<unblindedReadNodule>"), text.index("</unblindedReadNodule>") + 22
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 3000)) + text[end:], encoding="utf-8")
        return "many nodules"
    if way == 3:
        start, end = text.index("<edgeMap>"), text.index("</edgeMap>") + 10
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 20000)) + text[end:], encoding="utf-8")
        return "many points"
    if way == 4:
        depth = int(rng.integers(10, 100_000))
        path.write_text(
            text.replace("<readingSession>", "<a>" * depth + "</a>" * depth + "<readingSession>", 1), encoding="utf-8"
        )
        return f"{depth} levels"
    if way == 5:
        entity = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
        ) + '<!ENTITY f SYSTEM "file:///etc/passwd">]>'  # fmt: skip
        path.write_text(
            text.replace("\n", "\n" + entity, 1).replace("N1", pick(("&j;", "&f;"), rng), 1), encoding="utf-8"
        )
        return "entities"
    return damage_text(path, rng) if way == 6 else damage_bytes(path, rng)


KINDS["xml"] = Kind(_xml, _damage_xml, lambda folder: load_nodules(folder), slow=2)


def _csv(folder: Path) -> None:
    with (folder / "points.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [["nodule_id", "x_lps", "y_lps", "z_lps"], ["Узел 1", 1, 2, 3], ["b", 4.5, -5, 6], ["c", 7, 8, 9]]
        )


def _damage_csv(folder: Path, rng: Rng) -> str:
    path = folder / "points.csv"
    way = int(rng.integers(4))
    if way == 0:
        path.write_bytes(
            path.read_bytes()
            + pick((b'"' + b"x" * 200_000, b"\0" * 50, b"a,b\n" * 1000, "é,1,2,3".encode("utf-16")), rng)
        )
        return "something after the end"
    return damage_text(path, rng) if way == 1 else damage_bytes(path, rng)


def _read_csv(folder: Path) -> None:
    points, _ = read_points(folder / "points.csv")
    for point in points:
        point.to_lps(_ct())


KINDS["csv"] = Kind(_csv, _damage_csv, _read_csv)


class _Values(Config):
    epochs: int = 3
    rates: dict[str, float] = Field(default_factory=dict)
    names: list[str] = Field(default_factory=list)


def _yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "epochs: 5\nrates:\n  a: 0.1\n  b: 2\nnames: [x, y]\nseed: 3\n", encoding="utf-8"
    )


_ODD_YAML = (
    "a: &a {<<: *a}", "a: &a [*a]", "? [1, 2]\n: 3", "!!python/object/apply:os.system ['true']", "seed: 2020-99-99",
    "epochs: " + "9" * 5000, "rates: !!binary '%%'", "? {a: b}\n: c", "names: !!set {a}",
)  # fmt: skip


def _damage_yaml(folder: Path, rng: Rng) -> str:
    path = folder / "config.yaml"
    way = int(rng.integers(6))
    if way == 0:
        levels = int(rng.integers(3, 12))
        text = "a0: &a0 [x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, levels)
        )
        path.write_text(text + f"names: *a{levels - 1}\n", encoding="utf-8")
        return f"aliases of aliases, {levels} levels"
    if way == 1:
        depth = int(rng.integers(40, 20_000))
        path.write_text(
            "names: " + pick(("[" * depth + "]" * depth, "[" * depth, "{a: " * depth), rng), encoding="utf-8"
        )
        return f"{depth} levels"
    if way == 2:
        line = pick(_ODD_YAML, rng)
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        return line[:60]
    return damage_text(path, rng) if way <= 4 else damage_bytes(path, rng)


KINDS["yaml"] = Kind(_yaml, _damage_yaml, lambda folder: load_config(_Values, folder / "config.yaml"))


def _read_prepare(folder: Path) -> None:
    """All of ``prepare``: it must write its manifest, whatever one file holds."""
    result = prepare_dicom(folder, folder / "store", size_mm=8)
    unexpected = [row.reason for row in result.skipped if row.reason.startswith("unexpected ")]
    if unexpected or not (folder / "store" / "manifest.csv").is_file():
        raise AssertionError(unexpected or "no manifest")


def _damage_prepare(folder: Path, rng: Rng) -> str:
    if rng.random() < 0.3:
        return _damage_xml(folder, rng)
    return _damage_series(folder, rng)


KINDS["prepare"] = Kind(_xml, _damage_prepare, _read_prepare, slow=10)


def _bomb(folder: Path) -> None:
    _volume("ct.nii.gz")(folder)


def _damage_bomb(folder: Path, rng: Rng) -> str:
    """Sizes that the file claims and packs, but nobody has: 2 to 30 GB of zeros in a few MB."""
    path = folder / "ct.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    sizes = [int(rng.integers(1500, 32767)) for _ in range(3)]
    struct.pack_into("<3h", data, 42, *sizes)
    pack = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = pack.compress(bytes(data)) + b"".join(pack.compress(bytes(2**20)) for _ in range(20)) + pack.flush()
    path.write_bytes(packed)
    return f"{sizes} voxels"


KINDS["bomb"] = Kind(_bomb, _damage_bomb, _read_file, slow=10)
