"""A simulated series as DICOM in TCIA's layout, with SIMULATED in every header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lidc_xai import __version__
from lidc_xai.errors import UsageError
from lidc_xai.files import atomic_path
from lidc_xai.simulate.series import SimulatedCT

LABEL = "SIMULATED CT, not a patient: real LIDC-IDRI annotations in made-up anatomy"
INTERCEPT = -1024


def write_dicom(simulated: SimulatedCT, folder: Path | str) -> Path:
    """Write the slices to ``folder``/patient/study/series/*.dcm and return that last folder (replaced if it exists).

    The series carries the annotations' own SeriesInstanceUID, so that the contours find it as they find the real one;
    SOPInstanceUIDs are made from series and slice and are the same in every run.

    >>> path = write_dicom(simulated, folder / "series")
    >>> len(list(path.iterdir())) == len(simulated.volume.array)
    True
    """
    volume = simulated.volume
    if not volume.simulated:
        raise UsageError("write_dicom writes simulated CT only")
    target = Path(folder) / volume.patient_id / volume.study_uid / volume.series_uid
    stored = np.round(volume.stored - INTERCEPT).astype(np.int16)
    with atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        for k, pixels in enumerate(stored):
            dataset = _dataset(simulated, k)
            dataset.PixelData = pixels.tobytes()
            dataset.save_as(temporary / f"1-{k + 1:03d}.dcm", enforce_file_format=True)
    return target


def _dataset(simulated: SimulatedCT, k: int) -> Dataset:
    volume = simulated.volume
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["lidc_xai simulate", volume.series_uid, str(k)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = volume.study_uid, volume.series_uid
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["lidc_xai simulate", volume.series_uid, "frame"])
    _label(dataset, volume.patient_id)
    _geometry(dataset, simulated, k)
    dataset.Rows, dataset.Columns = volume.stored.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(INTERCEPT), "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    return dataset


def _label(dataset: Dataset, patient_id: str) -> None:
    dataset.PatientID, dataset.PatientName = patient_id, f"SIMULATED^{patient_id}"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = ""
    dataset.Modality, dataset.SeriesNumber = "CT", 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "lidc_xai simulate", "SIMULATED"
    dataset.SoftwareVersions = __version__
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.StudyDescription = "SIMULATED chest CT"
    dataset.SeriesDescription = "SIMULATED chest CT around LIDC-IDRI annotations"
    dataset.PatientComments = dataset.ImageComments = dataset.DerivationDescription = LABEL


def _geometry(dataset: Dataset, simulated: SimulatedCT, k: int) -> None:
    volume = simulated.volume
    spacing = volume.affine[0, 0]
    z = float(volume.slice_z_mm[k])
    dataset.InstanceNumber = k + 1
    dataset.PatientPosition = "FFS"
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = [_decimal(volume.affine[0, 3]), _decimal(volume.affine[1, 3]), _decimal(z)]
    dataset.PixelSpacing = [_decimal(spacing), _decimal(spacing)]
    dataset.SliceThickness, dataset.SliceLocation = _decimal(volume.slice_thickness_mm), _decimal(z)
    dataset.KVP, dataset.ConvolutionKernel = "120", "SIMULATED"


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.8f}".rstrip("0").rstrip(".")[:16]
