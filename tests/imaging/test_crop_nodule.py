"""Crops of nodules: in the middle of the consensus, on the nodule's own pixels, and only from its own series."""

import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from scipy.ndimage import map_coordinates

from lidc_xai.annotations import Contour
from lidc_xai.errors import DataError
from lidc_xai.imaging import VIEWS, crop_nodule, extract_plane, read_ct
from lidc_xai.imaging.crops.contours import consensus_mask, mask_bounds
from lidc_xai.imaging.crops.crop import consensus_centre, native_masks
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.crops.resample import CropGrid, sample_ct
from lidc_xai.imaging.ct.volume import CTVolume
from lidc_xai.imaging.planes import padding_read

NODULE = "LIDC-IDRI-0003-s1-n1"


@pytest.fixture(scope="module")
def nodule(by_id):
    return by_id[NODULE]


@pytest.fixture(scope="module")
def base(nodule, nodule_series, tmp_path_factory):
    """The nodule's slices with 20 mm of lung on both sides; never changed."""
    return nodule_series(tmp_path_factory.mktemp("base"), nodule)


@pytest.fixture(scope="module")
def ct(base):
    return read_ct(base)


@pytest.fixture
def damaged(base, tmp_path):
    """A copy of the series that a test may damage."""
    return shutil.copytree(base, tmp_path / "ct")


def change_all(folder, change):
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def test_the_bright_pixels_lie_under_the_masks(ct, nodule):
    crop = crop_nodule(ct, nodule)
    assert crop.ct.shape == crop.consensus.shape == (32, 32, 32)
    assert crop.reader_masks.shape == (nodule.n_readers, 32, 32, 32)
    assert crop.reader_masks.dtype == crop.consensus.dtype == bool
    assert (crop.nodule_id, crop.series_uid) == (nodule.nodule_id, nodule.series_uid)
    assert not crop.padded
    union = crop.reader_masks.any(axis=0)
    bright = crop.ct > -405  # half-way between the lung (-850) and the nodule (40)
    dice = 2 * (union & bright).sum() / (union.sum() + bright.sum())
    assert dice > 0.93
    for shift in np.ndindex(3, 3, 3):  # no shift by a voxel fits better: nothing is displaced
        moved = np.roll(bright, np.array(shift) - 1, axis=(0, 1, 2))
        assert 2 * (union & moved).sum() / (union.sum() + moved.sum()) <= dice


def test_the_centre_is_the_middle_of_the_consensus_box(ct, nodule):
    crop = crop_nodule(ct, nodule)
    masks, box = native_masks(ct, nodule)
    low, high = mask_bounds(consensus_mask(masks))
    ends = [ct.stored_index_to_mm(end[::-1] + np.array(box.low, float)) for end in (low, high)]
    np.testing.assert_allclose(crop.centre_mm, np.mean(ends, axis=0), atol=1e-9)
    # with an even number of voxels the centre lies between the two middle ones
    np.testing.assert_allclose((crop.affine @ [15.5, 15.5, 15.5, 1])[:3], crop.centre_mm, atol=1e-9)


@pytest.mark.parametrize("size_mm", [32, 48, 64])
def test_sizes_show_the_same_voxels(ct, nodule, size_mm):
    small, crop = crop_nodule(ct, nodule, 32), crop_nodule(ct, nodule, size_mm)
    cut = slice((size_mm - 32) // 2, (size_mm + 32) // 2)
    np.testing.assert_array_equal(crop.consensus[cut, cut, cut], small.consensus)
    shown = slice(4, 28)  # the larger box is padded above and below this short series
    np.testing.assert_allclose(crop.ct[cut, cut, cut][shown], small.ct[shown], atol=1e-2)
    assert crop.padded == (size_mm > 48)


def test_without_consensus_the_readers_centroids_are_the_centre(ct, nodule):
    """Two readers, far apart and of one slice each: no voxel is marked by half of three."""
    first = nodule.readers[0].contours[0]

    def reader(number, shift):
        outline = Contour(first.z_mm, first.ij + np.array([shift, 0], np.int32), True, first.k)
        return replace(nodule.readers[0], annotation_id=number, contours=[outline])

    apart = replace(nodule, readers=[reader(1, 0), reader(2, 30), reader(3, 60)])
    crop = crop_nodule(ct, apart)
    assert not crop.consensus.any()
    assert any("no voxel is marked by half of the readers" in issue for issue in crop.issues)
    i, j = first.ij.mean(axis=0) + np.array([30, 0])
    k = np.abs(ct.slice_z_mm - first.z_mm).argmin()
    np.testing.assert_allclose(crop.centre_mm, ct.stored_index_to_mm(np.array([i, j, k])), atol=1e-6)
    masks, box = native_masks(ct, apart)
    np.testing.assert_allclose(consensus_centre(ct, apart, consensus_mask(masks), box), crop.centre_mm)


def test_a_nodule_larger_than_the_box_is_flagged_and_kept(ct, nodule):
    crop = crop_nodule(ct, nodule, size_mm=16)
    assert crop.larger_than_box
    assert any("larger than the 16 mm box" in issue for issue in crop.issues)
    assert not crop_nodule(ct, nodule, size_mm=48).larger_than_box


def test_the_box_is_padded_where_the_scan_ends(base, nodule, tmp_path):
    folder = shutil.copytree(base, tmp_path / "ct")
    zs = [contour.z_mm for reading in nodule.readers for contour in reading.contours]
    for path in folder.iterdir():
        if float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]) > max(zs):
            path.unlink()
    crop = crop_nodule(read_ct(folder), nodule)
    assert crop.padded
    assert (crop.ct[-1] == -1000).all()
    assert (crop.ct[0] > -1000).all()


