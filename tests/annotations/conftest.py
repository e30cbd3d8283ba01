"""Shared by the annotation tests: the database's nodules, and small XML and DICOM files made from them."""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lidc_xai.annotations import Nodule


@pytest.fixture(scope="session")
def by_series(nodules: list[Nodule]) -> dict[str, list[Nodule]]:
    series: dict[str, list[Nodule]] = {}
    for nodule in nodules:
        series.setdefault(nodule.series_uid, []).append(nodule)
    return series


@pytest.fixture
def write_slice() -> Callable[..., Path]:
    """Write one DICOM file with the header of a CT slice and no pixels."""

    def write(path: Path, nodule: Nodule, z_mm: float, **fields: object) -> Path:
        header = pydicom.Dataset()
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = generate_uid()
        header.Modality = "CT"
        header.PatientID = nodule.patient_id
        header.SeriesInstanceUID = nodule.series_uid
        header.StudyInstanceUID = nodule.study_uid
        header.PixelSpacing = [nodule.pixel_spacing_mm, nodule.pixel_spacing_mm]
        header.SliceThickness = nodule.slice_thickness_mm
        header.ImagePositionPatient = [0.0, 0.0, z_mm]
        for name, value in fields.items():
            setattr(header, name, value)
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)
        return path

    return write
