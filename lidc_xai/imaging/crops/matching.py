"""Does a CT belong to a nodule? Contours are stored pixels: they may meet only the series they were drawn on."""

from __future__ import annotations

import numpy as np

from lidc_xai.annotations.nodule import Contour, Nodule
from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.volume import CTVolume

LIDC_MATRIX = 512
"""Rows and columns of every CT of LIDC-IDRI."""
SPACING_MM = 1e-3
SLICE_MM = 0.01
_LISTED = 6
_REMEDY = "use the original TCIA series, or give a point in mm or a mask"


def check_series(ct: CTVolume, nodule: Nodule) -> None:
    """Refuse (DataError) a CT that is not, pixel by pixel, the series on which the readers drew ``nodule``."""
    name = nodule.nodule_id
    if ct.series_uid != nodule.series_uid:
        given = f"series {ct.series_uid}" if ct.series_uid else "a file without SeriesInstanceUID"
        raise DataError(f"{name}: was drawn on series {nodule.series_uid}, this CT is {given}; {_REMEDY}")
    rows, columns = ct.stored.shape[1:]
    if (rows, columns) != (LIDC_MATRIX, LIDC_MATRIX):
        size = f"{rows} rows x {columns} columns, the readers drew on {LIDC_MATRIX} x {LIDC_MATRIX}"
        raise DataError(f"{name}: the series has {size}: it was cut or resampled; {_REMEDY}")
    _, between_rows, between_columns = ct.spacing_mm
    if max(abs(between_rows - nodule.pixel_spacing_mm), abs(between_columns - nodule.pixel_spacing_mm)) > SPACING_MM:
        size = f"{between_rows:.4f} x {between_columns:.4f} mm, the annotations say {nodule.pixel_spacing_mm:.4f} mm"
        raise DataError(f"{name}: pixel spacing is {size}: the series was resampled; {_REMEDY}")
    axial = abs(ct.affine[2, :2]).max() <= 1e-3 * between_columns
    if not axial or np.cross(ct.affine[:3, 0], ct.affine[:3, 1])[2] < 0:
        what = "mirrored" if axial else "not axial"
        raise DataError(f"{name}: the stored images are {what}, the readers' were axial as acquired; {_REMEDY}")


def contour_slices(ct: CTVolume, nodule: Nodule) -> list[list[int]]:
    """For each reader, the index of the stored slice of each contour.

    By SOPInstanceUID where the annotations give it and the series has it, else by z. Raises DataError where a contour's
    slice is not in the series: the nodule is cut off.
    """
    by_uid = {uid: k for k, uid in enumerate(ct.sop_instance_uids)}
    missing: set[float] = set()
    by_reader: list[list[int]] = []
    for reading in nodule.readers:
        places = [_slice_of(ct, contour, by_uid) for contour in reading.contours]
        missing |= {contour.z_mm for contour, k in zip(reading.contours, places, strict=True) if k is None}
        by_reader.append([k for k in places if k is not None])
    if missing:
        zs = [f"{z:g}" for z in sorted(missing)]
        words = ", ".join(zs) if len(zs) <= _LISTED else f"{zs[0]} to {zs[-1]} ({len(zs)} slices)"
        cut = f"nodule is cut off: slices z={words} of reader contours are not in the series"
        raise DataError(f"{nodule.nodule_id}: {cut}")
    return by_reader


def _slice_of(ct: CTVolume, contour: Contour, by_uid: dict[str, int]) -> int | None:
    if contour.sop_uid is not None and contour.sop_uid in by_uid:
        return by_uid[contour.sop_uid]
    k = int(np.abs(ct.slice_z_mm - contour.z_mm).argmin())
    return k if abs(ct.slice_z_mm[k] - contour.z_mm) <= SLICE_MM else None
