"""Which structures become nodules, what one bad one costs the others, and under which name a patient goes."""

import json
import os
import stat

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lidc_xai.commands.prepare import PrepareConfig, prepare
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore, prepare_mask, prepare_points, read_ct
from lidc_xai.imaging.ct.formats.volume_file import to_image
from lidc_xai.imaging.mask_files import read_masks, read_structures
from lidc_xai.imaging.pseudonym import identity_of, pseudonym
from lidc_xai.imaging.structures import is_organ
from lidc_xai.run import Run

PATIENT = "MRN-0047 11"


@pytest.fixture
def ct(write_series, tmp_path):
    """90 x 96 x 40 voxels of 1 x 1 x 2 mm: room for an organ of 70 mm."""
    write_series(
        positions=np.arange(40) * 2.0, shape=(96, 90), spacing=(1.0, 1.0), origin=(0, 0, 0), patient=PATIENT,
        hu=lambda points: points[..., 0] - 500.0,
    )  # fmt: skip
    return read_ct(tmp_path / "ct")


def ring(centre, radius, z):
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return [v for a in turn for v in (centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a), z)]


def rtstruct(path, ct, rois):
    """``rois``: name -> contours, each (kind, flat list of mm), or None for a region without any."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        if contours is not None:
            drawn.ContourSequence = []
            for kind, points in contours:
                item = Dataset()
                item.ContourGeometricType, item.ContourData = kind, [f"{value:.4f}" for value in points]
                drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ball(centre, radius, *zs):
    return [("CLOSED_PLANAR", ring(centre, radius, z)) for z in zs]


@pytest.fixture
def planning(ct, tmp_path):
    """What a planning system writes: organs, target volumes, an empty region, one off the scan, and two nodules."""
    return rtstruct(
        tmp_path / "rt.dcm",
        ct,
        {
            "Nodule 1": ball((30, 30), 5, 38, 40, 42),
            "Lung_L": ball((45, 48), 20, 30, 40, 50),
            "SpinalCord": ball((45, 80), 4, 30, 40, 50),
            "GTV-1": ball((60, 30), 6, 38, 40, 42),
            "lesion in right lung": ball((60, 60), 4, 38, 40, 42),
            "no contour": None,
            "a point": [("POINT", [1, 2, 3])],
            "another scan": ball((30, 30), 5, 900),
            "far away": ball((90_000, 30), 5, 40),
            "no numbers": [("CLOSED_PLANAR", [1, 2])],
            "huge mass": ball((45, 48), 35, 40),
        },
    )


def test_one_bad_region_is_a_row_and_the_others_are_read(planning, ct):
    found = read_structures(planning, ct)
    assert [one.label for one in found.masks] == [
        "Nodule 1", "Lung_L", "SpinalCord", "GTV-1", "lesion in right lung", "huge mass",
    ]  # fmt: skip
    reasons = dict(found.unusable)
    assert reasons["no contour"] == "rt.dcm: no contour: has no closed contour (no contour at all)"
    assert reasons["a point"].endswith("has no closed contour (POINT)")
    assert "does not lie on a slice of the CT (slice index 450.00)" in reasons["another scan"]
    assert "reaches far beyond the CT" in reasons["far away"]
    assert "cannot be read" in reasons["no numbers"]
    assert len(read_masks(planning, ct)) == 6


def test_without_names_only_what_can_be_a_nodule_is_cut(planning, ct, tmp_path):
    result = prepare_mask(tmp_path / "ct", planning, tmp_path / "store")
    own = pseudonym(PATIENT)
    assert result.written == [f"{own}-roi1-Nodule-1", f"{own}-roi5-lesion-in-right-lung"]
    reasons = {row.nodule_id.removeprefix(f"{own}-"): row.reason for row in result.skipped}
    for name in ("roi2-Lung_L", "roi3-SpinalCord", "roi4-GTV-1"):
        assert "no nodule by its name; name the nodules with --roi NAME" in reasons[name]
        assert "there are: Nodule 1, Lung_L, SpinalCord, GTV-1, lesion in right lung" in reasons[name]
    assert "reaches over 71 mm, more than any nodule (60 mm)" in reasons["roi11-huge-mass"]
    assert {"no-contour", "a-point", "another-scan", "far-away", "no-numbers"} <= set(reasons)


def test_the_last_line_says_how_many_have_issues(planning, tmp_path, capsys):
    prepare(PrepareConfig(ct=tmp_path / "ct", mask=planning, out=tmp_path / "store", size_mm=8), Run("prepare", [], {}))
    assert "2 with issues, see the column issues of manifest.csv" in capsys.readouterr().out.splitlines()[-1]


def test_names_choose_and_size_still_counts(planning, ct, tmp_path):
    result = prepare_mask(tmp_path / "ct", planning, tmp_path / "store", roi=["gtv*", "huge *"])
    assert [name.split("-", 2)[2] for name in result.written] == ["roi4-GTV-1"]
    assert [row.reason.split("; there are: ")[0] for row in result.skipped] == [
        "'huge mass' reaches over 71 mm, more than any nodule (60 mm)"
    ]
    with pytest.raises(DataError, match=r"'huge mass' reaches over .*; there are: Nodule 1, Lung_L, SpinalCord"):
        prepare_mask(tmp_path / "ct", planning, tmp_path / "other", roi=["huge *"])
    with pytest.raises(UsageError, match=r"--roi tumor: no structure is called so; there are: Nodule 1, Lung_L"):
        prepare_mask(tmp_path / "ct", planning, tmp_path / "store", roi=["tumor"])


def test_lungs_in_a_label_volume_are_refused_by_size(ct, tmp_path):
    labels = np.zeros(ct.array.shape, np.uint8)
    labels[2:38, 10:90, 10:80] = 1
    sitk.WriteImage(to_image(labels, ct.affine), str(tmp_path / "lungs.nii.gz"))
    with pytest.raises(DataError, match="no structure that can be a nodule: 'label1' reaches over 80 mm"):
        prepare_mask(tmp_path / "ct", tmp_path / "lungs.nii.gz", tmp_path / "store")


@pytest.mark.parametrize(
    "name", ["LUNG", "Left lung", "lung_r", "BODY", "External", "PTV_60", "Cord PRV", "heart", "oar"]
)
def test_organs_by_name(name):
    assert is_organ(name)


@pytest.mark.parametrize(
    "name", ["nodule", "Lung nodule 3", "roi 7", "Tumour LUL lung", "heartless", "recording", "N1"]
)
def test_nodules_by_name(name):
    assert not is_organ(name)


def test_the_patient_id_is_nowhere(planning, ct, tmp_path, capsys):
    """Manifest, records, rows, names: a pseudonym, also where the points or the folder carry the ID."""
    named = (tmp_path / "ct").rename(tmp_path / "mrn-0047-11")
    csv = tmp_path / "MRN-0047 11.csv"
    csv.write_text("nodule_id,x_lps,y_lps,z_lps\nmrn-0047 11 upper,30,30,40\n,60,60,40\nfar,999,0,0\nbad,x,y,z\n")
    result = prepare_points(named, csv, tmp_path / "store")
    own = pseudonym(PATIENT)
    assert result.written == [f"{own}-p-2", f"{own}-upper"]
    store = CropStore(tmp_path / "store")
    assert set(store.manifest["patient_id"]) == {own}
    assert store.fingerprint["rule"]["patient_ids"] == "pseudonyms"
    for path in (tmp_path / "store").rglob("*"):
        assert "0047" not in path.name
        if path.is_file() and not path.name.endswith(".gz"):
            assert b"0047" not in path.read_bytes(), path
            assert str(tmp_path).encode() not in path.read_bytes(), path
    kept = prepare_points(named, csv, tmp_path / "kept", keep_ids=True)
    assert kept.written == ["mrn-0047-11-p-2", "mrn-0047-11-upper"]
    assert set(CropStore(tmp_path / "kept").manifest["patient_id"]) == {PATIENT}
    with pytest.raises(UsageError, match="patient_ids"):
        prepare_points(named, csv, tmp_path / "kept")


def test_a_formula_as_patient_id_is_text_in_every_csv(write_series, tmp_path):
    write_series(patient='=HYPERLINK("x")', positions=np.arange(24) * 2.0, shape=(44, 40))
    (tmp_path / "p.csv").write_text("i,j,k\n20,22,12\n")
    prepare_points(tmp_path / "ct", tmp_path / "p.csv", tmp_path / "store", 16, keep_ids=True)
    table = pd.read_csv(tmp_path / "store" / "manifest.csv")
    assert table["patient_id"].item() == '\'=HYPERLINK("x")'
    assert CropStore(tmp_path / "store").manifest["patient_id"].item() == '=HYPERLINK("x")'


def test_pseudonyms_are_stable_secret_and_leave_lidc_alone(ct, tmp_path, monkeypatch):
    key = tmp_path / "keys" / "one.key"
    monkeypatch.setenv("LIDC_XAI_PSEUDONYM_KEY", str(key))
    first = pseudonym("12345")
    assert first == pseudonym(" 12345 ")
    assert first != pseudonym("12346")
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    key.unlink()
    assert pseudonym("12345") != first, "another secret, other pseudonyms"
    key.write_bytes(b"short")
    with pytest.raises(UsageError, match="is no secret of 32 bytes"):
        pseudonym("12345")
    monkeypatch.setenv("LIDC_XAI_PSEUDONYM_KEY", str(key / "below a file"))
    with pytest.raises(UsageError, match="--keep-ids"):
        pseudonym("12345")
    ct.patient_id = "LIDC-IDRI-0003"
    assert identity_of(ct, tmp_path / "ct").patient_id == "LIDC-IDRI-0003"


def test_two_cts_in_one_store_do_not_overwrite_each_other(series_writer, tmp_path):
    (tmp_path / "p.csv").write_text("nodule_id,i,j,k\none,20,22,12\n")
    for name in ("a", "b"):
        series_writer(tmp_path / name)(series=name, patient=name * 3, positions=np.arange(24) * 2.0, shape=(44, 40))
    assert prepare_points(tmp_path / "a", tmp_path / "p.csv", tmp_path / "store", 16).written == ["one"]
    second = prepare_points(tmp_path / "b", tmp_path / "p.csv", tmp_path / "store", 16)
    assert second.written == []
    assert "'one' is taken by another nodule of the store" in second.skipped[0].reason
    record = json.loads((tmp_path / "store" / "crops" / "one" / "nodule.json").read_text())
    assert record["row"]["patient_id"] == pseudonym("aaa")


def test_a_blank_place_is_a_row(write_series, tmp_path):
    def hu(points):
        return np.where(points[..., 0] < 0, -1000.0, points[..., 1])

    write_series(
        hu=hu, positions=np.arange(40) * 1.0, shape=(40, 80), spacing=(1, 1), origin=(-40, 0, 0), scale=(1.0, -1024.0)
    )
    (tmp_path / "p.csv").write_text("nodule_id,i,j,k\nair,20,20,20\ntissue,60,20,20\n")
    result = prepare_points(tmp_path / "ct", tmp_path / "p.csv", tmp_path / "store", 16)
    assert result.written == ["tissue"]
    assert "air: is blank: -1000 HU throughout" in result.skipped[0].reason


def test_the_rtstruct_of_the_fixture_is_read_by_pydicom(planning):
    assert len(pydicom.dcmread(planning).ROIContourSequence) == 11
