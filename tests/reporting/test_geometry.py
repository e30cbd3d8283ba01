"""Planes stand as a radiologist expects, whichever way the voxels are stored; outlines lie on the mask."""

import itertools

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lidc_xai.imaging.planes import extract_plane
from lidc_xai.reporting.nodule.geometry import turned_for_display
from lidc_xai.reporting.nodule.outlines import dice, outline_path

# A point left, posterior, superior of the middle: where it must show (row share, column share) in each view.
EXPECTED = {"axial": ("low", "right"), "coronal": ("high", "right"), "sagittal": ("high", "right")}
LETTERS = {"axial": ("A", "L", "P", "R"), "coronal": ("S", "L", "I", "R"), "sagittal": ("S", "P", "I", "A")}


def volume_with_point(signs: tuple[int, int, int], shape=(10, 12, 14), spacing=(0.7, 0.8, 2.0)):
    """One bright voxel at (+3, +2, +4) mm from the middle (LPS), stored with the given axis directions."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(signs) * spacing)
    middle = (np.array(shape[::-1]) - 1) / 2
    affine[:3, 3] = np.array([5.0, -7.0, 100.0]) - affine[:3, :3] @ middle
    array = np.zeros(shape, np.float32)
    i, j, k = np.round(np.linalg.solve(affine, [8.0, -5.0, 104.0, 1.0]))[:3].astype(int)
    array[k, j, i] = 1
    return array, affine, (i, j, k)


@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
@pytest.mark.parametrize("view", LETTERS)
def test_orientation_does_not_depend_on_storage(signs, view):
    array, affine, (i, j, k) = volume_with_point(signs)
    index = {"axial": k, "coronal": j, "sagittal": i}[view]
    plane = turned_for_display(extract_plane(array, affine, view, index))
    assert plane.letters == LETTERS[view]
    row, column = np.argwhere(plane.image == 1)[0]
    height, width = plane.image.shape
    vertical, horizontal = EXPECTED[view]
    assert (row > height / 2) == (vertical == "low")
    assert (column > width / 2) == (horizontal == "right")
    # the display affine leads back to the point
    shown = (plane.affine @ [column, row, 0, 1])[:3]
    assert np.allclose(shown, (affine @ [i, j, k, 1])[:3])
    assert plane.orient(np.arange(array.shape[1] * array.shape[2]).reshape(array.shape[1:])).shape == array.shape[1:]


def test_position_and_extent():
    array, affine, _ = volume_with_point((1, 1, 1))
    plane = turned_for_display(extract_plane(array, affine, "axial", 0))
    assert plane.position == f"z = {affine[2, 3]:.1f} mm"
    assert plane.size_mm == pytest.approx((12 * 0.8, 14 * 0.7))


def test_tilted_plane_has_two_letters():
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, 0] = (np.cos(angle), np.sin(angle), 0)
    affine[:3, 1] = (-np.sin(angle), np.cos(angle), 0)
    assert turned_for_display(extract_plane(np.zeros((4, 4, 4)), affine, "axial")).letters == ("AL", "LP", "PR", "RA")


def curves(path: str) -> list[np.ndarray]:
    return [
        np.array([[float(value) for value in point.split()] for point in piece.rstrip("Z").split("L")])
        for piece in path.split("M")[1:]
    ]


def inside(path: str, points: np.ndarray) -> np.ndarray:
    """Even-odd rule over all closed curves of a path."""
    return sum(Outline(curve).contains_points(points).astype(int) for curve in curves(path)) % 2 == 1


@pytest.mark.parametrize("seed", range(4))
def test_outline_separates_the_pixels_of_a_mask(seed):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    mask = (
        gaussian_filter(rng.normal(size=(30, 24)), 1.5) > 0.05
    )  # ragged, with holes and single pixels, cut by the border
    mask[3, 3] = True
    dy, dx = 0.9, 1.4
    rows, columns = np.mgrid[:30, :24]
    centres = np.column_stack([(columns.ravel() + 0.5) * dx, (rows.ravel() + 0.5) * dy])
    assert np.array_equal(inside(outline_path(mask, (dy, dx)), centres), mask.ravel())


def test_outline_of_a_disc_is_round_and_in_place():
    rows, columns = np.mgrid[:40, :40]
    mask = (rows - 21) ** 2 + (columns - 17) ** 2 < 10.5**2
    (curve,) = curves(outline_path(mask, (1.0, 1.0)))
    radius = np.hypot(curve[:, 0] - 17.5, curve[:, 1] - 21.5)
    assert abs(radius.mean() - 10.5) < 0.35
    assert radius.std() < 0.3
    assert outline_path(np.zeros((5, 5), bool), (1, 1)) == ""


def test_dice():
    first = np.array([1, 1, 0, 0], bool)
    assert dice(first, np.array([0, 1, 1, 0], bool)) == 0.5
    assert dice(first, first) == 1
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) is None
