"""NIfTI, NRRD and MetaImage: the same voxels and places as ITK reads, and every odd header met or refused by name.

The table in docs/imaging.md has the same rows as FAULTS here.
"""

import bz2
import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lidc_xai.errors import DataError
from lidc_xai.imaging import read_ct
from lidc_xai.imaging.ct.formats.volume_file import read_volume
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.mask_files import read_label_volume, read_masks

DOCS = Path(__file__).resolve().parents[2] / "docs" / "imaging.md"
SHAPE = (5, 6, 7)
SPACING, ORIGIN = (0.6, 0.7, 2.5), (-8.0, -6.0, -14.0)
LPS = np.array([[0.6, 0, 0, -8], [0, 0.7, 0, -6], [0, 0, 2.5, -14], [0, 0, 0, 1]])


def hu():
    return np.random.default_rng(0).integers(-900, 100, SHAPE).astype(np.int16)


def image(values, turned=False):
    made = sitk.GetImageFromArray(values)
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    if turned:
        axes, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
        made.SetDirection(axes.ravel().tolist())
    return made


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_as_itk(suffix, kind, packed, tmp_path):
    values = np.random.default_rng(1).integers(0, 250, SHAPE).astype(kind)
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(image(values, turned=True), str(path), useCompression=packed)
    theirs = sitk.ReadImage(str(path))
    array, header = read_volume(path)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(theirs))
    assert array.dtype == values.dtype
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
    affine[:3, 3] = theirs.GetOrigin()
    np.testing.assert_allclose(header.affine, affine, atol=2e-6)
    assert header.issues == []


def nifti(sform=None, qform=None, pixdim=(1, 0.6, 0.7, 2.5), order="<", **fields):
    """A NIfTI-1 file; forms: (code, ...) with three rows, or quaternion and offset."""
    head = bytearray(352)
    values = {
        "sizeof": 348,
        "dim": (3, 7, 6, 5, 1, 1, 1, 1),
        "kind": (4, 16),
        "offset": 352.0,
        "scale": (0.0, 0.0),
        **fields,
    }
    struct.pack_into(f"{order}i", head, 0, values["sizeof"])
    struct.pack_into(f"{order}8h", head, 40, *values["dim"])
    struct.pack_into(f"{order}2h", head, 70, *values["kind"])
    struct.pack_into(f"{order}8f", head, 76, *pixdim, *[0] * (8 - len(pixdim)))
    struct.pack_into(f"{order}f", head, 108, values["offset"])
    struct.pack_into(f"{order}2f", head, 112, *values["scale"])
    head[123] = values.get("units", 2)
    struct.pack_into(f"{order}2h", head, 252, qform[0] if qform else 0, sform[0] if sform else 0)
    if qform:
        struct.pack_into(f"{order}6f", head, 256, *qform[1])
    if sform:
        struct.pack_into(f"{order}12f", head, 280, *np.ravel(sform[1]))
    head[344:348] = values.get("magic", b"n+1\0")
    return bytes(head) + hu().astype(f"{order}i2").tobytes()


RAS = np.diag([-1, -1, 1, 1]) @ LPS
SFORM = (1, RAS[:3])
QFORM = (1, (0, 0, 1, 8, 6, -14))  # turned by half about z: x and y run to the left and to the back


def nrrd(voxels=None, **fields):
    head = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "7 6 5",
        "space directions": "(0.6,0,0) (0,0.7,0) (0,0,2.5)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(-8,-6,-14)",
    }  # fmt: skip
    head |= {name.replace("_", " "): value for name, value in fields.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in head.items() if value is not None)
    return f"NRRD0004\n{lines}\n".encode() + (hu().tobytes() if voxels is None else voxels)


def mha(voxels=None, **fields):
    head = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-8 -6 -14",
        "ElementSpacing": "0.6 0.7 2.5", "DimSize": "7 6 5", "ElementType": "MET_SHORT",
    }  # fmt: skip
    head |= fields
    lines = "".join(f"{name} = {value}\n" for name, value in head.items() if value is not None)
    return f"{lines}ElementDataFile = LOCAL\n".encode() + (hu().tobytes() if voxels is None else voxels)


def bomb():
    pack = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    head = nifti(SFORM, dim=(3, 2000, 2000, 2000, 1, 1, 1, 1))
    return pack.compress(head) + b"".join(pack.compress(bytes(2**20)) for _ in range(50)) + pack.flush()


