"""One's own CT: points in three coordinate systems and masks of four kinds land on the same voxels."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore, crop_nodule, prepare_mask, prepare_points, read_ct
from lidc_xai.imaging.ct.formats.volume_file import to_image
from lidc_xai.imaging.mask_files import read_masks, referenced_series
from lidc_xai.imaging.points import read_points
from lidc_xai.imaging.pseudonym import pseudonym

P1 = pseudonym("P1")
CENTRE = np.array([6.0, 7.0, 21.0])
RADIUS = 5.0


@pytest.fixture
def ct(write_series, tmp_path):
    """40 x 44 x 24 voxels of 0.6 x 0.7 x 2 mm; a ball of 5 mm at CENTRE is what the masks draw."""
    write_series(positions=np.arange(24) * 2.0, shape=(44, 40), spacing=(0.7, 0.6), origin=(-6.0, -8.0, 0.0))
    return read_ct(tmp_path / "ct")


@pytest.fixture
def ball(ct, voxel_centres):
    return np.linalg.norm(voxel_centres(ct.affine, ct.array.shape) - CENTRE, axis=-1) <= RADIUS


def as_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_points_in_every_system_are_the_same_place(ct, tmp_path):
    x, y, z = CENTRE
    i, j, k = ct.to_stored_index(CENTRE)
    expected = crop_nodule(ct, CENTRE, 16).ct
    forms = {
        "x_lps,y_lps,z_lps": (x, y, z),
        "X_RAS_mm,Y_RAS_mm,Z_RAS_mm": (-x, -y, z),
        "i,j,k": (i, j, k),
        "voxel_i,voxel_j,voxel_k": (i, j, k),
    }
    for number, (header, values) in enumerate(forms.items()):
        csv = as_csv(tmp_path / f"{number}.csv", f"nodule_id,{header}", [("a", *values)])
        result = prepare_points(tmp_path / "ct", csv, tmp_path / f"store{number}", 16)
        assert result.written == ["a"]
        store = CropStore(tmp_path / f"store{number}")
        np.testing.assert_allclose(store.load("a").ct, expected, atol=1e-3)
        row = store.row("a")
        assert (row["patient_id"], row["n_readers_masked"], row["hu_calibrated"]) == (P1, 0, True)
        assert np.isnan(row["diameter"])
        np.testing.assert_allclose(row[["centre_x_mm", "centre_y_mm", "centre_z_mm"]].astype(float), CENTRE, atol=1e-4)
        assert len(store.votes) == 0


def test_points_that_cannot_be_used_have_a_row(ct, tmp_path):
    csv = as_csv(
        tmp_path / "p.csv", "x_lps,y_lps,z_lps", [(6, 7, 21), (6, 7, "high"), (500, 0, 0), (6, "nan", 3), (6,)]
    )
    result = prepare_points(tmp_path / "ct", csv, tmp_path / "store", 16)
    assert result.written == [f"{P1}-p-1"]
    reasons = {row.nodule_id: row.reason for row in result.skipped}
    assert set(reasons) == {f"{P1}-p-{number}" for number in (2, 3, 4, 5)}
    assert "row 2: x_lps, y_lps, z_lps are not three numbers ('6', '7', 'high')" in reasons[f"{P1}-p-2"]
    assert "lies outside the scan" in reasons[f"{P1}-p-3"]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("x,y,z", "does not name the coordinate system; use one of x_lps,y_lps,z_lps"),
        ("x_lps,y_lps,z_ras", "does not name the coordinate system"),
        ("x_lps,y_lps,z_lps,i,j,k", "names lps and voxel"),
        ("", "does not name the coordinate system"),
    ],
)
def test_a_header_must_name_one_system(header, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        read_points(as_csv(tmp_path / "p.csv", header, [(1, 2, 3)]))


def test_bad_point_files(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x01" * 20)
    with pytest.raises(DataError, match="is not CSV text"):
        read_points(tmp_path / "p.csv")
    with pytest.raises(DataError, match="a header and no point"):
        read_points(as_csv(tmp_path / "p.csv", "i,j,k", []))
    points, unusable = read_points(as_csv(tmp_path / "p.csv", "nodule_id,i,j,k", [("a", 1, 2, 3), ("a", 4, 5, 6)]))
    assert [point.name for point in points] == ["a"]
    assert unusable == [("a-row2", "p.csv: row 2: nodule_id 'a' is there twice")]


def test_ids_of_any_script_stay_apart_and_inside_the_store(tmp_path):
    ids = ["Узел 1", "Узел 2", "結節", "../../etc/passwd", "a b", "a-b", "x" * 250, "???"]
    rows = [(one, 1, 2, 3) for one in ids]
    points, unusable = read_points(as_csv(tmp_path / "p.csv", "nodule_id,i,j,k", rows), "p")
    names = [point.name for point in points]
    assert names[:6] == ["Узел-1", "Узел-2", "結節", "etc-passwd", "a-b", "a-b-row6"]
    assert len(names[6]) == 100
    assert names[7] == "p-8"
    assert unusable == []


def label_volume(ct, ball, tmp_path):
    path = tmp_path / "mask.nii.gz"
    sitk.WriteImage(to_image(ball.astype(np.uint8) * 7, ct.affine), str(path))
    return path, "label7"


def turned_label_volume(ct, ball, tmp_path):
    """The same label on a grid with all axes reversed and the box cut: only mm tell where it lies."""
    cut = ball[4:20, 3:, 2:]
    flipped = np.ascontiguousarray(cut[::-1, ::-1, ::-1])
    affine = ct.affine.copy()
    affine[:3, 3] = (
        affine[:3, :3] @ (2.0 + cut.shape[2] - 1, 3.0 + cut.shape[1] - 1, 4.0 + cut.shape[0] - 1) + affine[:3, 3]
    )
    affine[:3, :3] *= -1
    path = tmp_path / "mask.nrrd"
    sitk.WriteImage(to_image(flipped.astype(np.uint8), affine), str(path))
    return path, "label1"


def dicom_seg(ct, ball, tmp_path):
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    sources = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for source in sources:
        source.AccessionNumber = source.StudyID = source.PatientName = source.PatientBirthDate = source.PatientSex = ""
        source.StudyDate = source.StudyTime = source.ReferringPhysicianName = source.SeriesNumber = None
    code = CodedConcept("4147007", "SCT", "Mass")
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="nodule one",
        segmented_property_category=CodedConcept("49755003", "SCT", "Morphologically Altered Structure"),
        segmented_property_type=code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    segmentation = hd.seg.Segmentation(
        sources, ball.astype(np.uint8), hd.seg.SegmentationTypeValues.BINARY, [description],
        series_instance_uid=generate_uid(), series_number=2, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer="m", manufacturer_model_name="m", software_versions="1", device_serial_number="1",
    )  # fmt: skip
    segmentation.save_as(tmp_path / "seg.dcm")
    return tmp_path / "seg.dcm", "segment1-nodule-one"


def rtstruct(ct, ball, tmp_path):
    """Circles on the slices, as a contouring program writes them."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    roi, contours, items = Dataset(), Dataset(), []
    roi.ROINumber, roi.ROIName = 3, "nodule 1"
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    for z in ct.slice_z_mm:
        radius = np.sqrt(max(0.0, RADIUS**2 - (z - CENTRE[2]) ** 2))
        if radius > 0:
            ring = np.column_stack([CENTRE[0] + radius * np.cos(turn), CENTRE[1] + radius * np.sin(turn), turn * 0 + z])
            item = Dataset()
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.ContourData = [f"{value:.6f}" for value in ring.ravel()]
            items.append(item)
    contours.ReferencedROINumber, contours.ContourSequence = 3, Sequence(items)
    reference, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = ct.series_uid
    study.RTReferencedSeriesSequence = Sequence([series])
    reference.RTReferencedStudySequence = Sequence([study])
    dataset.ReferencedFrameOfReferenceSequence = Sequence([reference])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence([roi]), Sequence([contours])
    dataset.save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    return tmp_path / "rt.dcm", "roi3-nodule-1"


