"""Pictures of a nodule's page: planes of the crop, outlines of the readers, one panel per output, view and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.imaging.planes import VIEWS
from lidc_xai.reporting.contours import outline_path
from lidc_xai.reporting.facts import UNITS
from lidc_xai.reporting.geometry import DisplayPlane, display_plane
from lidc_xai.reporting.pictures import ct_picture, map_picture

if TYPE_CHECKING:
    from lidc_xai.imaging.nodule_crop import NoduleCrop
    from lidc_xai.nodule_maps import NoduleMaps

BAR_MM = 10.0


@dataclass(frozen=True)
class PlanePicture:
    """A plane with all that is drawn over it; lengths in mm of the displayed plane."""

    plane: DisplayPlane
    ct: str
    window: str
    readers: list[str]
    consensus: str

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
    """One map over one plane. ``own_limit``: the largest absolute score of this output's panels."""

    output: str
    view: str
    shared: str
    own: str


def crop_pictures(
    crop: NoduleCrop, indices: Mapping[str, int] | None = None, window: str = "lung", pixels: int = 256
) -> list[PlanePicture]:
    """Planes of a crop in the three views (its middle, or ``indices`` per view) with the readers' outlines."""
    found = []
    for view in VIEWS:
        plane = display_plane(crop.ct, crop.affine, view, (indices or {}).get(view))
        found.append(
            PlanePicture(
                plane=plane,
                ct=ct_picture(plane.image, plane.spacing_mm, window, pixels),
                window=window,
                readers=[_outline(mask, crop, plane) for mask in _masks(crop)],
                consensus="" if crop.consensus is None else _outline(crop.consensus, crop, plane),
            )
        )
    return found


def map_panels(
    maps: NoduleMaps, pictures: Sequence[PlanePicture], limits: Mapping[str, float]
) -> dict[str, list[Panel]]:
    """Panels of one method: output -> one panel per displayed view.

    ``limits``: the shared limit per unit (``UNITS``); beside it every output is drawn on its own limit.
    """
    places = {view: place for place, view in reversed(list(enumerate(maps.views)))}
    panels: dict[str, list[Panel]] = {}
    for column, output in enumerate(maps.output_names):
        if output not in UNITS:
            continue
        own = float(np.abs(maps.relevance[:, column]).max())
        row = []
        for picture in pictures:
            place = places.get(picture.plane.view)
            if place is None:
                continue
            scores = picture.plane.orient(maps.relevance[place, column])
            shared = map_picture(scores, limits[UNITS[output]], picture.plane.size_mm)
            row.append(Panel(output, picture.plane.view, shared, map_picture(scores, own, picture.plane.size_mm)))
        panels[output] = row
    return panels


def evaluated_indices(maps: Sequence[NoduleMaps]) -> dict[str, int]:
    """Slice index per view at which the first method was evaluated."""
    found: dict[str, int] = {}
    for item in maps[:1]:
        for view, index in zip(item.views, item.indices, strict=True):
            found.setdefault(view, int(index))
    return found


def thumbnail(crop: NoduleCrop, pixels: int = 96) -> PlanePicture:
    """The axial middle plane, small."""
    plane = display_plane(crop.ct, crop.affine, "axial")
    consensus = "" if crop.consensus is None else _outline(crop.consensus, crop, plane)
    return PlanePicture(plane, ct_picture(plane.image, plane.spacing_mm, "lung", pixels), "lung", [], consensus)


def _masks(crop: NoduleCrop) -> list[Any]:
    return [] if crop.reader_masks is None else list(crop.reader_masks)


def _outline(mask: Any, crop: NoduleCrop, plane: DisplayPlane) -> str:
    cut = display_plane(np.asarray(mask, dtype=np.float32), crop.affine, plane.view, plane.index)
    return outline_path(cut.image > 0.5, plane.spacing_mm)
