"""A zip and a DICOMDIR as ways to a series; hostile zips, XML, YAML and pictures are refused before they unpack."""

import struct
import zipfile
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image

from lidc_xai.annotations import load_nodules
from lidc_xai.bounded import UNPACKED_BYTES
from lidc_xai.config import Config, load_config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import prepare_dicom, read_ct
from lidc_xai.imaging.png.source import PngEdition


def zipped(folder, path, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"a/{file.name}")
    return path


def test_a_zip_is_its_series_and_leaves_nothing(write_series, slanted, voxel_centres, tmp_path, monkeypatch):
    write_series()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    for n in range(3):
        (tmp_path / "ct" / f"thumb{n}.jpg").write_bytes(b"\xff\xd8")
    ct = read_ct(zipped(tmp_path / "ct", tmp_path / "series.zip"))
    assert np.abs(ct.array - slanted(voxel_centres(ct.affine, ct.array.shape))).max() < 0.03
    assert ct.issues == ["3 file(s) that are not DICOM passed over"]
    assert ct.source == str(tmp_path / "series.zip")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_dicomdir_stands_for_its_folder(write_series, tmp_path):
    write_series()
    (tmp_path / "ct" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_ct(tmp_path / "ct" / "DICOMDIR").issues == []


def test_members_of_a_zip_that_cannot_be_unpacked_are_slices_left_out(write_series, tmp_path):
    write_series()
    path = zipped(tmp_path / "ct", tmp_path / "series.zip")
    data = bytearray(path.read_bytes())
    headers = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    for at, change in ((headers[3], (8, 1)), (headers[5], (10, 99))):  # encrypted; packed in a way nobody knows
        (start,) = struct.unpack_from("<I", data, at + 42)
        struct.pack_into("<H", data, at + change[0], change[1])
        struct.pack_into("<H", data, start + change[0] - 2, change[1])
    path.write_bytes(bytes(data))
    ct = read_ct(path)
    assert len(ct.stored) == 10
    issues = "\n".join(ct.issues)
    assert "slice003.dcm: is encrypted; unpack the zip and give its folder: left out" in issues
    assert "slice005.dcm: is packed in a way that is not read" in issues


def test_zips_that_are_none_or_too_much(write_series, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        read_ct(tmp_path / "a.zip")
    write_series(positions=[0, 1])
    path = zipped(tmp_path / "ct", tmp_path / "bomb.zip")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, UNPACKED_BYTES + 1)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"bytes unpack to 1,07\d,"):
        read_ct(path)


def test_names_in_a_zip_stay_inside(write_series, tmp_path, monkeypatch):
    write_series()
    (tmp_path / "deep" / "scratch").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "deep" / "scratch"))
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for n, file in enumerate(sorted((tmp_path / "ct").iterdir())):
            archive.write(file, ("../../../" if n % 2 else "/tmp/x/") + file.name)
    before = sorted(tmp_path.rglob("*"))
    assert len(read_ct(tmp_path / "series.zip").stored) == 12
    assert sorted(tmp_path.rglob("*")) == before


def test_prepare_goes_on_past_a_scan_that_raises_what_nobody_foresaw(nodule_series, nodules, tmp_path, monkeypatch):
    """A foreign exception of one scan is its nodules' row; the other scan is written, and so is the manifest."""
    first, second = nodules[0], next(one for one in nodules if one.series_uid != nodules[0].series_uid)
    for one in (first, second):
        nodule_series(tmp_path / "dicom" / one.patient_id, one)
    from lidc_xai.imaging import prepare

    original = prepare.read_series

    def read(files, damaged):
        if files.series_uid == first.series_uid:
            raise KeyError("what nobody foresaw")
        return original(files, damaged)

    monkeypatch.setattr(prepare, "read_series", read)
    result = prepare_dicom(tmp_path / "dicom", tmp_path / "store")
    assert second.nodule_id in result.written
    reasons = {row.nodule_id: row.reason for row in result.skipped}
    assert reasons[first.nodule_id] == "unexpected KeyError: 'what nobody foresaw'"
    assert (tmp_path / "store" / "manifest.parquet").is_file()


class _Names(Config):
    names: list[str] = []  # noqa: RUF012


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
            "its aliases repeat more than 100000 values",
        ),
        ("names: " + "[" * 20_000, "is nested more than 50 levels deep"),
        ("".join(" " * n + "a:\n" for n in range(60)), "is nested more than 50 levels deep"),
        ("names: &a [*a]", "is nested more than 50 levels deep"),
        ("names: [" + "x, " * 60_000 + "]", "is longer than 128 KiB"),
        ("names: !!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor"),
        ("seed: 2020-99-99", "is not YAML: month must be in 1..12"),
    ],
    ids=["aliases", "brackets", "indents", "circle", "long", "object", "date"],
)
def test_yaml_that_would_be_much(text, words, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_config(_Names, tmp_path / "c.yaml")


def test_yaml_aliases_of_a_configuration_work(tmp_path):
    (tmp_path / "c.yaml").write_text("names: [&a x, *a]\n")
    assert load_config(_Names, tmp_path / "c.yaml").names == ["x", "x"]


MESSAGE = (
    "<LidcReadMessage><ResponseHeader><SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader>{}</LidcReadMessage>"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<?xml version="1.0" encoding="klingon"?>' + MESSAGE.format(""), "damaged XML"),
        (MESSAGE.format("<readingSession/>" * 1100), "1100 reading sessions, where at most 12 belong"),
        (
            MESSAGE.format(
                "<readingSession>"
                + "<unblindedReadNodule><characteristics/></unblindedReadNodule>" * 400
                + "</readingSession>"
            ),
            "400 readings, where at most 300 belong",
        ),
    ],
    ids=["encoding", "sessions", "readings"],
)
def test_reader_xml_that_nobody_wrote(text, words, tmp_path):
    (tmp_path / "r.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        load_nodules(tmp_path / "r.xml")


def test_pictures_that_would_be_much(tmp_path):
    content = BytesIO()
    Image.new("L", (8000, 8000)).save(content, "PNG")
    with zipfile.ZipFile(tmp_path / "slices.zip", "w") as archive:
        for part in ("images", *(f"mask-{reader}" for reader in range(4))):
            archive.writestr(f"LIDC-IDRI-0001/nodule-0/{part}/slice-0.png", content.getvalue())
    with pytest.raises(DataError, match="has 8000 x 8000 pixels; 128 x 128 belong"):
        PngEdition(tmp_path / "slices.zip").read("LIDC-IDRI-0001", 0)


def test_a_sparse_seg_reserves_no_grid(tmp_path):
    """A frame at z = 10 m: the grid between it and the others is not made."""
    from fuzzing.kinds import KINDS

    KINDS["seg"].make(tmp_path)
    dataset = pydicom.dcmread(tmp_path / "mask.dcm")
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [-8, -6, 10_000]
    dataset.save_as(tmp_path / "mask.dcm")
    with pytest.raises(DataError, match=r"4 planes of SEG over .* mm, 2\.5 mm apart: too few"):
        KINDS["seg"].read(tmp_path)
