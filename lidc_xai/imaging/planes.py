"""Planes of a volume: the axial, coronal or sagittal slice of a (z, y, x) array with its own place in the patient.

``planes_of`` is the one way from a crop to what a model reads and a report draws; ``padding_read`` says how much of
that was never scanned, where a box reaches beyond the scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop, Plane
from lidc_xai.imaging.ct.volume import AIR_HU

Box = tuple[slice, slice, slice]
VIEWS = ("axial", "coronal", "sagittal")
CUT_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Axis of a (z, y, x) array that a view cuts."""
# Per view: the columns of the affine that a plane's column, row and index follow.
_AFFINE_COLUMNS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


def extract_plane(array: np.ndarray, affine: np.ndarray, view: str, index: int | None = None) -> Plane:
    """Cut one plane out of ``array`` (z, y, x) whose ``affine`` maps (i, j, k, 1) to LPS mm.

    ``index`` is the slice along the cut axis, ``None`` for the middle one (n // 2). The image is a view, not a copy.

    >>> extract_plane(np.arange(8.0).reshape(2, 2, 2), np.eye(4), "sagittal", 1).image.tolist()
    [[1.0, 3.0], [5.0, 7.0]]
    """
    if view not in VIEWS:
        raise UsageError(f"view {view!r} is not known; choose one of {', '.join(VIEWS)}")
    axis = CUT_AXIS[view]
    count = array.shape[axis]
    if index is None:
        index = count // 2
    if not 0 <= index < count:
        raise UsageError(f"{view} plane {index} is outside the volume; it has planes 0 to {count - 1}")
    column, row, normal = _AFFINE_COLUMNS[view]
    affine = np.asarray(affine, dtype=np.float64)
    plane_affine = affine[:, [column, row, normal, 3]]
    plane_affine[:3, 3] += index * affine[:3, normal]
    spacing = (float(np.linalg.norm(affine[:3, row])), float(np.linalg.norm(affine[:3, column])))
    image = np.moveaxis(array, axis, 0)[index]
    return Plane(view, index, image, plane_affine, spacing)


def crop_plane(crop: NoduleCrop, view: str, index: int | None = None, of: str | int = "ct") -> Plane:
    """One plane of a crop, cut once and kept with it. ``index``: None for the middle.

    ``of``: "ct", "consensus", or the number of a reader, whose masks lie on the same grid.
    """
    source, volume = _volume(crop, of)
    key = (of, view, crop.ct.shape[CUT_AXIS.get(view, 0)] // 2 if index is None else int(index))
    kept = crop.cut.get(key)
    if kept is None or kept[0] is not source:  # another array was put into the crop since
        kept = crop.cut[key] = (source, extract_plane(volume, crop.affine, view, key[2]))
    return kept[1]


def middle_slices(shape: Sequence[int], view: str, slices: int) -> range:
    """Indices of the ``slices`` (odd) planes about the middle n // 2 of a view; empty where it has fewer.

    >>> middle_slices((16, 16, 16), "axial", 3)
    range(7, 10)
    """
    count = shape[CUT_AXIS.get(view, 0)]
    return range(count // 2 - slices // 2, count // 2 + slices // 2 + 1) if slices <= count else range(0)


def planes_of(crop: NoduleCrop, views: Sequence[str] = VIEWS, slices: int = 1, of: str | int = "ct") -> np.ndarray:
    """The ``slices`` (odd) planes about the middle of every view of a crop: (views, slices, side, side).

    float32 HU, or bool ``of`` the "consensus" or a reader's number. A view's middle is slice n // 2. Raises
    ``DataError`` where a view has fewer slices, or where the views' planes differ in size (the crop is no cube).

    >>> import numpy as np
    >>> from lidc_xai.imaging import NoduleCrop, planes_of
    >>> planes_of(NoduleCrop(np.zeros((16, 16, 16), np.float32), np.eye(4)), ("axial",), 3).shape
    (1, 3, 16, 16)
    """
    shape = crop.ct.shape
    cut: list[np.ndarray] = []
    for view in views:
        around = middle_slices(shape, view, slices)
        cut += [np.stack([crop_plane(crop, view, index, of).image for index in around])] if around else []
    if len(cut) < len(views) or len({each.shape for each in cut}) > 1:
        least = f"a cube of at least {slices} voxels a side"
        raise DataError(f"crop {crop.nodule_id}: has shape {shape}; planes need {least}; run prepare again")
    return np.stack(cut).astype(np.float32 if of == "ct" else bool, copy=False)


def _volume(crop: NoduleCrop, of: str | int) -> tuple[np.ndarray, np.ndarray]:
    """The array that the crop holds, and the volume of it that is meant."""
    if of == "ct":
        return crop.ct, crop.ct
    held = crop.consensus if of == "consensus" else crop.reader_masks
    if held is None:
        raise DataError(f"crop {crop.nodule_id}: no reader marked it, so it has no mask to cut")
    return held, held if of == "consensus" else held[int(of)]


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
