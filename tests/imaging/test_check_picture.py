"""Where the picture of ``check_ct`` draws: every box and cross in coordinates, not only that there is one."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lidc_xai.imaging.check import Target, _draw_planes, _draw_slice
from lidc_xai.imaging.crops.crop import crop_nodule
from lidc_xai.imaging.ct.reading import read_ct

SIZE_MM = 12.0


@pytest.fixture
def drawn(write_series, tmp_path):
    """Slices of 60 × 60 pixels of 0.7 × 0.6 mm, 2 mm apart; a target at column 22, row 37, slice 8."""
    write_series(positions=np.arange(20) * 2.0, shape=(60, 60), spacing=(0.7, 0.6))
    ct = read_ct(tmp_path / "ct")
    centre = tuple((ct.affine @ [22.0, 37.0, 8.0, 1.0])[:3])
    crop = crop_nodule(ct, centre, size_mm=24.0)
    target = Target(name="n", centre_mm=centre, surroundings=crop)
    axes = Figure().subplots(1, 4)
    _draw_slice(axes[0], ct, target, SIZE_MM)
    _draw_planes(axes[1:], target, SIZE_MM)
    return SimpleNamespace(ct=ct, crop=crop, axes=axes)


def box_of(axis):
    (box,) = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    return box.get_x(), box.get_y(), box.get_width(), box.get_height()


def cross_of(axis):
    (line,) = [line for line in axis.lines if line.get_marker() == "+"]
    return float(line.get_xdata()[0]), float(line.get_ydata()[0])


def test_the_box_of_the_slice_is_centred_on_the_target(drawn):
    height, width = SIZE_MM / 0.7, SIZE_MM / 0.6
    assert cross_of(drawn.axes[0]) == pytest.approx((22, 37))
    assert box_of(drawn.axes[0]) == pytest.approx((22 - width / 2, 37 - height / 2, width, height))
    assert drawn.axes[0].get_title(loc="left").startswith("n: slice 8 of 20")


def test_the_boxes_of_the_planes_are_centred_and_of_the_asked_size(drawn):
    middle = (24 - 1) / 2
    for axis in drawn.axes[1:]:
        assert cross_of(axis) == pytest.approx((middle, middle))
        assert box_of(axis) == pytest.approx((middle - 6, middle - 6, 12, 12))
        image = axis.images[0].get_array()
        assert image.shape == (24, 24)


def test_planes_stand_head_up_with_the_patients_sides_named(drawn):
    for axis, (right, below) in zip(drawn.axes[1:], (("L", "P"), ("L", "F"), ("P", "F")), strict=True):
        assert [text.get_text() for text in axis.texts] == [right, below]
        assert axis.yaxis_inverted() == (axis is drawn.axes[1])
