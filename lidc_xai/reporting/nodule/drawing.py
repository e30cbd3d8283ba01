"""Pictures of a nodule's page: planes of the crop, outlines of the readers, one panel per output, view and method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.imaging.planes import CUT_AXIS, VIEWS, crop_plane
from lidc_xai.nodules.similar import SimilarNodule, differs_in_words
from lidc_xai.reporting.nodule.facts import UNITS
from lidc_xai.reporting.nodule.geometry import DisplayPlane, turned_for_display
from lidc_xai.reporting.nodule.outlines import outline_path
from lidc_xai.reporting.pictures import ct_picture, map_picture

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps


@dataclass(frozen=True)
class PlanePicture:
    """A plane with all that is drawn over it; lengths in mm of the displayed plane."""

    plane: DisplayPlane
    ct: str
    window: str
    readers: list[str]
    consensus: str
    box: str = ""

    @property
    def width(self) -> float:
        return self.plane.size_mm[1]

    @property
    def height(self) -> float:
        return self.plane.size_mm[0]

    @property
    def line(self) -> float:
        """A thin line: the same share of the picture whatever its extent."""
        return max(self.width, self.height) / 230

    @property
    def title(self) -> str:
        return self.plane.view.capitalize()


@dataclass(frozen=True)
class Panel:
    """One map over one plane."""

    output: str
    over: PlanePicture
    picture: str

    @property
    def view(self) -> str:
        return self.over.plane.view


def crop_pictures(
    crop: NoduleCrop,
    indices: Mapping[str, int] | None = None,
    window: str = "lung",
    pixels: int = 256,
    inner: NoduleCrop | None = None,
    views: Sequence[str] = VIEWS,
) -> list[PlanePicture]:
    """Planes of a crop in ``views`` (its middle, or ``indices`` per view) with the readers' outlines.

    ``inner``: a smaller crop, whose border is drawn as a box; planes without an index go through its middle.
    """
    pictures = []
    for view in views:
        index = (indices or {}).get(view)
        if inner is not None and index is None:
            index = _index_at(crop, view, inner.centre_mm)
        plane = turned_for_display(crop_plane(crop, view, index))
        pictures.append(
            PlanePicture(
                plane=plane,
                ct=ct_picture(plane.image, plane.spacing_mm, window, pixels),
                window=window,
                readers=[_outline(crop, plane, reader) for reader in range(_readers(crop))],
                consensus="" if crop.consensus is None else _outline(crop, plane, "consensus"),
                box="" if inner is None else _box(inner, plane),
            )
        )
    return pictures


def in_window(
    pictures: Sequence[PlanePicture], name: str, limits: tuple[float, float] | None = None, pixels: int = 256
) -> list[PlanePicture]:
    """The same planes and outlines in another window: a name of ``WINDOWS``, or ``limits`` in HU under that name."""
    return [
        replace(one, ct=ct_picture(one.plane.image, one.plane.spacing_mm, limits or name, pixels), window=name)
        for one in pictures
    ]


def map_panels(
    maps: NoduleMaps,
    pictures: Sequence[PlanePicture],
    limits: Mapping[str, float],
    outputs: Collection[str] = tuple(UNITS),
) -> dict[str, list[Panel]]:
    """Panels of one method: output -> one panel per displayed view. ``limits``: score of full colour per output."""
    places = {view: place for place, view in reversed(list(enumerate(maps.views)))}
    panels: dict[str, list[Panel]] = {}
    for column, output in enumerate(maps.output_names):
        if output not in UNITS or output not in outputs:
            continue
        row = []
        for picture in pictures:
            place = places.get(picture.plane.view)
            if place is None:
                continue
            scores = picture.plane.orient(maps.relevance[place, column])
            stable = None if maps.repeatability is None else maps.repeatability.stable
            coloured = None if stable is None else picture.plane.orient(stable[place, column])
            drawn = map_picture(scores, limits[output], picture.plane.size_mm, stable=coloured)
            row.append(Panel(output, picture, drawn))
        panels[output] = row
    return panels


def evaluated_indices(maps: NoduleMaps | None) -> dict[str, int]:
    """Slice index per view at which a method was evaluated; empty without maps."""
    indices: dict[str, int] = {}
    if maps is not None:
        for view, index in zip(maps.views, maps.indices, strict=True):
            indices.setdefault(view, int(index))
    return indices


def largest_indices(crop: NoduleCrop) -> dict[str, int]:
    """Slice index per view on which the consensus is largest (of equals, the one nearest the middle); empty without."""
    if crop.consensus is None or not crop.consensus.any():
        return {}
    indices = {}
    for view, axis in CUT_AXIS.items():
        area = np.moveaxis(np.asarray(crop.consensus, bool), axis, 0).sum(axis=(1, 2))
        best = np.flatnonzero(area == area.max())
        indices[view] = int(best[np.abs(best - len(area) // 2).argmin()])
    return indices


def thumbnail(crop: NoduleCrop, pixels: int = 96) -> PlanePicture:
    """The axial plane of the largest outline, small."""
    plane = turned_for_display(crop_plane(crop, "axial", largest_indices(crop).get("axial")))
    consensus = "" if crop.consensus is None else _outline(crop, plane, "consensus")
    return PlanePicture(plane, ct_picture(plane.image, plane.spacing_mm, "lung", pixels), "lung", [], consensus)


def drawn_neighbours(
    similar: Mapping[str, Sequence[SimilarNodule]], reference: CropStore
) -> dict[str, list[dict[str, Any]]]:
    """Each neighbour with its picture (of the user's own store; each is drawn once) and its differences in words."""
    names = {one["nodule_id"] for row in similar.values() for one in row}
    drawn = {name: thumbnail(reference.load(name)) for name in sorted(names)}
    pictures = {
        name: {"ct": one.ct, "consensus": one.consensus, "width": one.width, "height": one.height}
        for name, one in drawn.items()
    }
    return {
        nodule_id: [{**one, "words": differs_in_words(one), "picture": pictures[one["nodule_id"]]} for one in row]
        for nodule_id, row in similar.items()
    }


def _readers(crop: NoduleCrop) -> int:
    return 0 if crop.reader_masks is None else len(crop.reader_masks)


def _outline(crop: NoduleCrop, plane: DisplayPlane, of: str | int) -> str:
    mask = crop_plane(crop, plane.view, plane.index, of).image
    return outline_path(plane.orient(mask), plane.spacing_mm)


def _index_at(crop: NoduleCrop, view: str, point_mm: np.ndarray) -> int:
    """Index of the plane of ``view`` that holds a point, clipped to the crop."""
    ijk = np.linalg.solve(crop.affine, [*point_mm, 1.0])[:3]
    axis = CUT_AXIS[view]
    return int(np.clip(np.floor(ijk[2 - axis] + 0.5), 0, crop.ct.shape[axis] - 1))


def _box(inner: NoduleCrop, plane: DisplayPlane) -> str:
    """Where the border of ``inner`` cuts the plane, as a rectangle (their axes are parallel)."""
    depth, height, width = inner.ct.shape
    corners = np.array([[-0.5, -0.5, -0.5, 1], [width - 0.5, height - 0.5, depth - 0.5, 1]]).T
    pixels = np.linalg.solve(plane.affine, inner.affine @ corners)[:2] + 0.5
    (left, right), (top, bottom) = (np.sort(pixels[axis]) * plane.spacing_mm[1 - axis] for axis in (0, 1))
    return f"M{left:.2f} {top:.2f}H{right:.2f}V{bottom:.2f}H{left:.2f}Z"
