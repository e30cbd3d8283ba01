"""The nodule itself: density from texture, edge from margin, foci from the calcification code, spicules.

Every part is known as a share of each voxel, and that share is also the cause mask of its biomarker. Calcified foci
follow LIDC's code: 1 popcorn, 2 laminated, 3 solid, 4 non-central, 5 central, 6 absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lidc_xai.ratings import CALCIFICATION_ABSENT
from lidc_xai.simulate.anatomy.tubes import Tubes, tube_share
from lidc_xai.simulate.grid import IMAGE_PIXELS, Floats, Grid, stream
from lidc_xai.simulate.nodule.expression import Expression
from lidc_xai.simulate.nodule.outline import Outline

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
POPCORN, LAMINATED, SOLID, NON_CENTRAL, CENTRAL = 1, 2, 3, 4, 5
SOFT_MM = 0.5
MOST = 48
_RATING = (1.0, 1.4, 2.0, 3.0, 4.0, 5.0)
_NUMBER = (0.0, 2.0, 6.0, 13.0, 20.0, 28.0)
_LENGTH_MM = (3.0, 3.5, 4.5, 6.5, 8.5, 11.0)


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


def calcified_share(
    distance: Floats, dx: Floats, dy: Floats, dz: Floats, depth: float, look: Expression, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Share of each voxel that is calcium, and its density in HU.

    ``distance``: signed distance to the nodule's surface in mm; ``dx``, ``dy``, ``dz``: mm from its middle; ``depth``:
    of its deepest point. Calcium that only some readers saw is less dense.
    """
    density = float(rng.uniform(380, 850))
    if look.calcification == CALCIFICATION_ABSENT:
        return np.zeros_like(distance), density
    share = _foci(distance, dx, dy, dz, depth, look.calcification, rng)
    return np.minimum(share, inside_share(distance + 0.2)), 40 + (density - 40) * (0.4 + 0.6 * look.calcified)


def _foci(
    distance: Floats, dx: Floats, dy: Floats, dz: Floats, depth: float, code: int, rng: np.random.Generator
) -> Floats:
    if code == SOLID:
        return inside_share(distance + 0.2 * depth)
    if code == LAMINATED:
        rings = (0.35,) if depth < 3 else (0.25, 0.65)
        return inside_share(
            np.minimum.reduce([np.abs(distance + ring * depth) - max(0.45, 0.07 * depth) for ring in rings])
        )
    if code == CENTRAL:
        return _ball(dx, dy, dz, np.zeros(3), float(np.clip(0.45 * depth, 1.1, 7)))
    if code == NON_CENTRAL:
        return _ball(dx, dy, dz, _direction(rng) * 0.5 * depth, float(np.clip(0.36 * depth, 1.0, 5)))
    blobs = [
        _ball(dx, dy, dz, _direction(rng) * rng.uniform(0.2, 0.85) * depth,
              float(np.clip(rng.uniform(0.15, 0.3) * depth, 0.75, 3.5)))
        for _ in range(int(rng.integers(8, 14)))
    ]  # fmt: skip
    return np.maximum.reduce(blobs)


def _direction(rng: np.random.Generator) -> Floats:
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction)


def _ball(dx: Floats, dy: Floats, dz: Floats, centre: Floats, radius: float) -> Floats:
    away = np.sqrt((dx - centre[0]) ** 2 + (dy - centre[1]) ** 2 + (dz - centre[2]) ** 2)
    return inside_share(away - radius)


def inside_share(distance: Floats) -> Floats:
    """Share of a voxel inside a surface at signed ``distance`` mm (negative inside)."""
    return np.clip(0.5 - distance / SOFT_MM, 0, 1)


def spicule_tubes(outline: Outline, spiculation: float, rng: np.random.Generator) -> Tubes:
    """The spicules of a nodule rated ``spiculation`` (1: none); their number and length grow with rating and size.

    All possible ones are drawn first and the wanted number taken, so that a change of rating adds or removes some and
    leaves the others where they are.
    """
    direction = rng.normal(size=(MOST, 3)) * (1, 1, 0.5)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    size = float(np.clip(outline.radius_mm / 4.5, 0.7, 1.6))
    length = np.interp(spiculation, _RATING, _LENGTH_MM) * size**0.5 * rng.uniform(0.5, 1.25, MOST)
    thick = rng.uniform(0.65, 1.15, MOST) * size**0.3
    bend = rng.normal(size=(MOST, 3)) * 0.15
    n = min(round(float(np.interp(spiculation, _RATING, _NUMBER)) * size), MOST)
    root = np.array([_surface(outline, d) for d in direction[:n]]).reshape(-1, 3)
    direction, length, thick, bend = direction[:n], length[:n, None], thick[:n], bend[:n]
    middle = root + 0.5 * length * direction
    tip = root + length * (direction + bend)
    return Tubes(
        np.concatenate([root - 0.8 * direction, middle]), np.concatenate([middle, tip]),
        np.concatenate([thick, 0.6 * thick]), np.concatenate([0.6 * thick, np.full(n, 0.3)]),
    )  # fmt: skip


def _surface(outline: Outline, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a ray from the middle leaves the nodule for the last time."""
    reach = np.linalg.norm(outline.high - outline.low) + 2
    steps = np.arange(0.0, reach, 0.4)
    points = outline.centre_mm + steps[:, None] * direction
    origin = -(IMAGE_PIXELS - 1) / 2 * outline.spacing_mm
    k = np.interp(points[:, 2], outline.z_mm, np.arange(len(outline.z_mm)))
    j = (points[:, 1] - origin) / outline.spacing_mm - outline.j0
    i = (points[:, 0] - origin) / outline.spacing_mm - outline.i0
    inside = map_coordinates(outline.planes, [k, j, i], order=1, mode="nearest") < 0
    inside &= (points[:, 2] > outline.z_mm[0]) & (points[:, 2] < outline.z_mm[-1])
    return points[np.flatnonzero(inside)[-1]] if inside.any() else outline.centre_mm
