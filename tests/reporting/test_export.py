"""Files for viewers: written from a series of known geometry, read back by other code, compared place by place."""

import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lidc_xai.errors import UsageError
from lidc_xai.imaging import crop_nodule, read_ct
from lidc_xai.imaging.store.crop_store import StoreWriter
from lidc_xai.nodules import NoduleMaps, Repeatability
from lidc_xai.ratings import OUTPUTS, RESEARCH_USE_ONLY
from lidc_xai.reporting.dicom.files import export_dicom
from lidc_xai.reporting.scans import Scans
from lidc_xai.reporting.volume_files import export_nifti, map_on_grid

SPACING, STEP = (0.7, 0.7), 2.5
POINT = np.array([30.0, -12.0, -45.0])  # LPS mm: middle of the nodule
ORIENTATIONS = {
    "usual": (1, 0, 0, 0, 1, 0),
    "negated": (-1, 0, 0, 0, -1, 0),
    "mirrored": (-1, 0, 0, 0, 1, 0),
}


def write_series(folder, orientation, name):
    """96 x 96 pixels, 20 slices, a ball of 8 mm at POINT, files in reverse order."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    origin = POINT - 46 * SPACING[1] * row - 50 * SPACING[0] * column - 9 * STEP * normal
    j, i = np.mgrid[:96, :96]
    series, study, frame = (generate_uid(entropy_srcs=[name, part]) for part in ("series", "study", "frame"))
    folder.mkdir(parents=True)
    for k in range(20):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientID = slice_.PatientName = "PHANTOM"
        slice_.PatientBirthDate = slice_.PatientSex = slice_.AccessionNumber = slice_.ReferringPhysicianName = ""
        slice_.StudyDate = slice_.StudyTime = slice_.StudyID = slice_.PositionReferenceIndicator = ""
        slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "CT", 1, 20 - k
        slice_.Manufacturer = slice_.PatientPosition = ""
        slice_.ImageOrientationPatient = [float(value) for value in orientation]
        position = origin + k * STEP * normal
        slice_.ImagePositionPatient = [float(value) for value in np.round(position, 6)]
        slice_.PixelSpacing, slice_.SliceThickness = list(SPACING), STEP
        slice_.Rows = slice_.Columns = 96
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.ImageType = "1", "0", ["ORIGINAL", "PRIMARY", "AXIAL"]
        at = position + i[..., None] * SPACING[1] * row + j[..., None] * SPACING[0] * column
        hu = np.where(np.linalg.norm(at - POINT, axis=-1) < 4, 40, -850).astype(np.int16)
        slice_.PixelData = hu.tobytes()
        slice_.save_as(folder / f"{20 - k:03d}.dcm", enforce_file_format=True)


@pytest.fixture(scope="module", params=list(ORIENTATIONS))
def phantom(request, tmp_path_factory):
    """A series in one orientation, a store with the crop at its nodule, and maps with one hot token there."""
    root = tmp_path_factory.mktemp(request.param)
    write_series(root / "dicom", ORIENTATIONS[request.param], request.param)
    ct = read_ct(root / "dicom")
    crop = crop_nodule(ct, POINT, nodule_id="P-1")
    z, y, x = np.mgrid[:32, :32, :32]
    mm = np.stack([x, y, z], -1) @ crop.affine[:3, :3].T + crop.affine[:3, 3]
    radius = np.linalg.norm(mm - POINT, axis=-1)
    crop.reader_masks = np.stack([radius < 4.0, radius < 5.0])
    crop.consensus = radius < 5.0
    votes = [
        {"nodule_id": "P-1", "reader": 1, "annotation_id": 1, "spiculation": 5, "malignancy": 4, "calcification": 6,
         "texture": 3, "diameter_mm": 8.0},
        {"nodule_id": "P-1", "reader": 2, "annotation_id": 2, "spiculation": 2, "malignancy": 5, "calcification": 3,
         "texture": 5, "diameter_mm": 10.0},
    ]  # fmt: skip
    writer = StoreWriter(root / "store", size_mm=32, spacing_mm=1, rule="test")
    writer.write(crop, {"patient_id": "P", "simulated": True, "n_readers": 2}, votes)
    relevance = np.zeros((3, len(OUTPUTS), 16, 16), np.float32)
    hot = np.floor((np.linalg.solve(crop.affine, [*POINT, 1])[:3] + 0.5) / 2).astype(int)  # tokens of 2 mm
    for place, (row, column) in enumerate(((1, 0), (2, 0), (2, 1))):
        relevance[place, :, hot[row], hot[column]] = 1.5
        relevance[place, :, 0, 0] = -0.5
    views = ("axial", "coronal", "sagittal")
    maps = NoduleMaps(
        "P-1", "cdam", views, (16, 16, 16), OUTPUTS, relevance, np.ones((3, 9), np.float32), (2, 2), "exact", {}
    )
    return SimpleNamespace(
        root=root, ct=ct, crop=crop, store=writer.finish(), maps={"cdam": [maps]}, dicom=root / "dicom"
    )


@pytest.fixture(scope="module")
def objects(phantom, made):
    predictions = made.predictions(["P-1"]).assign(p_calcified=0.25, diameter_low=9.0, diameter_high=14.5)
    result = export_dicom(
        phantom.store, phantom.root / "out", phantom.dicom, phantom.maps, predictions, model_name="net"
    )
    assert not result.skipped
    return {path.stem: path for path in result.paths}


def test_map_on_the_crops_own_grid(phantom):
    (maps,) = phantom.maps["cdam"]
    z, y, x = np.mgrid[:32, :32, :32]
    points = np.stack([x, y, z], -1) @ phantom.crop.affine[:3, :3].T + phantom.crop.affine[:3, 3]
    values, count = map_on_grid(maps, "margin", (32, 32, 32), phantom.crop.affine, points, phantom.crop.affine[:3, :3])
    assert np.array_equal(count > 0, np.isfinite(values))
    assert (count > 0).sum() == 3 * 32 * 32 - 3 * 32 + 1
    assert count[16, 16, 16] == 3
    column = OUTPUTS.index("margin")
    expected = np.kron(maps.relevance[0, column], np.ones((2, 2)))
    alone = count[16] == 1
    assert np.allclose(values[16][alone], expected[alone])
    with pytest.raises(UsageError, match="'nothing' is not in the maps"):
        map_on_grid(maps, "nothing", (32, 32, 32), phantom.crop.affine, points, np.eye(3))


@pytest.mark.parametrize("grid", ["crop", "scanner"])
def test_nifti_lies_on_the_known_point(phantom, tmp_path, grid):
    result = export_nifti(
        phantom.store, tmp_path, phantom.maps, grid=grid, dicom=phantom.dicom, formats=("nii.gz", "nrrd")
    )
    assert not result.skipped
    folder = tmp_path / "P-1"
    ct = sitk.ReadImage(str(folder / "ct.nii.gz"))
    for ending in ("nii.gz", "nrrd"):
        image = sitk.ReadImage(str(folder / f"cdam_spiculation.{ending}"))
        values = sitk.GetArrayFromImage(image)
        hottest = np.argwhere(values == np.nanmax(values))
        mm = np.array([image.TransformIndexToPhysicalPoint([int(v) for v in where[::-1]]) for where in hottest])
        half = 1 + np.abs(np.array(image.GetSpacing())).max() / 2  # half a token and half a voxel
        assert (np.abs(mm - POINT) <= half + 1e-3).all()
        assert image.GetSize() == ct.GetSize()
        assert np.allclose(image.GetOrigin(), ct.GetOrigin(), atol=1e-4)
    evaluated = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "cdam_evaluated.nii.gz")))
    assert np.array_equal(evaluated > 0, np.isfinite(sitk.GetArrayFromImage(image)))
    hu = sitk.GetArrayFromImage(ct)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "consensus.nii.gz"))).astype(bool)
    assert hu[mask].mean() > -500 > -800 > hu[~mask].mean()
    bright = np.argwhere(hu > -400)
    centre = ct.TransformContinuousIndexToPhysicalPoint([float(v) for v in bright.mean(axis=0)[::-1]])
    assert np.abs(np.array(centre) - POINT).max() < 0.5 * max(ct.GetSpacing())
    assert "SIMULATED" in (folder / "maps.json").read_text()
    assert RESEARCH_USE_ONLY in (folder / "maps.json").read_text()


def test_segmentation_reads_back(phantom, objects):
    seg = hd.seg.segread(objects["seg"])
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["P-1 reader 1", "P-1 reader 2", "P-1 consensus"]
    assert "RESEARCH USE ONLY" in seg.SeriesDescription
    assert seg.SeriesDescription.startswith("SIMULATED")
    volume = seg.get_volume(combine_segments=False)
    array, affine = volume.array, volume.affine  # (slices, rows, columns, segments), index -> LPS
    for segment, radius in enumerate((4.0, 5.0, 5.0)):
        index = np.argwhere(array[..., segment])
        mm = index @ affine[:3, :3].T + affine[:3, 3]
        distance = np.linalg.norm(mm - POINT, axis=1)
        assert distance.max() <= radius + 0.9  # carried over from voxels of 1 mm: half their diagonal
        assert np.abs(mm.mean(axis=0) - POINT).max() < 0.5
    first = np.linalg.solve(phantom.ct.affine, affine @ [0, 0, 0, 1])  # a pixel of the scan, not one between
    assert np.allclose(first, np.round(first), atol=1e-3)
    sources = {
        str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert sources <= set(phantom.ct.sop_instance_uids)


def test_parametric_map_reads_back(phantom, objects):
    dataset = hd.imread(objects["map_cdam_spiculation"])
    volume = dataset.get_volume(apply_real_world_transform=False)
    values, affine = volume.array, volume.affine
    finite = np.isfinite(values)
    assert 0 < finite.mean() < 1
    assert set(np.unique(values[finite])) >= {0.0, 1.5}
    mm = np.argwhere(values == 1.5) @ affine[:3, :3].T + affine[:3, 3]
    assert (np.abs(mm - POINT) <= 1 + max(STEP, *SPACING) / 2 + 1e-3).all()
    (maps,) = phantom.maps["cdam"]
    points = np.indices(values.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    axes = affine[:3, :3]
    expected, _ = map_on_grid(maps, "spiculation", (32, 32, 32), phantom.crop.affine, points, axes)
    assert np.array_equal(np.nan_to_num(expected, nan=-99), np.nan_to_num(values.reshape(-1), nan=-99))
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert "towards spiculated" in mapping.LUTExplanation
    assert mapping.RealWorldValueSlope == 1
    assert np.isnan(dataset.FloatPixelPaddingValue)
    logit = hd.imread(objects["map_cdam_malignancy"]).SharedFunctionalGroupsSequence[0]
    assert logit.RealWorldValueMappingSequence[0].MeasurementUnitsCodeSequence[0].CodeMeaning == "logit"


def test_a_mean_over_models_brings_its_error_and_its_stable_patches(phantom, made, tmp_path):
    (maps,) = phantom.maps["cdam"]
    known = Repeatability(
        ("a", "b", "c"), np.abs(maps.relevance) / 2, maps.relevance > 1,
        **{name: dict.fromkeys(OUTPUTS, 0.5) for name in ("agreement", "expected", "stable_share")},
    )  # fmt: skip
    mean = {"cdam": [replace(maps, repeatability=known)]}
    written = {path.stem: path for path in export_dicom(phantom.store, tmp_path, phantom.dicom, mean).paths}
    for layer, largest, unit in (("standard_error", 0.75, "{SD}"), ("stable", 1.0, "1")):
        dataset = hd.imread(written[f"map_cdam_texture_{layer}"])
        values = dataset.pixel_array
        assert np.nanmax(values) == largest
        assert np.nanmin(values) == 0
        (mapping,) = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == unit
    numbers = {hd.imread(path).SeriesNumber for stem, path in written.items() if stem.startswith("map_")}
    assert len(numbers) == 3 * len(OUTPUTS)
    files = export_nifti(phantom.store, tmp_path / "nifti", mean).paths
    assert {"cdam_texture_standard_error.nii.gz", "cdam_texture_stable.nii.gz"} <= {path.name for path in files}


def test_report_reads_back(objects):
    report = hd.sr.srread(objects["sr"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    sessions = [next(part.value for part in group[0].ContentSequence if part.name.meaning == "Activity Session")
                for group in groups]  # fmt: skip
    assert sessions == ["Reader 1", "Reader 2", "Model"]
    rated = {item.name.meaning: item.value.meaning for item in groups[0].get_qualitative_evaluations()}
    assert rated["Spiculation"] == "5 out of 5 (marked spiculation)"
    assert rated["Calcification"] == "Absent"
    assert rated["Texture"] == "part-solid pulmonary nodule"
    measured = {item.name.meaning: item.value for item in groups[1].get_measurements()}
    assert measured["Diameter"] == 10.0
    predicted = {item.name.meaning: item.value for item in groups[2].get_measurements()}
    assert predicted["Probability of readers' median malignancy above 3"] == 0.2
    assert predicted["Predicted diameter"] == 11.25
    assert predicted["Probability of any calcification"] == 0.25
    assert "Predicted calcification rating" not in predicted  # a mean of names
    diameter = next(item for item in groups[2].get_measurements() if item.name.meaning == "Predicted diameter")
    parts = [part for part in diameter[0].ContentSequence if part.ValueType == "NUM"]
    assert [part.unit.meaning for part in parts] == ["millimeter"] * 2
    ends = {part.name.meaning: float(part.value) for part in parts}
    assert sorted(ends.values()) == [2.25, 3.25]  # down to 9.0, up to 14.5
    findings = {item.name.meaning: item.value for item in groups[2].get_qualitative_evaluations()}
    assert (findings["Composition"].value, findings["Composition"].meaning) == ("RDE1301.2", "part-solid")
    assert findings["Morphology"].meaning == "ill-defined"
    assert findings["Morphology"].scheme_designator == "RADELEMENT"
    seg = pydicom.dcmread(objects["seg"], stop_before_pixels=True)
    assert seg.StudyInstanceUID == report.StudyInstanceUID


def test_objects_pass_dciodvfy(objects):
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    for name in ("seg", "sr", "key", "map_cdam_malignancy", "map_cdam_texture"):
        found = subprocess.run(["dciodvfy", str(objects[name])], capture_output=True, text=True)
        errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], name


def test_a_nodule_of_ones_own_reaches_the_archive(phantom, made, tmp_path):
    """A point: predictions at a sphere of the predicted diameter, no segmentation needed; and the slice to open."""
    writer = StoreWriter(tmp_path / "store", size_mm=32, spacing_mm=1, rule={"source": "points"})
    writer.write(crop_nodule(phantom.ct, POINT, nodule_id="Q-1"), {"patient_id": "Q"}, [])
    result = export_dicom(writer.finish(), tmp_path / "out", phantom.dicom, predictions=made.predictions(["Q-1"]))
    assert not result.skipped
    found = {path.stem: path for path in result.paths}
    assert set(found) == {"sr", "key"}
    (group,) = hd.sr.srread(found["sr"]).content.get_volumetric_roi_measurement_groups()
    (surface,) = [item for item in group[0].ContentSequence if item.ValueType == "SCOORD3D"]
    ends = np.array(surface.GraphicData, float).reshape(-1, 3)
    assert np.abs(ends.mean(axis=0) - POINT).max() < 0.51
    assert np.allclose(np.linalg.norm(ends - ends.mean(axis=0), axis=1), 11.25 / 2, atol=1e-3)
    key = pydicom.dcmread(found["key"])
    (item,) = key.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    index = phantom.ct.sop_instance_uids.index(item.ReferencedSOPInstanceUID)
    z = phantom.ct.stored_index_to_mm(np.array([[0.0, 0.0, index]]))[0] @ phantom.ct.normal
    assert abs(z - POINT @ phantom.ct.normal) <= STEP / 2 + 1e-3
    if shutil.which("dciodvfy"):
        for path in found.values():
            words = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
            assert [line for line in (words.stdout + words.stderr).splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize(
    ("lacking", "lost"),
    [
        (("PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"), set()),
        (("PatientID", "PatientName"), set()),
        (("SliceThickness",), set()),
        (("FrameOfReferenceUID",), {"seg"}),
    ],
)
def test_what_a_series_lacks_ends_one_object_at_most(phantom, tmp_path, lacking, lost):
    for path in sorted(phantom.dicom.iterdir()):
        slice_ = pydicom.dcmread(path)
        for name in lacking:
            delattr(slice_, name)
        (tmp_path / "dicom").mkdir(exist_ok=True)
        slice_.save_as(tmp_path / "dicom" / path.name, enforce_file_format=True)
    result = export_dicom(phantom.store, tmp_path / "out", tmp_path / "dicom")
    assert {item.stage for item in result.skipped} == lost
    assert {path.stem for path in result.paths} == {"seg", "sr"} - lost


def contents(path):
    """Every element of an object but the dates and times of its making, as text."""
    made = pydicom.dcmread(path)
    for element in list(made.iterall()):
        if element.VR in ("DA", "TM", "DT"):
            element.value = ""
    return str(made)


def test_every_run_writes_the_same_objects(phantom, objects, made, tmp_path):
    predictions = made.predictions(["P-1"]).assign(p_calcified=0.25, diameter_low=9.0, diameter_high=14.5)
    again = export_dicom(phantom.store, tmp_path, phantom.dicom, phantom.maps, predictions, model_name="net")
    assert {path.stem for path in again.paths} == set(objects)
    for path in again.paths:
        assert contents(path) == contents(objects[path.stem]), path.stem
    assert len({str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in again.paths}) == len(
        again.paths
    )


def test_a_zipped_study_gives_the_same_objects(phantom, tmp_path):
    shutil.make_archive(str(tmp_path / "study"), "zip", phantom.dicom)
    scans = Scans(tmp_path / "study.zip")
    unpacked = scans.index.folder
    uid = str(phantom.store.row("P-1")["series_uid"])
    wanted = [header.SOPInstanceUID for header in Scans(phantom.dicom).slices(uid)]
    assert [header.SOPInstanceUID for header in scans.slices(uid)] == wanted
    del scans
    assert not unpacked.exists()


def test_export_refuses_and_names(phantom, study, tmp_path):
    with pytest.raises(UsageError, match="grid 'mars' is not known"):
        export_nifti(phantom.store, tmp_path, grid="mars")
    with pytest.raises(UsageError, match="format jpg"):
        export_nifti(phantom.store, tmp_path, formats=("jpg",))
    with pytest.raises(UsageError, match="needs the DICOM folder"):
        export_nifti(phantom.store, tmp_path, grid="scanner")
    result = export_dicom(study.store, tmp_path / "other", phantom.dicom, nodule_ids=study.ids[:1])
    assert [item.nodule_id for item in result.skipped] == [study.ids[0]]
    assert "has no CT series 1.2.3" in result.skipped[0].reason


def test_real_outlines_are_exact(shared, tmp_path):
    """LIDC-IDRI-0001: the segmentation holds each reader's rasterised outline, pixel for pixel."""
    from lidc_xai.imaging import prepare_dicom
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.reporting.scans import Scans

    folder = shared / "lidc" / "dicom" / "LIDC-IDRI-0001"
    prepare_dicom(folder, tmp_path / "store")
    store = CropStore(tmp_path / "store")
    nodule_id = store.nodule_ids[0]
    result = export_dicom(store, tmp_path / "out", folder)
    seg = hd.seg.segread(next(path for path in result.paths if path.stem == "seg"))
    masks, where, exact = Scans(folder).masks(store, nodule_id)
    assert exact
    volume = seg.get_volume(combine_segments=False)
    upwards = volume.affine[2, 0] > 0  # its slices may run either way
    array = np.moveaxis(volume.array[:: 1 if upwards else -1, ..., :4], -1, 0).astype(bool)
    assert np.array_equal(array, masks)
    context = Scans(folder).context(store, nodule_id)
    assert context.ct.shape == (72, 72, 72)
    assert context.consensus.sum() == store.load(nodule_id).consensus.sum()
    assert where.stop - where.start == masks.shape[1]
