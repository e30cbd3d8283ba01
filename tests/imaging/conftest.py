"""Shared by the imaging tests: small DICOM series with known HU everywhere, real nodules, CT without memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from lidc_xai.annotations import Nodule
from lidc_xai.imaging import CTVolume

SLOPE, INTERCEPT = 0.02, -800.0


def slanted_hu(points: np.ndarray) -> np.ndarray:
    """HU that are linear in LPS mm: linear interpolation gives them back exactly, wherever it is asked."""
    return points @ np.array([2.0, -1.5, 3.0]) - 480.0


def uid(*words: str) -> str:
    """The same UID for the same words."""
    return generate_uid(entropy_srcs=["lidc_xai tests", *words])


class SeriesWriter:
    """Writes a CT series slice by slice; every field can be damaged by ``change(dataset, k)``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        *,
        positions: Sequence[float] = tuple(np.arange(12) * 2.5),
        shape: tuple[int, int] = (20, 24),
        spacing: tuple[float, float] = (0.7, 0.6),
        row: Sequence[float] = (1.0, 0.0, 0.0),
        column: Sequence[float] = (0.0, 1.0, 0.0),
        origin: Sequence[float] = (-8.0, -6.0, -14.0),
        per_mm: Sequence[float] | None = None,
        hu: Callable[[np.ndarray], np.ndarray] = slanted_hu,
        series: str = "one",
        patient: str = "P1",
        scale: tuple[float, float] = (SLOPE, INTERCEPT),
        change: Callable[[Dataset, int], Any] | None = None,
        name: Callable[[int], str] = lambda k: f"slice{k:03d}.dcm",
        series_uid: str | None = None,
    ) -> list[Path]:
        """``positions``: along the normal; ``per_mm``: the way of the origin per mm along the normal (gantry tilt)."""
        row, column = np.array(row, float), np.array(column, float)
        normal = np.cross(row, column)
        way = normal if per_mm is None else np.array(per_mm, float)
        rows, columns = shape
        j, i = np.mgrid[:rows, :columns]
        paths = []
        for k, at in enumerate(positions):
            place = np.array(origin, float) + way * at
            points = place + i[..., None] * row * spacing[1] + j[..., None] * column * spacing[0]
            dataset = self._dataset(series, series_uid, patient, k, scale)
            dataset.ImagePositionPatient = [f"{value:.9g}" for value in place]
            dataset.ImageOrientationPatient = [f"{value:.9g}" for value in (*row, *column)]
            dataset.PixelSpacing = [f"{value:.9g}" for value in spacing]
            dataset.Rows, dataset.Columns = rows, columns
            stored = np.round((hu(points) - scale[1]) / scale[0])
            assert stored.min() >= -32768, "the test's HU do not fit"
            assert stored.max() <= 32767, "the test's HU do not fit"
            dataset.PixelData = stored.astype("<i2").tobytes()
            path = self.folder / name(k)
            if change is not None and change(dataset, k) is False:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    @staticmethod
    def _dataset(series: str, series_uid: str | None, patient: str, k: int, scale: tuple[float, float]) -> Dataset:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid(series, str(k))
        dataset.SeriesInstanceUID = series_uid or uid(series)
        dataset.StudyInstanceUID = uid("study", patient)
        dataset.FrameOfReferenceUID = uid("frame", patient)
        dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", patient, k + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SliceThickness = "2.5"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{scale[0]:.9g}", f"{scale[1]:.9g}"
        return dataset


@pytest.fixture
def write_series(tmp_path: Path) -> SeriesWriter:
    """Writes into ``tmp_path / "ct"``."""
    return SeriesWriter(tmp_path / "ct")


@pytest.fixture
def series_writer() -> type[SeriesWriter]:
    return SeriesWriter


@pytest.fixture
def slanted() -> Callable[[np.ndarray], np.ndarray]:
    return slanted_hu


@pytest.fixture
def voxel_centres() -> Callable[[np.ndarray, tuple[int, ...]], np.ndarray]:
    """LPS mm (z, y, x, 3) of all voxels of an array of ``shape`` under ``affine``."""

    def centres(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        k, j, i = np.meshgrid(*map(np.arange, shape), indexing="ij")
        return np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]

    return centres


