"""How a stored plane is turned for a radiologist: patient right on the left, anterior and superior up.

A plane leaves the store in the order of its voxels. For display its rows and columns are flipped (never transposed or
interpolated) so that x and y of the patient (LPS: left, posterior) grow to the right and downwards, and z (superior)
grows upwards. Everything drawn over a plane (masks, token grids) goes through the same flips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.crops.nodule_crop import Plane

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # towards lower and higher x, y, z of LPS coordinates
_WANTED_SIGN = (1, 1, -1)  # x and y grow rightwards or downwards on the screen, z grows upwards
_COORDINATE = "xyz"


@dataclass(frozen=True)
class DisplayPlane:
    """One plane, turned for display.

    Attributes:
        view: ``axial``, ``coronal`` or ``sagittal``.
        index: slice index in the stored array.
        image: (h, w) values, display order (row 0 on top, column 0 on the left).
        spacing_mm: size of a display pixel, (row, column).
        flip: whether rows and columns were reversed.
        letters: orientation letters (top, right, bottom, left).
        position: the coordinate along the normal, such as ``z = −118.5 mm`` (LPS).
        affine: 4x4, (column, row, 0, 1) of the *display* picture -> LPS mm.
    """

    view: str
    index: int
    image: NDArray[np.float32]
    spacing_mm: tuple[float, float]
    flip: tuple[bool, bool]
    letters: tuple[str, str, str, str]
    position: str
    affine: NDArray[np.float64]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Extent (height, width) in mm."""
        height, width = self.image.shape
        return height * self.spacing_mm[0], width * self.spacing_mm[1]

    def orient(self, array: NDArray) -> NDArray:
        """Bring (..., rows, columns) in stored order (a mask, a token grid over the same plane) into display order."""
        rows, columns = (slice(None, None, -1 if flipped else 1) for flipped in self.flip)
        return np.ascontiguousarray(array[..., rows, columns])


def turned_for_display(plane: Plane) -> DisplayPlane:
    """The plane as it is shown. Orientation letters come from its affine, not from the name of the view."""
    matrix = np.array(plane.affine, dtype=np.float64)
    height, width = plane.image.shape
    column_axis, column_sign = _dominant(matrix[:3, 0])
    row_axis, row_sign = _dominant(matrix[:3, 1])
    flip = (row_sign != _WANTED_SIGN[row_axis], column_sign != _WANTED_SIGN[column_axis])
    if flip[0]:
        matrix[:3, 3] += matrix[:3, 1] * (height - 1)
        matrix[:3, 1] *= -1
    if flip[1]:
        matrix[:3, 3] += matrix[:3, 0] * (width - 1)
        matrix[:3, 0] *= -1
    image = plane.image[:: -1 if flip[0] else 1, :: -1 if flip[1] else 1]
    right, bottom = _letter(matrix[:3, 0]), _letter(matrix[:3, 1])
    left, top = _letter(-matrix[:3, 0]), _letter(-matrix[:3, 1])
    normal_axis = _dominant(np.cross(matrix[:3, 0], matrix[:3, 1]))[0]
    centre = matrix @ ((width - 1) / 2, (height - 1) / 2, 0, 1)
    return DisplayPlane(
        view=plane.view,
        index=plane.index,
        image=np.ascontiguousarray(image),
        spacing_mm=(float(np.linalg.norm(matrix[:3, 1])), float(np.linalg.norm(matrix[:3, 0]))),
        flip=flip,
        letters=(top, right, bottom, left),
        position=f"{_COORDINATE[normal_axis]} = {centre[normal_axis]:.1f} mm".replace("-", "−"),
        affine=matrix,
    )


def _dominant(direction: NDArray) -> tuple[int, int]:
    axis = int(np.argmax(np.abs(direction)))
    return axis, 1 if direction[axis] >= 0 else -1


def _letter(direction: NDArray) -> str:
    """Letters of a direction, the strongest first; a second one where the plane is tilted by more than 20 degrees."""
    unit = direction / np.linalg.norm(direction)
    order = np.argsort(-np.abs(unit))
    return "".join(_LETTERS[axis][int(unit[axis] > 0)] for axis in order if abs(unit[axis]) > 0.34)