INTERLEAVED = np.stack([hu(), hu()], axis=-1)
FAULTS = {  # name: (file name, content, words of the issue or of the refusal, refused)
    "NIfTI without orientation": ("a.nii", nifti(), r"NIfTI without orientation .*: axes taken as right", False),
    "NIfTI whose forms disagree": (
        "a.nii", nifti(SFORM, (1, (0, 0, 1, 13, -1, -3))),
        r"sform and qform disagree by up to 11\.00 mm: sform taken", False,
    ),
    "NIfTI whose sform is of an atlas": (
        "a.nii", nifti((4, RAS[:3] * 1.3), QFORM), "disagree by up to .* mm: qform taken", False,
    ),
    "NIfTI sheared": ("a.nii", nifti((1, [[-0.6, 0, 0, 8], [0, -0.7, 0.4, 6], [0, 0, 2.5, -14]])), "pixdim", False),
    "NIfTI in micrometres": ("a.nii", nifti((1, RAS[:3] * 1000), units=3), "in micrometres: converted to mm", False),
    "NIfTI big-endian": ("a.nii", nifti(SFORM, order=">"), "", False),
    "NIfTI voxel size 0": ("a.nii", nifti(pixdim=(1, 0, 0.7, 2.5)), "pixdim 0 x 0.7 x 2.5 is no voxel size", True),
    "NIfTI voxel size negative": ("a.nii", nifti(None, QFORM, (1, 0.6, -0.7, 2.5)), "is no voxel size", True),
    "NIfTI voxel size no number": ("a.nii", nifti(pixdim=(1, np.nan, 0.7, 2.5)), "is no voxel size", True),
    "NIfTI spacing of 1000 mm": ("a.nii", nifti(pixdim=(1, 0.6, 0.7, 1000)), "voxel spacing .* is not plausible", True),
    "NIfTI axes in a plane": (
        "a.nii", nifti((1, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])),
        "do not span a volume", True,
    ),
    "NIfTI sizes too large": (
        "a.nii", nifti(SFORM, dim=(3, 3000, 3000, 3000, 1, 1, 1, 1)),
        "of 54000000000 bytes", True,
    ),
    "NIfTI sizes negative": ("a.nii", nifti(SFORM, dim=(3, -7, 6, 5, 1, 1, 1, 1)), r"sizes are \(-7, 6, 5\)", True),
    "NIfTI voxels in another file": ("a.nii", nifti(SFORM, magic=b"ni1\0"), "no voxels in a file with the mark", True),
    "NIfTI complex": ("a.nii", nifti(SFORM, kind=(32, 64)), "not one 3D volume of single values", True),
    "gzip bomb": ("a.nii.gz", bomb(), r"its header says \(2000, 2000, 2000\) voxels of 2 bytes in a file of", True),
    "NRRD without a space": (
        "a.nrrd", nrrd(space=None, space_dimension="3"),
        "NRRD without a space: axes taken as left", False,
    ),
    "NRRD in another space": (
        "a.nrrd", nrrd(space="scanner-xyz"),
        "NRRD in space scanner-xyz: axes taken as left", False,
    ),
    "NRRD in RAS": (
        "a.nrrd", nrrd(space="RAS", space_directions="(-0.6,0,0) (0,-0.7,0) (0,0,2.5)", space_origin="(8,6,-14)"),
        "", False,
    ),
    "NRRD with spacings alone": (
        "a.nrrd", nrrd(space=None, space_directions=None, space_origin=None, spacings="0.6 0.7 2.5"),
        "without a space", False,
    ),
    "NRRD without voxel size": ("a.nrrd", nrrd(space_directions=None), "neither space directions nor spacings", True),
    "NRRD packed by bzip2": ("a.nrrd", nrrd(bz2.compress(hu().tobytes()), encoding="bzip2"), "", False),
    "NRRD as text": ("a.nrrd", nrrd(" ".join(map(str, hu().ravel())).encode(), encoding="text"), "", False),
    "NRRD sizes too large": ("a.nrrd", nrrd(sizes="40000 40000 40000"), "has 420 of 128000000000000 bytes", True),
    "NRRD sizes too large, packed": (
        "a.nrrd", nrrd(gzip.compress(hu().tobytes()), sizes="1500 1500 1500", encoding="gzip"),
        "voxels of 2 bytes in a file of", True,
    ),
    "NRRD data elsewhere": ("a.nhdr", nrrd(data_file="../../etc/passwd"), "must lie in the header's folder", True),
    "NRRD in metres": ("a.nrrd", nrrd(space_units='"m" "m" "m"'), "space units are m, not mm", True),
    "MetaImage of -3 axes": ("a.mha", mha(NDims="-3"), "NDims is -3", True),
    "MetaImage sizes too large": ("a.mha", mha(DimSize="100000 100000 100000"), "bytes of voxels", True),
    "MetaImage without spacing": ("a.mha", mha(ElementSpacing=None), "without ElementSpacing: 1 mm taken", False),
    "MetaImage without axes": (
        "a.mha", mha(TransformMatrix=None),
        "without TransformMatrix: axes taken as left", False,
    ),
    "MetaImage big-endian": ("a.mha", mha(hu().astype(">i2").tobytes(), BinaryDataByteOrderMSB="True"), "", False),
    "MetaImage in several files": ("a.mhd", mha().replace(b"LOCAL", b"LIST"), "its voxels are in several files", True),
    "volume file of several values": (
        "a.nrrd",
        nrrd(INTERLEAVED.tobytes(), dimension="4", sizes="2 7 6 5", kinds="vector domain domain domain",
             space_directions="none (0.6,0,0) (0,0.7,0) (0,0,2.5)"),
        "not one 3D volume of single values", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name, tmp_path):
    file, content, words, refused = FAULTS[name]
    (tmp_path / file).write_bytes(content)
    if refused:
        with pytest.raises(DataError, match=words) as error:
            read_ct(tmp_path / file)
        assert "\n" not in str(error.value)
        return
    ct = read_ct(tmp_path / file)
    np.testing.assert_array_equal(ct.array, hu())
    if words:
        assert any(re.search(words, issue) for issue in ct.issues), ct.issues
    else:
        assert ct.issues == []
    if name == "NIfTI without orientation":
        np.testing.assert_allclose(ct.affine, np.diag([-0.6, -0.7, 2.5, 1]), atol=1e-6)
    elif name == "NIfTI sheared":
        assert ct.affine[1, 2] == pytest.approx(-0.4)
    elif name == "MetaImage without spacing":
        np.testing.assert_allclose(ct.affine[:3, :3], np.eye(3))
    elif name == "NRRD with spacings alone":
        np.testing.assert_allclose(ct.affine, np.diag([*SPACING, 1]))
    else:
        np.testing.assert_allclose(ct.affine, LPS, atol=1e-5)