def turn_to_coronal(dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    dataset.ImagePositionPatient = [x, z, y]


def widen(dataset):
    dataset.PixelSpacing = [f"{float(dataset.PixelSpacing[0]) + 0.0015:.6f}"] * 2


REFUSED = {
    "another series": (lambda d: setattr(d, "SeriesInstanceUID", "1.2.3"), "was drawn on series"),
    "resampled": (lambda d: setattr(d, "PixelSpacing", [0.9, 0.9]), r"pixel spacing is 0\.9000 x 0\.9000 mm"),
    "spacing differs by more than 0.001 mm": (widen, "was resampled"),
    "mirrored": (lambda d: setattr(d, "ImageOrientationPatient", [-1, 0, 0, 0, 1, 0]), "stored images are mirrored"),
    "not axial": (turn_to_coronal, "not axial"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contours_meet_only_their_own_pixels(name, damaged, nodule):
    damage, words = REFUSED[name]
    change_all(damaged, damage)
    with pytest.raises(DataError, match=words) as error:
        crop_nodule(read_ct(damaged), nodule)
    assert nodule.nodule_id in str(error.value)
    crop = crop_nodule(read_ct(damaged), read_ct(damaged).stored_index_to_mm(np.array([200.0, 200.0, 8.0])), 16)
    assert crop.reader_masks is None, "a point in mm still works"


def test_a_smaller_matrix_is_refused(damaged, nodule):
    def cut(dataset):
        dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[:256, :256]).tobytes()
        dataset.Rows = dataset.Columns = 256

    change_all(damaged, cut)
    with pytest.raises(DataError, match="256 rows x 256 columns, the readers drew on 512 x 512"):
        crop_nodule(read_ct(damaged), nodule)


def test_a_slice_of_a_contour_that_is_missing_is_named(damaged, nodule):
    z = nodule.readers[0].contours[1].z_mm
    for path in damaged.iterdir():
        if abs(float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]) - z) < 0.01:
            path.unlink()
    with pytest.raises(DataError, match=f"nodule is cut off: slices z={z:g} of reader contours are not in the series"):
        crop_nodule(read_ct(damaged), nodule)


def test_a_slice_beside_the_contours_that_is_missing_is_a_gap_in_the_box(damaged, nodule):
    top = max(contour.z_mm for reading in nodule.readers for contour in reading.contours)
    above = sorted(nodule.slice_positions_mm[nodule.slice_positions_mm > top])[0]
    for path in damaged.iterdir():
        if abs(float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]) - above) < 0.01:
            path.unlink()
    with pytest.raises(DataError, match=r"slices are missing between .* inside the box"):
        crop_nodule(read_ct(damaged), nodule)


def test_a_slice_is_found_by_its_uid_first(ct, nodule):
    """Reader XML names the slice; a z that was rounded there does no harm."""
    by_z = {round(float(z), 3): uid for z, uid in zip(ct.slice_z_mm, ct.sop_instance_uids, strict=True)}

    def named(contour):
        return replace(contour, sop_uid=by_z[round(contour.z_mm, 3)], z_mm=contour.z_mm + 0.3)

    readers = [replace(r, contours=[named(c) for c in r.contours]) for r in nodule.readers]
    crop = crop_nodule(ct, replace(nodule, readers=readers))
    np.testing.assert_array_equal(crop.consensus, crop_nodule(ct, nodule).consensus)


def test_prone_series_keep_stored_pixels_and_are_turned_for_the_crop(damaged, nodule, ct):
    """The same stored pixels under a header turned by 180 degrees: the mask turns with the image."""

    def turn(dataset):
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        dataset.ImagePositionPatient = [-x, -y, z]

    change_all(damaged, turn)
    crop, upright = crop_nodule(read_ct(damaged), nodule), crop_nodule(ct, nodule)
    np.testing.assert_allclose(crop.ct, upright.ct[:, ::-1, ::-1], atol=1e-2)
    same = crop.consensus == upright.consensus[:, ::-1, ::-1]
    assert same.mean() > 0.9999, "ties at the surface may fall the other way"
    np.testing.assert_allclose(crop.affine[:3, :3], np.eye(3), atol=1e-9)


