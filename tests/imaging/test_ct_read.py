"""Reading CT: every voxel at its place, whatever the orientation, order, layout, scale and packing of the files."""

import numpy as np
import pytest
import SimpleITK as sitk

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import crop_nodule, read_ct
from lidc_xai.imaging.ct.formats.volume_file import to_image

TURN = np.array([[0.936, 0.0, -0.352], [0.0, 1.0, 0.0], [0.352, 0.0, 0.936]])
TURN = np.linalg.qr(TURN)[0] * np.sign(np.diag(np.linalg.qr(TURN)[1]))
ORIENTATIONS = {
    "standard": ((1, 0, 0), (0, 1, 0)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "mirrored": ((-1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": (tuple(TURN[:, 0]), tuple(TURN[:, 1])),
}


def same_hu(values, points, slanted, tolerance=0.02):
    np.testing.assert_allclose(values, slanted(points), atol=tolerance)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_lies_where_its_header_says(name, write_series, slanted, voxel_centres, tmp_path):
    row, column = ORIENTATIONS[name]
    write_series(row=row, column=column, name=lambda k: f"{(k * 7) % 12:02d}.dcm")
    ct = read_ct(tmp_path / "ct")
    assert ct.array.shape == (12, 20, 24)
    assert ct.array.dtype == np.float32
    assert ct.stored is ct.array
    same_hu(ct.array, voxel_centres(ct.affine, ct.array.shape), slanted)
    assert ct.issues == []
    assert ct.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
    assert (np.diff(ct.positions_mm) > 0).all()


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_crop_of_anisotropic_data_is_exact_to_a_hundredth_of_a_voxel(
    name, interpolation, write_series, slanted, voxel_centres, tmp_path
):
    """A half-voxel error of 0.5 mm would be 1.5 HU here; the crop is right within 0.03 HU."""
    row, column = ORIENTATIONS[name]
    shape, spacing, positions = (40, 36), (0.55, 0.9), np.arange(14) * 2.5
    origin = np.array([3.0, -2.0, 7.0])
    write_series(row=row, column=column, shape=shape, spacing=spacing, positions=positions, origin=origin)
    ct = read_ct(tmp_path / "ct")
    centre = ct.stored_index_to_mm(np.array([17.3, 19.9, 6.4]))
    crop = crop_nodule(ct, centre, size_mm=8, spacing_mm=1, interpolation=interpolation)
    tolerance = 0.03 if interpolation == "linear" else 0.3  # a spline bends where the volume ends
    same_hu(crop.ct, voxel_centres(crop.affine, crop.ct.shape), slanted, tolerance)
    np.testing.assert_allclose(crop.centre_mm, centre, atol=1e-9)
    np.testing.assert_allclose(crop.spacing_mm, 1)
    assert not crop.padded
    axes = crop.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert (np.diag(axes) > 0.9).all(), "axes in the order and sense of LPS"


def test_bspline_differs_from_linear_and_follows_curvature(write_series, tmp_path, voxel_centres):
    def wave(points):
        return 100 * np.sin(points[..., 0]) - 400

    write_series(hu=wave, spacing=(1.0, 1.0), shape=(30, 30), positions=np.arange(20) * 1.0)
    ct = read_ct(tmp_path / "ct")
    centre = ct.stored_index_to_mm(np.array([15.0, 15.0, 9.0]))
    errors = {}
    for name in ("linear", "bspline"):
        crop = crop_nodule(ct, centre, size_mm=8, interpolation=name)
        errors[name] = np.abs(crop.ct - wave(voxel_centres(crop.affine, crop.ct.shape))).max()
    assert errors["bspline"] < errors["linear"] / 5


def test_uneven_slices_are_used_at_their_true_positions(write_series, slanted, voxel_centres, tmp_path):
    positions = np.cumsum([0, 2.4, 2.6, 2.5, 2.3, 2.7, 2.5, 2.5, 2.6, 2.4, 2.5, 2.5])
    write_series(positions=positions)
    ct = read_ct(tmp_path / "ct")
    assert any("slice spacing varies from 2.300 to 2.700 mm" in issue for issue in ct.issues)
    np.testing.assert_allclose(ct.positions_mm, positions - 14, atol=1e-6)
    same_hu(ct.array, voxel_centres(ct.affine, ct.array.shape), slanted, 0.03)
    same_hu(ct.stored, ct.stored_index_to_mm(np.moveaxis(np.indices(ct.stored.shape)[::-1], 0, -1)), slanted)
    crop = crop_nodule(ct, ct.stored_index_to_mm(np.array([11.0, 10.0, 5.0])), size_mm=8)
    same_hu(crop.ct, voxel_centres(crop.affine, crop.ct.shape), slanted, 0.03)


def test_tilted_gantry_is_followed(write_series, slanted, voxel_centres, tmp_path):
    write_series(per_mm=(0.0, 0.2, 1.0), shape=(40, 40))
    ct = read_ct(tmp_path / "ct")
    assert any("gantry tilt of 11.3 degrees" in issue for issue in ct.issues)
    same_hu(ct.array, voxel_centres(ct.affine, ct.array.shape), slanted)
    crop = crop_nodule(ct, ct.stored_index_to_mm(np.array([20.0, 20.0, 6.0])), size_mm=8)
    same_hu(crop.ct, voxel_centres(crop.affine, crop.ct.shape), slanted, 0.03)
    assert crop.ct.shape == (8, 8, 8)


@pytest.mark.parametrize("syntax", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_pixels(syntax, write_series, recompress, slanted, voxel_centres, tmp_path):
    write_series(change=lambda dataset, k: recompress(dataset, syntax), scale=(1.0, -1024.0))
    ct = read_ct(tmp_path / "ct")
    same_hu(ct.array, voxel_centres(ct.affine, ct.array.shape), slanted, 0.51)
    assert ct.issues == []


def test_index_and_mm_are_inverse(write_series, tmp_path):
    write_series(positions=np.cumsum([0, 2.4, 2.6, 2.5, 2.3]), row=ORIENTATIONS["oblique"][0])
    ct = read_ct(tmp_path / "ct")
    index = np.random.default_rng(0).uniform(-3, 25, (50, 3))
    np.testing.assert_allclose(ct.to_stored_index(ct.stored_index_to_mm(index)), index, atol=1e-9)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mhd", ".mha", ".nii"])
def test_volume_files(suffix, slanted, voxel_centres, tmp_path):
    affine = np.diag([0.6, 0.7, 2.5, 1.0])
    affine[:3, 3] = -8, -6, -14
    values = slanted(voxel_centres(affine, (12, 20, 24))).astype(np.float32)
    sitk.WriteImage(to_image(values, affine), str(tmp_path / f"ct{suffix}"))
    ct = read_ct(tmp_path / f"ct{suffix}")
    np.testing.assert_allclose(ct.affine, affine, atol=1e-5)
    np.testing.assert_allclose(ct.array, values, atol=1e-3)
    assert ct.series_uid == ""
    crop = crop_nodule(ct, (-1.1, 1.2, 0.3), size_mm=6)
    same_hu(crop.ct, voxel_centres(crop.affine, crop.ct.shape), slanted, 0.03)


def test_pixels_are_decoded_once(write_series, tmp_path, monkeypatch):
    write_series()
    from lidc_xai.imaging.ct import dicom_pixels

    seen = []
    original = dicom_pixels._stored
    monkeypatch.setattr(dicom_pixels, "_stored", lambda path, slices: seen.append(path) or original(path, slices))
    read_ct(tmp_path / "ct")
    assert len(seen) == len(set(seen)) == 12


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [(16, 16, 15), (16, 12, 11), (8, 8, 7)])
@pytest.mark.parametrize("scale", [(1, -1024), (1, 0), (2, -1000.5), (0.037, -800)])
def test_values_are_those_of_gdcm(signed, bits, scale, write_series, tmp_path):
    """Random stored bytes, the bits that are no value included: GDCM (through ITK) is the reference."""

    def change(dataset, k):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = map(str, scale)
        values = np.random.default_rng(k).integers(0, 2 ** bits[1], 480)
        dataset.PixelData = values.astype("u1" if bits[0] == 8 else "<u2").tobytes()
        dataset["PixelData"].VR = "OB" if bits[0] == 8 else "OW"

    paths = write_series(change=change, positions=[0, 1, 2])
    ct = read_ct(tmp_path / "ct")
    for path, values in zip(paths, ct.stored, strict=True):
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(np.float32)
        np.testing.assert_allclose(values, np.maximum(theirs, -1024), rtol=1e-6)


def test_real_series(shared):
    ct = read_ct(shared / "lidc" / "dicom" / "LIDC-IDRI-0001")
    assert ct.array.shape == (16, 512, 512)
    np.testing.assert_allclose(ct.slice_z_mm, np.arange(-132.5, -94, 2.5))
    np.testing.assert_allclose(ct.affine[:3, 3], (-166, -171.699997, -132.5))
    assert ct.patient_id == "LIDC-IDRI-0001"
    assert not ct.simulated
    assert -1000 < np.median(ct.array[:, 200:300, 100:180]) < -700, "lung where lung is"


def test_series_is_chosen_by_uid(write_series, series_writer, tmp_path):
    write_series(series="one")
    series_writer(tmp_path / "ct")(series="two", name=lambda k: f"other{k}", hu=lambda points: points[..., 0] * 0 - 700)
    from pydicom import dcmread

    one, two = (str(dcmread(tmp_path / "ct" / name).SeriesInstanceUID) for name in ("slice000.dcm", "other0"))
    with pytest.raises(UsageError, match="has 2 CT series; name one") as error:
        read_ct(tmp_path / "ct")
    assert one in str(error.value)
    assert two in str(error.value)
    assert (read_ct(tmp_path / "ct", two).array == -700).all()
    assert read_ct(tmp_path / "ct", one).series_uid == one
    with pytest.raises(UsageError, match=r"has no series 1\.2\.3"):
        read_ct(tmp_path / "ct", "1.2.3")


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm", "options", "words"),
    [
        (0, 1, {}, "must be positive"),
        (32, -1, {}, "must be positive"),
        (32, 0.7, {}, "whole number of voxels"),
        (8, 1, {"interpolation": "cubic"}, "choose one of linear, bspline"),
    ],
)
def test_wrong_options(size_mm, spacing_mm, options, words, write_series, tmp_path):
    write_series()
    with pytest.raises(UsageError, match=words):
        crop_nodule(read_ct(tmp_path / "ct"), (0, 0, 0), size_mm, spacing_mm, **options)


def test_padding_at_the_border_and_points_outside(write_series, slanted, voxel_centres, tmp_path):
    write_series()
    ct = read_ct(tmp_path / "ct")
    crop = crop_nodule(ct, ct.stored_index_to_mm(np.array([1.0, 10.0, 6.0])), size_mm=8)
    assert crop.padded
    assert "lies outside the scan: padded with -1000 HU" in crop.issues[-1]
    points = voxel_centres(crop.affine, crop.ct.shape)
    index = ct.to_stored_index(points)
    outside = ((index < -0.5) | (index > np.array([23.5, 19.5, 11.5]))).any(axis=-1)
    assert (crop.ct[outside] == -1000).all()
    inside = ((index >= 0) & (index <= [23, 19, 11])).all(axis=-1)
    same_hu(crop.ct[inside], points[inside], slanted, 0.03)
    assert (crop_nodule(ct, crop.centre_mm, 8, padding_hu=-5).ct[outside] == -5).all()
    with pytest.raises(DataError, match=r"point \(500, 0, 0\) LPS mm lies outside the scan \(x -8 to 6, y -6 to 7"):
        crop_nodule(ct, (500, 0, 0))
    with pytest.raises(UsageError, match="three numbers"):
        crop_nodule(ct, (1, 2))


def test_a_point_in_ras_is_recognised(write_series, tmp_path):
    write_series(origin=(30.0, 40.0, -14.0))
    with pytest.raises(DataError, match="as RAS mm it would lie inside"):
        crop_nodule(read_ct(tmp_path / "ct"), (-35.0, -44.0, 0.0))


def test_the_room_opens_without_heavy_libraries():
    import subprocess
    import sys

    code = (
        "import sys; import lidc_xai.imaging as imaging; imaging.extract_plane\n"
        "heavy = [m for m in ('torch', 'SimpleITK', 'pydicom', 'pandas', 'matplotlib') if m in sys.modules]\n"
        "import lidc_xai.imaging.prepare\n"
        "heavy += [m for m in ('torch', 'monai', 'matplotlib', 'highdicom', 'pylidc') if m in sys.modules]\n"
        "print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
