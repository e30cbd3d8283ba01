"""Which part of a crop was scanned: a box that reaches beyond the scan is padded, and a model reads some planes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.ct.volume import AIR_HU
from lidc_xai.imaging.planes import CUT_AXIS, middle_slices

Box = tuple[slice, slice, slice]


def scanned_box(ct: NDArray) -> Box:
    """The part of a crop (z, y, x) inside the planes that hold nothing but padding (the value of air) on its six sides.

    >>> ct = np.full((4, 4, 4), -1000.0)
    >>> ct[1:3] = 40
    >>> scanned_box(ct)[0]
    slice(1, 3, None)
    """
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero((ct != AIR_HU).any(axis=others))
        slices.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, ct.shape[axis]))
    return slices[0], slices[1], slices[2]


def padding_read(crop: NoduleCrop, views: Sequence[str], slices: int) -> float:
    """Share (0 to 1) of the ``slices`` planes about the middle of each of ``views`` that was never scanned: how much of
    what a model reads is padding.

    >>> padding_read(crop, ("axial",), 3)
    0.0
    """
    if not crop.padded:
        return 0.0
    box, shape = scanned_box(crop.ct), crop.ct.shape
    shares = []
    for view in views:
        cut = CUT_AXIS[view]
        beside = math.prod((box[axis].stop - box[axis].start) / shape[axis] for axis in range(3) if axis != cut)
        for index in middle_slices(shape, view, slices):
            shares.append(1.0 - beside if box[cut].start <= index < box[cut].stop else 1.0)
    return float(np.mean(shares)) if shares else 0.0