def test_the_docs_have_the_same_table():
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in FAULTS if f"| {name} |" not in text] == []


def test_a_scale_makes_float_and_nothing_else_does(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(SFORM, scale=(0.5, 10.0)))
    values, _ = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(values, (hu() * 0.5 + 10).astype(np.float32))
    (tmp_path / "a.nii").write_bytes(nifti(SFORM, scale=(1.0, 0.0)))
    assert read_volume(tmp_path / "a.nii")[0].dtype == np.int16


def test_a_packed_file_with_a_wrong_check_sum_is_refused(tmp_path):
    content = bytearray(gzip.compress(nifti(SFORM)))
    content[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_ct(tmp_path / "a.nii.gz")


def layered(**more):
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[1:3, 2:4, 2:4, 0] = 1
    layers[1:4, 2:5, 2:5, 1] = 1
    layers[0, 0, 0, 1] = 2
    keys = {
        "Segment0_ID": "Segment_1", "Segment0_Name": "Nodule right upper lobe", "Segment0_LabelValue": "1",
        "Segment0_Layer": "0", "Segment1_ID": "Segment_2", "Segment1_Name": "Узел", "Segment1_LabelValue": "1",
        "Segment1_Layer": "1",
    }  # fmt: skip
    head = nrrd(
        b"", type="unsigned char", dimension="4", sizes="2 7 6 5", encoding="gzip",
        kinds="list domain domain domain", space_directions="none (0.6,0,0) (0,0.7,0) (0,0,2.5)", **more,
    )  # fmt: skip
    lines = "".join(f"{key}:={value}\n" for key, value in keys.items())
    return head[:-1] + lines.encode() + b"\n" + gzip.compress(layers.tobytes()), layers


def test_layers_and_names_of_3d_slicer(tmp_path):
    content, layers = layered()
    (tmp_path / "nodules.seg.nrrd").write_bytes(content)
    structures, header = read_label_volume(tmp_path / "nodules.seg.nrrd")
    found = {label: mask for _, label, mask in structures}
    assert list(found) == ["Nodule right upper lobe", "Узел", "label2-layer1"]
    np.testing.assert_array_equal(found["Nodule right upper lobe"], layers[..., 0] == 1)
    np.testing.assert_array_equal(found["Узел"], layers[..., 1] == 1)
    np.testing.assert_allclose(header.affine, LPS)
    masks = read_masks(tmp_path / "nodules.seg.nrrd", CTVolume(hu().astype(np.float32), LPS))
    assert [one.name for one in masks] == ["segment1-Nodule-right-upper-lobe", "segment2-Узел", "label2-layer1"]
    np.testing.assert_allclose(masks[0].centre_mm, LPS[:3, :3] @ [2.5, 2.5, 1.5] + ORIGIN)


def test_a_mask_says_what_was_odd_about_its_geometry(tmp_path):
    content, _ = layered(space=None, space_dimension="3")
    (tmp_path / "nodules.seg.nrrd").write_bytes(content)
    masks = read_masks(tmp_path / "nodules.seg.nrrd", CTVolume(hu().astype(np.float32), LPS))
    assert masks[0].grid.issues == ["NRRD without a space: axes taken as left, posterior, superior"]


def test_older_segments_are_one_layer_each(tmp_path):
    content, layers = layered()
    for key in (
        b"Segment0_LabelValue:=1\n",
        b"Segment0_Layer:=0\n",
        b"Segment1_LabelValue:=1\n",
        b"Segment1_Layer:=1\n",
    ):
        content = content.replace(key, b"")
    (tmp_path / "nodules.seg.nrrd").write_bytes(content)
    structures, _ = read_label_volume(tmp_path / "nodules.seg.nrrd")
    found = {label: mask for _, label, mask in structures}
    np.testing.assert_array_equal(found["Узел"], layers[..., 1] == 1)
