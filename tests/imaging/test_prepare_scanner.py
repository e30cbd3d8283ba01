"""The scanner is carried from the DICOM header to the manifest, so that results can be split by it."""

from lidc_xai.imaging import CropStore, prepare_dicom, read_ct


def test_scanner_of_a_real_series_reaches_the_manifest(shared, tmp_path):
    prepare_dicom(shared / "lidc" / "dicom", tmp_path / "store")
    folder = shared / "lidc" / "dicom" / "LIDC-IDRI-0001"
    assert read_ct(folder).scanner == "GE MEDICAL SYSTEMS LightSpeed Plus"
    assert CropStore(tmp_path / "store").manifest["scanner"].tolist() == ["GE MEDICAL SYSTEMS LightSpeed Plus"]