def test_the_real_nodule(shared, by_id):
    crop = crop_nodule(read_ct(shared / "lidc" / "dicom" / "LIDC-IDRI-0001"), by_id["LIDC-IDRI-0001-s1-n0"])
    assert crop.reader_masks.shape[0] == 4
    assert crop.ct[crop.consensus].mean() > -150
    shell = np.zeros_like(crop.consensus)
    for axis in range(3):
        for step in (-2, 2):
            shell |= np.roll(crop.consensus, step, axis)
    shell &= ~crop.reader_masks.any(axis=0)
    assert crop.ct[shell].mean() < crop.ct[crop.consensus].mean() - 250
    with pytest.raises(DataError, match=r"nodule is cut off: slices z=-120\.75 to -95\.75 \(21 slices\)"):
        crop_nodule(read_ct(shared / "lidc" / "dicom" / "LIDC-IDRI-0002"), by_id["LIDC-IDRI-0002-s1-n0"])


@pytest.mark.parametrize("view", VIEWS)
def test_planes_lie_in_the_volume(view):
    affine = np.array([[0.5, 0, 0.1, -10], [0, 0.7, 0, 20], [0, 0.2, 2.5, 5], [0, 0, 0, 1]])
    volume = np.random.default_rng(0).normal(size=(4, 5, 6))
    for index in (0, 3, None):
        plane = extract_plane(volume, affine, view, index)
        assert plane.index == (index if index is not None else {"axial": 2, "coronal": 2, "sagittal": 3}[view])
        row, column = 1, 2
        i, j, k = {
            "axial": (column, row, plane.index), "coronal": (column, plane.index, row),
            "sagittal": (plane.index, column, row),
        }[view]  # fmt: skip
        assert plane.image[row, column] == volume[k, j, i]
        np.testing.assert_allclose(plane.affine @ [column, row, 0, 1], affine @ [i, j, k, 1])
        down, across = plane.affine[:3, 1], plane.affine[:3, 0]
        np.testing.assert_allclose(plane.spacing_mm, [np.linalg.norm(down), np.linalg.norm(across)])


def test_planes_outside_are_refused():
    from lidc_xai.errors import UsageError

    with pytest.raises(UsageError, match="it has planes 0 to 3"):
        extract_plane(np.zeros((4, 5, 6)), np.eye(4), "axial", 4)
    with pytest.raises(UsageError, match="choose one of axial, coronal, sagittal"):
        extract_plane(np.zeros((4, 5, 6)), np.eye(4), "front")


def test_a_plane_outside_the_scan_is_padding_throughout_and_one_across_its_edge_in_part():
    ct = np.full((8, 8, 8), -1000.0, dtype=np.float32)
    ct[:4] = 40
    crop = NoduleCrop(ct, np.eye(4), padded=True)
    assert padding_read(crop, ("axial",), 1) == 1.0  # slice 4 of 0 to 7
    assert padding_read(crop, ("coronal",), 1) == 0.5
    assert padding_read(crop, ("axial",), 3) == pytest.approx(2 / 3)
    assert padding_read(replace(crop, padded=False), ("axial",), 1) == 0.0


def _at(x: float, y: float, z: float) -> CropGrid:
    """One point, in mm."""
    affine = np.eye(4)
    affine[:3, 3] = x, y, z
    return CropGrid(affine, (1, 1, 1))


def test_the_scan_ends_half_a_voxel_beyond_its_outermost_centres():
    ct = CTVolume(np.full((4, 4, 4), 50, np.float32), np.eye(4))
    places = {-0.6: True, -0.4: False, 3.4: False, 3.6: True}
    for place, beyond in places.items():
        for point in ((place, 0, 0), (0, place, 0), (0, 0, place)):
            values, outside = sample_ct(ct, _at(*point), "linear", -1000.0)
            assert (values.item(), outside.item()) == ((-1000.0, True) if beyond else (50.0, False))


def test_a_spline_of_the_part_under_the_grid_is_that_of_the_whole_scan():
    volume = np.random.default_rng(0).normal(0, 300, (40, 40, 40)).astype(np.float32)
    ct, point = CTVolume(volume, np.eye(4)), (20.3, 19.6, 20.5)
    whole = map_coordinates(volume, np.array(point)[::-1, None], order=3, mode="nearest")
    assert sample_ct(ct, _at(*point), "bspline", -1000.0)[0].item() == pytest.approx(whole.item(), abs=0.01)
