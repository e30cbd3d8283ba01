"""Simulated CT: whole series, DICOM, stores, and how near they are to a real scan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from studies.appearance import LIMITS, REAL, appearance, outside_limits

from lidc_xai.annotations import Nodule
from lidc_xai.errors import UsageError
from lidc_xai.imaging import CropStore, crop_nodule, read_ct
from lidc_xai.simulate import SimulatedCT, simulate_crop, simulate_ct, simulate_store, write_dicom

FIRST = "LIDC-IDRI-0001-s1-n0"


@pytest.fixture(scope="module")
def simulated(by_id: dict[str, Nodule]) -> SimulatedCT:
    return simulate_ct([by_id[FIRST]], 0, margin_mm=6)


class TestSeries:
    def test_has_the_recorded_slices_and_is_labelled(self, simulated: SimulatedCT, by_id: dict[str, Nodule]) -> None:
        volume, nodule = simulated.volume, by_id[FIRST]
        assert volume.simulated
        assert volume.series_uid == nodule.series_uid
        assert np.isin(volume.slice_z_mm, nodule.slice_positions_mm).all()
        assert volume.stored.shape[1:] == (512, 512)
        assert volume.spacing_mm[1:] == pytest.approx((nodule.pixel_spacing_mm,) * 2)
        z = [contour.z_mm for reading in nodule.readers for contour in reading.contours]
        assert volume.slice_z_mm[0] <= min(z) - 5
        assert volume.slice_z_mm[-1] >= max(z) + 5

    def test_nodule_lies_under_its_contours(self, simulated: SimulatedCT) -> None:
        crop = crop_nodule(simulated.volume, simulated.nodules[0], size_mm=48)
        assert crop.consensus is not None
        ring = ndimage.binary_dilation(crop.consensus, iterations=6) & ~ndimage.binary_dilation(
            crop.consensus, iterations=3
        )
        assert crop.ct[crop.consensus].mean() > -150
        assert np.percentile(crop.ct[ring], 25) < -600

    def test_causes_are_whole_masks_of_the_stored_slices(self, simulated: SimulatedCT) -> None:
        causes = simulated.causes[FIRST]
        assert {"margin", "spiculation", "texture"} <= set(causes)
        assert all(mask.shape == simulated.volume.stored.shape and mask.dtype == bool for mask in causes.values())
        assert simulated.volume.stored[causes["texture"]].mean() > -150

    def test_a_crop_of_it_looks_like_a_crop_simulated_directly(self, simulated: SimulatedCT) -> None:
        nodule = simulated.nodules[0]
        through, (direct, causes) = crop_nodule(simulated.volume, nodule), simulate_crop(nodule, 0)
        np.testing.assert_allclose(through.affine, direct.affine, atol=1e-6)
        np.testing.assert_array_equal(through.consensus, direct.consensus)
        inside = ndimage.binary_erosion(direct.consensus, iterations=2)
        assert through.ct[inside].mean() == pytest.approx(direct.ct[inside].mean(), abs=25)
        assert causes["texture"].sum() == pytest.approx(direct.consensus.sum(), rel=0.25)

    def test_two_nodules_of_a_scan_and_none_of_another(self, by_id: dict[str, Nodule]) -> None:
        pair = [by_id["LIDC-IDRI-0003-s1-n2"], by_id["LIDC-IDRI-0003-s1-n3"]]
        made = simulate_ct(pair, 1, margin_mm=1, ratings={pair[0].nodule_id: {"texture": 1}})
        assert set(made.causes) == {nodule.nodule_id for nodule in pair}
        assert {r.ratings["texture"] for r in made.nodules[0].readers} == {1}
        assert made.ratings[pair[0].nodule_id] == {"texture": 1}
        with pytest.raises(UsageError, match="one scan"):
            simulate_ct([by_id[FIRST], pair[0]])
        with pytest.raises(UsageError, match="one scan"):
            simulate_ct([])
        with pytest.raises(UsageError, match="scope"):
            simulate_ct(pair, scope="crop")

    def test_uneven_slices_are_resampled_for_the_volume(self, by_id: dict[str, Nodule]) -> None:
        nodule = by_id["LIDC-IDRI-0005-s1-n0"]
        z = np.unique(nodule.slice_positions_mm)
        far = int(np.abs(z - nodule.centroid_z_mm).argmin()) + 4
        moved = z + np.where(np.arange(len(z)) == far, 0.3, 0.0)
        made = simulate_ct([replace(nodule, slice_positions_mm=moved)], margin_mm=10).volume
        assert made.array is not made.stored
        np.testing.assert_allclose(np.diff(made.slice_z_mm).max() - np.diff(made.slice_z_mm).min(), 0.6, atol=1e-3)
        np.testing.assert_array_equal(made.array[0], made.stored[0])


class TestDicom:
    def test_is_read_back_as_it_was(self, simulated: SimulatedCT, tmp_path: Path) -> None:
        folder = write_dicom(simulated, tmp_path / "ct")
        assert folder.relative_to(tmp_path / "ct").parts == (
            simulated.volume.patient_id, simulated.volume.study_uid, simulated.volume.series_uid,
        )  # fmt: skip
        volume = read_ct(tmp_path / "ct")
        np.testing.assert_array_equal(volume.array, simulated.volume.array)
        np.testing.assert_allclose(volume.affine, simulated.volume.affine, atol=1e-6)
        assert volume.simulated
        assert volume.issues == []
        crop = crop_nodule(volume, simulated.nodules[0])
        np.testing.assert_array_equal(crop.ct, crop_nodule(simulated.volume, simulated.nodules[0]).ct)

    def test_says_simulated_and_repeats_exactly(self, simulated: SimulatedCT, tmp_path: Path) -> None:
        first, again = (write_dicom(simulated, tmp_path / name) for name in ("a", "b"))
        files = sorted(path.name for path in first.iterdir())
        assert len(files) == len(simulated.volume.stored)
        assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
        header = pydicom.dcmread(first / files[0], stop_before_pixels=True)
        for field in ("SeriesDescription", "PatientComments", "ImageComments", "ManufacturerModelName"):
            assert "SIMULATED" in str(header[field].value)
        assert list(header.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
        assert header.Manufacturer == "lidc_xai simulate"


class TestRealism:
    def test_within_the_limits_of_the_real_scan(self, simulated: SimulatedCT) -> None:
        assert outside_limits(appearance(simulated.volume)) == []

    def test_other_scans_and_seeds_too(self, by_id: dict[str, Nodule]) -> None:
        for nodule_id, seed in (("LIDC-IDRI-0398-s1-n3", 1), ("LIDC-IDRI-0618-s1-n0", 2)):
            made = simulate_ct([by_id[nodule_id]], seed, margin_mm=2)
            assert outside_limits(appearance(made.volume)) == [], nodule_id

    def test_a_grey_ellipsoid_is_outside(self, simulated: SimulatedCT) -> None:
        flat = replace(simulated.volume, array=np.where(simulated.volume.array > -500, 40.0, -850.0).astype("f4"),
                       stored=np.empty((0, 0, 0), np.float32))  # fmt: skip
        found = appearance(flat)
        assert len(outside_limits(found)) >= 3

    def test_committed_numbers_are_those_of_the_real_scan(self, shared: Path) -> None:
        found = appearance(read_ct(shared / "lidc/dicom/LIDC-IDRI-0001"))
        for name in (*LIMITS, "vessel_share"):
            assert getattr(found, name) == pytest.approx(getattr(REAL, name), rel=0.02)


class TestStore:
    def test_same_whatever_the_order_jobs_and_interruptions(self, nodules: list[Nodule], tmp_path: Path) -> None:
        some = [n for n in nodules if n.n_readers == 4][:3]
        first = simulate_store(tmp_path / "a", some, 4, independent=True)
        second = tmp_path / "b"
        simulate_store(second, some[:1], 4, independent=True)
        again = simulate_store(second, some[::-1], 4, jobs=2, independent=True)
        assert first.nodule_ids == again.nodule_ids
        for nodule_id in first.nodule_ids:
            np.testing.assert_array_equal(first.load(nodule_id).ct, again.load(nodule_id).ct)
            causes, others = first.causes(nodule_id), again.causes(nodule_id)
            assert set(causes) == set(others) >= {"margin", "texture"}
            assert all((causes[name] == others[name]).all() for name in causes)

    def test_manifest_has_the_drawn_ratings_and_the_label(self, nodules: list[Nodule], tmp_path: Path) -> None:
        nodule = next(n for n in nodules if n.n_readers == 4)
        store = simulate_store(tmp_path / "s", [nodule], 4, ratings={nodule.nodule_id: {"texture": 2}})
        row = store.row(nodule.nodule_id)
        assert row["simulated"]
        assert row["hu_calibrated"]
        assert row["texture"] == 2
        assert set(store.votes["texture"]) == {2}
        assert row["diameter"] == pytest.approx(np.mean([r.diameter_mm for r in nodule.readers]))
        assert isinstance(CropStore(tmp_path / "s"), CropStore)
        with pytest.raises(UsageError, match="rule"):
            simulate_store(tmp_path / "s", [nodule], 5)
        with pytest.raises(UsageError, match="independent"):
            simulate_store(tmp_path / "t", [nodule], independent=True, ratings={nodule.nodule_id: {"texture": 2}})


class TestWall:
    def test_a_nodule_at_the_pleura_stays_in_the_lung(self, by_id: dict[str, Nodule]) -> None:
        """LIDC-IDRI-0296-s1-n0 reaches the chest wall with seed 5: no ground-glass and no cause inside the wall."""
        nodule = by_id["LIDC-IDRI-0296-s1-n0"]
        glass = {"texture": 1, "spiculation": 5, "calcification": 6, "margin": 5, "subtlety": 5}
        crop, causes = simulate_crop(nodule, 5, ratings=glass)
        wall = ndimage.binary_opening(
            simulate_crop(nodule, 5, ratings={**glass, "spiculation": 1})[0].ct > -200, iterations=3
        )
        assert wall.sum() > 200
        assert not (causes["spiculation"] & ndimage.binary_erosion(wall, iterations=2)).any()
        assert crop.ct[ndimage.binary_erosion(wall, iterations=2)].min() > -250
