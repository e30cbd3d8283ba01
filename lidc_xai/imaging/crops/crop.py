"""``crop_nodule``: an isotropic box of CT around a nodule or a point, with the readers' masks where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lidc_xai.annotations.nodule import Contour, Nodule
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.contours import GridBox, consensus_mask, contours_box, contours_mask, mask_bounds
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.crops.resample import ORDERS, CropGrid, resample_mask, sample_ct
from lidc_xai.imaging.ct.volume import AIR_HU, CTVolume


def crop_nodule(
    ct: CTVolume,
    nodule_or_point_mm: Nodule | ArrayLike,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    *,
    interpolation: str = "linear",
    padding_hu: float = AIR_HU,
    nodule_id: str = "",
) -> NoduleCrop:
    """Cut a cube of ``size_mm`` (isotropic ``spacing_mm``) out of ``ct`` by physical coordinates.

    For a :class:`Nodule` the cube's centre is the middle of the 50 % consensus' bounding box (the mean of the readers'
    centroids where the consensus is empty) and the crop has ``reader_masks`` and ``consensus``; for a point (3,) in LPS
    mm it has none. With an even number of voxels the centre lies between the two middle ones. The crop's axes are the
    scan's own, in the order and sense closest to LPS. ``interpolation``: "linear" or "bspline".

    Outside the scan the crop is ``padding_hu`` and ``padded`` is set; ``larger_than_box`` where the readers' outlines
    together are larger than the box on some axis. Raises UsageError for a wrong size or option; DataError where the CT
    is not the nodule's series, where slices of its contours are missing, where the point lies outside the scan, or
    where slices are missing inside the box.

    >>> crop = crop_nodule(ct, nodule)
    >>> crop.ct.shape, crop.reader_masks.shape, crop.padded
    ((32, 32, 32), (4, 32, 32, 32), False)
    >>> crop_nodule(ct, crop.centre_mm, size_mm=24.0).consensus is None
    True
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    return options.cut(ct, nodule_or_point_mm, nodule_id)


@dataclass(frozen=True)
class CropOptions:
    """How crops are cut; part of a store's rule. UsageError where the side is no whole number of voxels, or where the
    interpolation is unknown.
    """

    size_mm: float = 32.0
    spacing_mm: float = 1.0
    interpolation: str = "linear"
    padding_hu: float = AIR_HU

    def __post_init__(self) -> None:
        size, step = self.size_mm, self.spacing_mm
        if not (size > 0 and step > 0):
            raise UsageError(f"size_mm ({size}) and spacing_mm ({step}) must be positive")
        if self.count < 1 or abs(self.count * step - size) > 1e-6 * size:
            raise UsageError(f"size_mm ({size}) must be a whole number of voxels of spacing_mm ({step})")
        if self.interpolation not in ORDERS:
            raise UsageError(f"interpolation {self.interpolation!r} is not known; choose one of {', '.join(ORDERS)}")

    @property
    def count(self) -> int:
        """Voxels along one side of the cube."""
        return round(self.size_mm / self.spacing_mm)

    def rule(self) -> dict[str, object]:
        """The rule in words, for the store's fingerprint."""
        return {
            "interpolation": self.interpolation,
            "padding_hu": self.padding_hu,
            "centre": "middle of the bounding box of the 50 % consensus",
            "masks": "strictly inside the outline; signed distance at the level that keeps the volume",
        }

    def cut(self, ct: CTVolume, target: Nodule | ArrayLike, nodule_id: str = "") -> NoduleCrop:
        """``crop_nodule`` by this rule."""
        if isinstance(target, Nodule):
            masks, box = native_masks(ct, target)
            centre = consensus_centre(ct, target, consensus_mask(masks), box)
            return self.cut_marked(ct, masks, box, centre, target.nodule_id)
        centre = np.asarray(target, dtype=np.float64)
        _check_point(ct, centre)
        return self._cut_at(ct, centre, nodule_id)[0]

    def cut_marked(
        self, ct: CTVolume, masks: NDArray[np.bool_], box: GridBox, centre_mm: NDArray[np.float64], nodule_id: str
    ) -> NoduleCrop:
        """The crop with readers' masks (R, z, y, x) that are known over ``box`` of the stored grid."""
        consensus = consensus_mask(masks)
        crop, grid = self._cut_at(ct, centre_mm, nodule_id)
        crop.reader_masks = np.stack([resample_mask(ct, mask, box, grid) for mask in masks])
        crop.consensus = resample_mask(ct, consensus, box, grid)
        extent = outlines_extent_mm(ct, box)
        crop.larger_than_box = bool(extent.max() > self.size_mm)
        if crop.larger_than_box:
            crop.issues.append(
                f"the outlines reach over {extent.max():.1f} mm: larger than the {self.size_mm:g} mm box"
            )
        if not consensus.any():
            crop.issues.append("no voxel is marked by half of the readers: centred on their centroids")
        for number, mask in enumerate(masks, start=1):
            if not mask.any():
                crop.issues.append(f"reader {number}'s outline encloses no pixel")
        return crop

    def _cut_at(self, ct: CTVolume, centre: NDArray[np.float64], nodule_id: str) -> tuple[NoduleCrop, CropGrid]:
        grid = crop_grid(ct, centre, self.count, self.spacing_mm)
        name = nodule_id or f"point ({', '.join(f'{value:.1f}' for value in centre)}) mm"
        _check_gaps(ct, grid, name)
        values, outside = sample_ct(ct, grid, self.interpolation, self.padding_hu)
        if outside.all():
            raise DataError(f"{name}: the whole box lies outside the scan; is the place in this scan's coordinates?")
        issues = [issue for issue in ct.issues if issue not in ct.outside_view]
        share = float(outside.mean())
        if share:
            issues.append(f"{share:.1%} of the box lies outside the scan: padded with {self.padding_hu:.0f} HU")
        crop = NoduleCrop(
            ct=values, affine=grid.affine, issues=issues, nodule_id=nodule_id, series_uid=ct.series_uid,
            padded=share > 0, padded_share=share,
        )  # fmt: skip
        return crop, grid