@pytest.fixture(scope="session")
def blank_ct() -> Callable[[Nodule], CTVolume]:
    """The series of a nodule with its true grid and no pixels: 512 x 512 x all slices, in no memory."""

    def make(nodule: Nodule) -> CTVolume:
        z = np.unique(nodule.slice_positions_mm)
        affine = np.diag([nodule.pixel_spacing_mm, nodule.pixel_spacing_mm, float(np.median(np.diff(z))), 1.0])
        affine[:3, 3] = -171.3, -160.9, z[0]
        stored = np.broadcast_to(np.float32(-800), (len(z), 512, 512))
        even = np.abs(z - np.linspace(z[0], z[-1], len(z))).max() < 0.01
        array = stored if even else np.broadcast_to(np.float32(-800), (len(z) + 1, 512, 512))
        return CTVolume(array, affine, nodule.series_uid, stored=stored, positions_mm=z, slice_z_mm=z)

    return make


@pytest.fixture(scope="session")
def nodule_series() -> Callable[..., Path]:
    """Writes the slices around a real nodule as its own series: lung with a bright nodule where the readers drew it."""

    def write(folder: Path, nodule: Nodule, margin_mm: float = 20.0, **options: Any) -> Path:
        from lidc_xai.imaging.crops.contours import contours_box, contours_mask

        z = np.unique(nodule.slice_positions_mm)
        zs = [contour.z_mm for reading in nodule.readers for contour in reading.contours]
        kept = z[(z >= min(zs) - margin_mm) & (z <= max(zs) + margin_mm)]
        bright = np.zeros((len(kept), 512, 512), bool)
        for reading in nodule.readers:
            places = [int(np.abs(kept - contour.z_mm).argmin()) for contour in reading.contours]
            box = contours_box(reading.contours, places)
            part = tuple(slice(a, b + 1) for a, b in zip(box.low[::-1], box.high[::-1], strict=True))
            bright[part] |= contours_mask(reading.contours, places, box)
        layers = iter(bright)
        mm = nodule.pixel_spacing_mm
        SeriesWriter(folder)(
            positions=kept,
            origin=(-170.0, -165.0, 0.0),
            shape=(512, 512),
            spacing=(mm, mm),
            hu=lambda points: np.where(next(layers), 40.0, -850.0),
            scale=(1.0, -1024.0),
            series=nodule.nodule_id,
            series_uid=nodule.series_uid,
            patient=nodule.patient_id,
            **options,
        )
        return folder

    return write


@pytest.fixture(scope="session")
def pylidc() -> Any:
    """pylidc 0.2.3 itself, behind what it needs of older libraries; the oracle of the masks."""
    import configparser
    import os
    import sys
    import types
    from importlib.util import find_spec

    patch = pytest.MonkeyPatch()
    patch.setattr(np, "int", int, raising=False)
    patch.setattr(np, "float", float, raising=False)
    patch.setattr(configparser, "SafeConfigParser", configparser.ConfigParser, raising=False)
    if find_spec("pkg_resources") is None:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_filename = lambda package, name: os.path.join(  # type: ignore[attr-defined]
            os.path.dirname(find_spec(package).origin),
            name,  # type: ignore[union-attr, arg-type]
        )
        patch.setitem(sys.modules, "pkg_resources", stand_in)
    patch.setenv("HOME", "/nonexistent")
    import pylidc

    yield pylidc
    patch.undo()


@pytest.fixture
def recompress() -> Callable[[pydicom.Dataset, str], None]:
    """Stores the pixels of a slice in another transfer syntax ("RLE", "JPEG" lossless, "JPEG2000" lossless)."""

    def change(dataset: Dataset, syntax: str) -> None:
        import tempfile

        import SimpleITK as sitk

        if syntax == "RLE":  # which ITK reads and does not write
            dataset.compress(RLELossless)
            return
        image = sitk.GetImageFromArray(dataset.pixel_array[np.newaxis])
        with tempfile.TemporaryDirectory() as folder:
            writer = sitk.ImageFileWriter()
            writer.SetFileName(f"{folder}/one.dcm")
            writer.UseCompressionOn()
            writer.SetCompressor(syntax)
            writer.Execute(image)
            packed = pydicom.dcmread(f"{folder}/one.dcm")
        assert UID(packed.file_meta.TransferSyntaxUID).is_compressed
        dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        dataset.BitsStored, dataset.HighBit = packed.BitsStored, packed.HighBit
        dataset.PixelData = packed.PixelData
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return change