@pytest.mark.parametrize("make", [label_volume, turned_label_volume, dicom_seg, rtstruct])
def test_masks_of_every_kind_become_the_same_crop(make, ct, ball, voxel_centres, series_writer, tmp_path):
    path, name = make(ct, ball, tmp_path)
    if path.suffix == ".dcm":  # of several series the mask names its own
        series_writer(tmp_path / "ct")(series="other", name=lambda k: f"other{k}.dcm")
        assert referenced_series(path) == ct.series_uid
    result = prepare_mask(tmp_path / "ct", path, tmp_path / "store", 24)
    name = f"{P1}-{name}"
    assert result.written == [name]
    crop = CropStore(tmp_path / "store").load(name)
    right = np.linalg.norm(voxel_centres(crop.affine, crop.ct.shape) - CENTRE, axis=-1) <= RADIUS
    assert crop.reader_masks.shape == (1, 24, 24, 24)
    np.testing.assert_array_equal(crop.reader_masks[0], crop.consensus)
    assert abs(crop.consensus.sum() / (ball.sum() * ct.voxel_mm3) - 1) < 0.03
    assert 2 * (crop.consensus & right).sum() / (crop.consensus.sum() + right.sum()) > 0.9
    assert np.abs(crop.centre_mm - CENTRE).max() < 0.5
    assert not crop.larger_than_box
    np.testing.assert_allclose(crop.ct, crop_nodule(ct, crop.centre_mm, 24).ct, atol=1e-2)


