"""Volumes in one file: NIfTI, NRRD, MetaImage, label images, and files that say to be larger than they are."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fuzzing.mutators import Rng, damage_bytes, damage_text, pick
from fuzzing.series import SHAPE, example_hu
from fuzzing.watch import Kind
from lidc_xai.imaging import read_ct
from lidc_xai.imaging.mask_files import read_label_volume

VOLUMES: dict[str, Kind] = {}


def _image(kind: str) -> sitk.Image:
    values = np.zeros(SHAPE, np.uint8) if kind == "labels" else example_hu()
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


VOLUMES["nifti"] = Kind(_volume("ct.nii"), _damage_nifti, _read_file)
VOLUMES["nifti-gz"] = Kind(_volume("ct.nii.gz"), _damage_nifti, _read_file)


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


VOLUMES["nrrd"] = Kind(_volume("ct.nrrd", packed=True), _damage_header, _read_file)
VOLUMES["mhd"] = Kind(_volume("ct.mhd"), _damage_header, _read_file)
VOLUMES["mha"] = Kind(_volume("ct.mha", packed=True), _damage_header, _read_file)


def _layered(folder: Path) -> None:
    """As 3D Slicer writes segments that overlap."""
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[2:4, 8:12, 8:14, 0] = 1
    layers[3:5, 9:12, 9:14, 1] = 1
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: 2 {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\nspace directions: none (0.6,0,0) (0,0.7,0) (0,0,2.5)\n"
        "kinds: list domain domain domain\nencoding: gzip\nspace origin: (-8,-6,-14)\nSegment0_ID:=Segment_1\n"
        "Segment0_LabelValue:=1\nSegment0_Layer:=0\nSegment0_Name:=Nodule\nSegment1_ID:=Segment_2\n"
        "Segment1_LabelValue:=1\nSegment1_Layer:=1\nSegment1_Name:=Vessel\n\n"
    )
    (folder / "mask.seg.nrrd").write_bytes(head.encode() + gzip.compress(layers.tobytes()))


def _read_labels(folder: Path) -> list[object]:
    return list(read_label_volume(next(folder.glob("mask*")))[0])


VOLUMES["labels"] = Kind(_layered, _damage_header, _read_labels)


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


VOLUMES["bomb"] = Kind(_bomb, _damage_bomb, _read_file, slow=10)