def native_masks(ct: CTVolume, nodule: Nodule) -> tuple[NDArray[np.bool_], GridBox]:
    """Each reader's mask (R, z, y, x) on the stored pixel grid, over the box that holds all outlines.

    Raises DataError where ``ct`` is not the series of the nodule or lacks slices of its contours.
    """
    check_series(ct, nodule)
    slices = contour_slices(ct, nodule)
    contours = [contour for reading in nodule.readers for contour in reading.contours]
    box = contours_box(contours, [k for places in slices for k in places])
    rows, columns = ct.stored.shape[1:]
    if min(box.low) < 0 or box.high[0] >= columns or box.high[1] >= rows:
        raise DataError(
            f"{nodule.nodule_id}: contours reach pixel {box.high[:2]}, outside of {columns} x {rows} pixels"
        )
    pairs = zip(nodule.readers, slices, strict=True)
    return np.stack([contours_mask(reading.contours, places, box) for reading, places in pairs]), box


def outlines_extent_mm(ct: CTVolume, box: GridBox) -> NDArray[np.float64]:
    """(3,) mm along columns, rows and slices of the box around all outlines, its outer voxels included."""
    between_slices, between_rows, between_columns = ct.spacing_mm
    depth = ct.positions_mm[box.high[2]] - ct.positions_mm[box.low[2]] + between_slices
    width, height = (box.high[axis] - box.low[axis] + 1 for axis in (0, 1))
    return np.array([width * between_columns, height * between_rows, depth])


def consensus_centre(ct: CTVolume, nodule: Nodule, consensus: NDArray[np.bool_], box: GridBox) -> NDArray[np.float64]:
    """LPS mm (3,) of the middle of the consensus' bounding box, or of the readers' mean centroid without consensus."""
    bounds = mask_bounds(consensus)
    if bounds is None:
        i, j, _ = nodule.centroid
        k = np.interp(nodule.centroid_z_mm, ct.slice_z_mm, np.arange(len(ct.slice_z_mm)))
        return ct.stored_index_to_mm(np.array([i, j, k]))
    ends = ct.stored_index_to_mm(np.array([bound[::-1] for bound in bounds]) + np.array(box.low))
    return ends.mean(axis=0)


def crop_grid(ct: CTVolume, centre_mm: NDArray[np.float64], count: int, spacing_mm: float) -> CropGrid:
    """A cube of ``count``³ voxels around ``centre_mm`` along the scan's axes, ordered and directed as LPS."""
    normal = ct.normal
    row = ct.affine[:3, 0] / np.linalg.norm(ct.affine[:3, 0])
    axes = np.stack([row, np.cross(normal, row), normal], axis=1)
    best = max(permutations(range(3)), key=lambda order: sum(abs(axes[world, order[world]]) for world in range(3)))
    axes = axes[:, best]
    axes = axes * np.where(np.diag(axes) < 0, -1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ np.full(3, (count - 1) / 2)
    return CropGrid(affine, (count, count, count))


def _check_point(ct: CTVolume, point: NDArray[np.float64]) -> None:
    if point.shape != (3,) or not np.isfinite(point).all():
        raise UsageError(f"a point is three numbers in LPS mm (x, y, z); got {point.tolist()}")
    if _in_scan(ct, point):
        return
    flipped = point * (-1, -1, 1)
    hint = "; as RAS mm it would lie inside: negate x and y" if _in_scan(ct, flipped) else ""
    low, high = _extent(ct)
    spans = ", ".join(f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("xyz", low, high, strict=True))
    words = ", ".join(f"{value:g}" for value in point)
    raise DataError(f"point ({words}) LPS mm lies outside the scan ({spans} mm){hint}")


def _in_scan(ct: CTVolume, point: NDArray[np.float64]) -> bool:
    index = ct.to_stored_index(point)
    return bool(((index >= -0.5) & (index <= np.array(ct.stored.shape[::-1]) - 0.5)).all())


def _extent(ct: CTVolume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ends = np.array(ct.stored.shape[::-1]) - 1
    corners = ct.stored_index_to_mm(np.array(list(np.ndindex(2, 2, 2))) * ends.astype(np.float64))
    return corners.min(axis=0), corners.max(axis=0)


def _check_gaps(ct: CTVolume, grid: CropGrid, name: str) -> None:
    if not ct.gaps:
        return
    along = grid.points() @ ct.normal
    low, high = float(along.min()), float(along.max())
    for start, stop in ct.gaps:
        if start < high and stop > low:
            where = f"between {start:.2f} and {stop:.2f} mm along the scan"
            left_out = "".join(f"; {issue}" for issue in ct.issues if issue.endswith("left out"))
            raise DataError(f"{name}: slices are missing {where}, inside the box; complete the series{left_out}")


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