def test_components_and_labels(ct, tmp_path):
    labels = np.zeros(ct.array.shape, np.uint8)
    labels[3:6, 5:12, 5:12] = 1
    labels[15:18, 20:30, 20:30] = 1
    labels[10:12, 30:36, 5:10] = 2
    sitk.WriteImage(to_image(labels, ct.affine), str(tmp_path / "mask.mha"))
    whole = read_masks(tmp_path / "mask.mha", ct)
    assert [one.name for one in whole] == ["label1", "label2"]
    parts = read_masks(tmp_path / "mask.mha", ct, components=True)
    assert [one.name for one in parts] == ["label1-1", "label1-2", "label2-1"]
    assert [int(one.mask.sum()) for one in parts] == [3 * 49, 300, 60]
    result = prepare_mask(tmp_path / "ct", tmp_path / "mask.mha", tmp_path / "store", 16)
    store = CropStore(tmp_path / "store")
    assert store.row(f"{P1}-label1")["larger_than_box"]
    assert "the mask reaches over 30.0 mm: larger than the 16 mm box" in store.load(f"{P1}-label1").issues
    assert result.skipped == []


def test_a_mask_elsewhere_is_a_row(ct, ball, tmp_path):
    affine = ct.affine.copy()
    affine[:3, 3] += (0, 0, 900)
    sitk.WriteImage(to_image(ball.astype(np.uint8), affine), str(tmp_path / "mask.nii.gz"))
    result = prepare_mask(tmp_path / "ct", tmp_path / "mask.nii.gz", tmp_path / "store")
    assert result.written == []
    assert "lies outside the scan" in result.skipped[0].reason


def test_wrong_masks(ct, ball, write_series, series_writer, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_masks(tmp_path / "none.nii.gz", ct)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(DataError, match="is no mask file"):
        read_masks(tmp_path / "text.txt", ct)
    with pytest.raises(DataError, match="is DICOM CT, not SEG or RTSTRUCT"):
        read_masks(next((tmp_path / "ct").iterdir()), ct)
    sitk.WriteImage(to_image(np.zeros(ball.shape, np.uint8), ct.affine), str(tmp_path / "empty.nii.gz"))
    with pytest.raises(DataError, match="marks no voxel"):
        read_masks(tmp_path / "empty.nii.gz", ct)
    sitk.WriteImage(to_image(ct.array, ct.affine), str(tmp_path / "image.nii.gz"))
    with pytest.raises(DataError, match="no whole numbers"):
        read_masks(tmp_path / "image.nii.gz", ct)
    path, _ = rtstruct(ct, ball, tmp_path)
    series_writer(tmp_path / "other")(series="other", positions=np.arange(4) * 2.0)
    with pytest.raises(DataError, match="was drawn on series"):
        read_masks(path, read_ct(tmp_path / "other"))
    broken = pydicom.dcmread(path)
    broken.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2"]
    broken.save_as(path)
    with pytest.raises(DataError, match=r"nodule 1: cannot be read"):
        read_masks(path, ct)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError):
        read_masks(path, ct)
