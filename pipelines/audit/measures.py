"""What an edit is meant to move, measured on a crop: the control that an edit did what its name says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.simulate.edits.site import Site, site_of
from lidc_xai.simulate.grid import Floats

CALCIUM_HU = 200.0
STRANDS_FROM_MM, STRANDS_TO_MM = 1.5, 8.0

OWN_MEASURE = {
    "remove": ("contrast_hu", -1),
    "diameter": ("diameter_mm", 1),
    "calcification": ("calcium_mm3", 1),
    "margin": ("rim_slope", -1),
    "spiculation": ("strands_mm3", 1),
    "lobulation": ("solidity", -1),
    "texture": ("body_hu", -1),
    "sphericity": ("elongation", 1),
    "subtlety": ("contrast_hu", -1),
}
"""Edit -> the measure that it moves, and the direction in which a rising dose moves it."""


def edit_measures(crop: NoduleCrop, site: Site | None = None) -> dict[str, float]:
    """The measures of :data:`OWN_MEASURE` on a crop with readers' masks.

    diameter_mm: of the sphere with the consensus' volume. calcium_mm3: volume above 200 HU inside it. rim_slope:
    steepest fall of the contrast across the rim, HU per mm. strands_mm3: soft tissue 1.5 to 8 mm outside the rim.
    solidity: volume over that of the convex hull. body_hu: median of the inner half. elongation: long over short axis
    of the axial outline. contrast_hu: mean of the body over the lung's level. ``site``: where the body, its rim and the
    lung lie, of the crop before an edit that does not move the rim (None: of ``crop`` itself).

    >>> sorted(edit_measures(crop))[:3]
    ['body_hu', 'calcium_mm3', 'contrast_hu']
    """
    own = site_of(crop) if site is None else site
    ct = crop.ct[own.block].astype(np.float64)
    body = own.body
    volume = own.spacing_mm**3
    deep = body & (own.distance < 0.5 * float(own.distance.min()))
    ring = (own.distance > STRANDS_FROM_MM) & (own.distance < STRANDS_TO_MM)
    full = max(own.rim_hu - float(own.level[body].mean()), 1.0)
    return {
        "diameter_mm": float((6 * body.sum() * volume / np.pi) ** (1 / 3)),
        "calcium_mm3": float((body & (ct > CALCIUM_HU)).sum() * volume),
        "rim_slope": _rim_slope(ct - own.level, own.distance),
        "strands_mm3": float(np.clip((ct - own.level)[ring] / full, 0, 1).sum() * volume),
        "solidity": solidity(body),
        "body_hu": float(np.median(ct[deep])),
        "elongation": _elongation(body),
        "contrast_hu": float((ct - own.level)[body].mean()),
    }


def solidity(mask: NDArray[np.bool_]) -> float:
    """Share of the convex hull of a mask's voxels (with their corners) that is the mask."""
    corners = np.array([(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    shell = mask & ~ndimage.binary_erosion(mask)  # what lies inside is no corner of the hull
    points = (np.argwhere(shell)[:, None] + corners).reshape(-1, 3)
    return float(mask.sum() / ConvexHull(np.unique(points, axis=0)).volume)


def _rim_slope(contrast: Floats, distance: Floats) -> float:
    """Steepest fall of the mean profile by distance within 1 mm of the rim; NaN where the nodule has no voxel 2 mm
    inside it. (Its height over this slope, the width of the edge, has no meaning where a blur leaves a small nodule
    hardly any height.)"""
    rings = [np.abs(distance - middle) <= 0.75 for middle in np.arange(-2.0, 2.01, 1.0)]
    profile = np.array([contrast[ring].mean() if ring.any() else np.nan for ring in rings])
    return float((profile[:-2] - profile[2:]).max()) / 2


def _elongation(mask: NDArray[np.bool_]) -> float:
    values = np.linalg.eigvalsh(np.cov(np.argwhere(mask)[:, 1:].T) + np.eye(2) / 12)
    return float(np.sqrt(values[1] / values[0]))
