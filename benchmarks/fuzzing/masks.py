"""RTSTRUCT and SEG."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fuzzing.mutators import Rng, damage_bytes
from fuzzing.series import SHAPE, example_hu, identifier, write_series
from fuzzing.watch import Kind
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.mask_files import read_masks

MASKS: dict[str, Kind] = {}


def masked_ct() -> CTVolume:
    affine = np.diag([0.6, 0.7, 2.5, 1.0])
    affine[:3, 3] = -8, -6, -14
    return CTVolume(example_hu().astype(np.float32), affine)


def _rtstruct(folder: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = identifier("rt")
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", identifier("rt series")
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


MASKS["rtstruct"] = Kind(_rtstruct, _damage_rtstruct, lambda folder: read_masks(folder / "mask.dcm", masked_ct()))


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
    mask = np.zeros((4, *SHAPE[1:]), np.uint8)
    mask[1:3, 8:12, 8:14] = 1
    code = CodedConcept("27925004", "SCT", "Nodule")
    segment = highdicom.seg.SegmentDescription(1, "nodule", code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    highdicom.seg.Segmentation(
        slices, mask, "BINARY", [segment], identifier("seg series"), 1, identifier("seg"), 1,
        "lidc_xai", "fuzz", "1", "1",
        omit_empty_frames=False,
    ).save_as(folder / "mask.dcm")  # fmt: skip
    assert pydicom.dcmread(folder / "mask.dcm").SOPClassUID == SegmentationStorage
    shutil.rmtree(folder / "ct")


MASKS["seg"] = Kind(_seg, _damage_rtstruct, lambda folder: read_masks(folder / "mask.dcm", masked_ct()), slow=4)
