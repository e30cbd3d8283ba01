"""The nodule itself: density from texture, edge from margin, foci from the calcification code, spicules.

Every part is known as a share of each voxel, and that share is also the cause mask of its biomarker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.simulate.anatomy.tubes import tube_share
from lidc_xai.simulate.grid import Floats, Grid, stream
from lidc_xai.simulate.nodule.expression import Expression
from lidc_xai.simulate.nodule.foci import calcified_share
from lidc_xai.simulate.nodule.outline import Outline
from lidc_xai.simulate.nodule.spicules import spicule_tubes

_STEPS = (1, 2, 3, 4, 5)
BODY_HU = (-630, -560, -480, -260, 35)
"""Density of the body by texture, 1 (ground-glass) to 5 (solid)."""
CORE = (0.0, 0.25, 0.55, 0.8, 1.0)
"""Depth of the solid core as a share of the nodule's, by texture."""
EDGE_MM = (3.6, 2.5, 1.6, 0.9, 0.4)
"""Width of the body's edge by margin, 1 (poorly defined) to 5 (sharp)."""
CONTRAST = (0.72, 1.0)
"""Share of the full contrast to the lung by subtlety, 1 to 5."""
INSIDE_HU = {2: 8.0, 3: -85.0, 4: -900.0}
"""Density of the middle by internal structure: fluid, fat, air (1, soft tissue, is the body's own)."""
SPICULE_HU = -10.0
RIM_MM = 1.25
"""The margin's cause reaches this far to both sides of the surface, further where the edge is wider."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A nodule on a window of the volume: ``box`` where it lies, all arrays (z, y, x) of that window.

    ``opacity``: share of what lay there that it replaces. ``hu``: opacity times density. ``solid``: share through which
    no vessel shows. ``causes``: biomarker -> bool mask, only those that some voxels carry.
    """

    box: tuple[slice, slice, slice]
    opacity: Floats
    hu: Floats
    solid: Floats
    causes: dict[str, NDArray[np.bool_]]


def draw_nodule(
    grid: Grid, outline: Outline, look: Expression, lung_hu: float, seed: int, name: str, off: frozenset[str]
) -> Drawn | None:
    """Draw one nodule on ``grid``; None where it does not meet it. ``off``: biomarkers that get no cause mask."""
    spicules = spicule_tubes(outline, look.spiculation, stream(seed, name, "spicules"))
    reach = 4.0
    low, high = outline.low - reach, outline.high + reach
    if len(spicules):
        low, high = np.minimum(low, spicules.low.min(axis=0)), np.maximum(high, spicules.high.max(axis=0))
    box = grid.box(low, high)
    if box is None:
        return None
    part = grid.part(*box)
    edge = min(float(np.interp(look.margin, _STEPS, EDGE_MM)), 0.9 * outline.radius_mm + 0.4)
    sums = {key: np.zeros(part.shape, np.float32) for key in ("body", "hu", "solid", "calcium", "rim", "inside")}
    offsets = part.sub_offsets_mm
    for offset in offsets:
        for key, value in _layer(part, outline, look, edge, lung_hu, offset, seed, name).items():
            sums[key] += value / len(offsets)
    thorns = np.minimum(tube_share(part, spicules), 1 - sums["body"]) if len(spicules) else np.zeros_like(sums["hu"])
    spicule_hu = lung_hu + (SPICULE_HU - lung_hu) * _contrast(look)
    causes = {
        "texture": sums["inside"] > 0.5,
        "margin": sums["rim"] > 0.5,
        "calcification": sums["calcium"] > 0.2,
        "spiculation": (thorns > 0.08) & (sums["inside"] < 0.5),
    }
    return Drawn(
        box,
        sums["body"] + thorns,
        sums["hu"] + thorns * spicule_hu,
        sums["solid"] + thorns,
        {key: mask for key, mask in causes.items() if key not in off and mask.any()},
    )


def _contrast(look: Expression) -> float:
    return float(np.interp(look.subtlety, (1, 5), CONTRAST))


def _layer(
    part: Grid, outline: Outline, look: Expression, edge: float, lung_hu: float, offset: float, seed: int, name: str
) -> dict[str, Floats]:
    """All shares at one height inside each slice."""
    z = part.z_mm + offset
    distance = outline.distance(part, z)
    dx = part.x_mm[None, None, :] - outline.centre_mm[0]
    dy = part.y_mm[None, :, None] - outline.centre_mm[1]
    dz = (z - outline.centre_mm[2])[:, None, None]
    rng = stream(seed, name, "body")
    rough = lattice_noise(dx, dy, dz, 2.2, rng)
    ragged = distance + 0.35 * (edge - 0.4) * rough
    body = _step(-ragged / edge)
    depth, tilt = outline.radius_mm, rng.normal(size=3) * 0.3
    core_depth = (1 - float(np.interp(look.texture, _STEPS, CORE))) * depth
    toward = (tilt[0] * dx + tilt[1] * dy + tilt[2] * dz) * core_depth / max(depth, 1e-6)
    core = _step(-(distance + core_depth + toward + 0.5 * rough) / 1.2) if look.texture > 1.2 else np.zeros_like(body)
    core = core if core_depth > 0.05 * depth else np.ones_like(body)
    solid_hu = float(rng.uniform(20, 50))
    body_hu = float(np.interp(look.texture, _STEPS, BODY_HU)) + float(rng.normal(0, 20)) * (look.texture < 4.5)
    hu = body_hu + core * (solid_hu - body_hu) + rough * (12 + 30 * (1 - core))
    if look.internal_structure in INSIDE_HU:
        hu += _step(-(distance + 0.4 * depth) / 0.8) * (INSIDE_HU[look.internal_structure] - hu)
    hu = lung_hu + (hu - lung_hu) * _contrast(look)
    calcium, calcium_hu = calcified_share(distance, dx, dy, dz, depth, look, stream(seed, name, "calcium"))
    hu += calcium * (calcium_hu - hu)
    share = np.maximum(body, calcium)
    return {
        "body": share,
        "hu": share * hu,
        "solid": share * np.maximum(core, calcium),
        "calcium": calcium,
        "rim": (np.abs(distance) <= max(RIM_MM, edge / 2)).astype(np.float32),
        "inside": (distance < 0).astype(np.float32),
    }


def _step(t: Floats) -> Floats:
    """0 below -1/2, 1 above 1/2, smooth between."""
    t = np.clip(t + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def lattice_noise(dx: Floats, dy: Floats, dz: Floats, pitch_mm: float, rng: np.random.Generator) -> Floats:
    """Smooth random field of about unit SD around a nodule, the same for the same stream on any grid."""
    n = 32
    lattice = rng.normal(size=(n, n, n)).astype(np.float32)
    shape = np.broadcast_shapes(dx.shape, dy.shape, dz.shape)
    at = [np.broadcast_to(d / pitch_mm + n / 2, shape) for d in (dz, dy, dx)]
    return 1.5 * map_coordinates(lattice, at, order=1, mode="grid-wrap", prefilter=False)
