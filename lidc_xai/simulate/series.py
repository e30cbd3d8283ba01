"""A simulated series: the chest, its nodules, blur and noise, as one CTVolume with the causes of every rating."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import UsageError
from lidc_xai.imaging.ct.volume import CTVolume, axial_volume
from lidc_xai.simulate.anatomy.chest import LUMEN, WALL, ChestSlice, Tissue, draw_tissue, render_chest
from lidc_xai.simulate.anatomy.lungs import Branches, branches
from lidc_xai.simulate.anatomy.tissues import Thorax, fit_thorax
from lidc_xai.simulate.anatomy.tubes import tube_share
from lidc_xai.simulate.grid import IMAGE_PIXELS, Floats, Grid, stream
from lidc_xai.simulate.nodule.expression import express, with_ratings
from lidc_xai.simulate.nodule.lesion import Drawn, draw_nodule
from lidc_xai.simulate.nodule.outline import Outline, nodule_outline
from lidc_xai.simulate.scanner import Scanner, blur, draw_scanner, noise

SCOPES = ("series", "full")
BRONCHUS_WALL_MM = 0.7
ABOVE_MM = np.array([0, 0, 25.0])
"""Vessels end up to this far above and below the slices."""
SLAB = 32
"""Slices that are rendered together."""


@dataclass(eq=False)
class CauseMasks(Mapping[str, dict[str, NDArray[np.bool_]]]):
    """nodule_id -> biomarker -> (z, y, x) bool on the volume's stored slices; kept as boxes, made whole when asked for.

    A biomarker without voxels of its own has no key: no calcium, no spicule; subtlety, sphericity, lobulation, diameter
    never have any.
    """

    shape: tuple[int, int, int]
    drawn: dict[str, Drawn] = field(default_factory=dict)

    def __getitem__(self, nodule_id: str) -> dict[str, NDArray[np.bool_]]:
        drawn = self.drawn[nodule_id]
        whole = {name: np.zeros(self.shape, bool) for name, mask in drawn.causes.items() if mask.any()}
        for name, mask in whole.items():
            mask[drawn.box] = drawn.causes[name]
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.drawn)

    def __len__(self) -> int:
        return len(self.drawn)


@dataclass(eq=False)
class SimulatedCT:
    """``volume``: HU, labelled simulated. ``causes``: nodule_id -> biomarker -> mask. ``nodules``: with the ratings
    that were drawn. ``ratings``: those that were set by hand, by nodule_id.

    >>> simulated.volume.array.ndim, simulated.volume.simulated
    (3, True)
    """

    volume: CTVolume
    causes: CauseMasks
    nodules: list[Nodule]
    ratings: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that is drawn of one scan, before it is put on voxels."""

    name: str
    seed: int
    thorax: Thorax
    tissue: Tissue
    scanner: Scanner
    branches: Branches
    nodules: list[Nodule]
    outlines: list[Outline]
    without: tuple[str, ...]
    switched_off: tuple[str, ...]


def simulate_ct(
    nodules: Sequence[Nodule],
    seed: int = 0,
    *,
    ratings: Mapping[str, Mapping[str, float]] | None = None,
    scope: str = "series",
    margin_mm: float = 22.0,
    without: Collection[str] = (),
    switched_off: Collection[str] = (),
) -> SimulatedCT:
    """A simulated chest CT with ``nodules`` (all of one scan) at their recorded places, 512 x 512 pixels a slice.

    ``ratings``: nodule_id -> rating -> value to draw instead of the readers' own. ``scope``: "series": the recorded
    slices that lie within ``margin_mm`` of a nodule and between them; "full": every recorded slice. ``without``: causes
    to take away while the ratings stay; ``switched_off``: biomarkers that are drawn the same whatever the rating (see
    :func:`~lidc_xai.simulate.nodule.expression.express`). The same seed gives the same CT.
    Raises UsageError where the nodules are of several scans or an option has no such value.

    >>> again = simulate_ct([nodule])      # the annotated nodule lies where the readers drew it
    >>> again.volume.array.shape == simulated.volume.array.shape
    True
    """
    if scope not in SCOPES:
        raise UsageError(f"scope={scope!r}: choose one of {', '.join(SCOPES)}")
    if not nodules or len({nodule.series_uid for nodule in nodules}) != 1:
        raise UsageError("simulate_ct takes one or more nodules of one scan; call it once per scan")
    chosen = {key: dict(values) for key, values in (ratings or {}).items()}
    rated = [with_ratings(nodule, chosen.get(nodule.nodule_id, {})) for nodule in nodules]
    outlines = [nodule_outline(nodule) for nodule in rated]
    margin = np.inf if scope == "full" else margin_mm
    first, last = min(o.z_mm[1] for o in outlines), max(o.z_mm[-2] for o in outlines)
    grid = whole_slices(rated[0], first - margin, last + margin)
    low, high = grid.corners_mm
    around = (low - ABOVE_MM, high + ABOVE_MM)
    scene = make_scene(rated, outlines, seed, rated[0].series_uid, *around, without, switched_off)
    array, drawn = render(scene, grid)
    return SimulatedCT(
        as_volume(rated[0], grid, array), CauseMasks(grid.shape, drawn), rated,
        {nodule.nodule_id: chosen.get(nodule.nodule_id, {}) for nodule in rated},
    )  # fmt: skip


def whole_slices(nodule: Nodule, low_mm: float, high_mm: float) -> Grid:
    """The recorded slices of the nodule's scan from ``low_mm`` to ``high_mm`` in z, with all their pixels."""
    z = np.unique(nodule.slice_positions_mm)
    inside = np.flatnonzero((z >= low_mm) & (z <= high_mm))
    return Grid(
        nodule.pixel_spacing_mm, nodule.slice_thickness_mm, z[inside], int(inside[0]), 0, 0, IMAGE_PIXELS, IMAGE_PIXELS
    )


def make_scene(
    nodules: list[Nodule], outlines: list[Outline], seed: int, name: str, low: NDArray, high: NDArray,
    without: Collection[str], switched_off: Collection[str],
) -> Scene:  # fmt: skip
    """Anatomy, densities, scanner and vessels of one case. ``name``: which random streams it draws from."""
    first = nodules[0]
    radii = [float(np.linalg.norm(o.high - o.low) / 3.5) for o in outlines]
    ends = float(first.slice_positions_mm.min()), float(first.slice_positions_mm.max())
    thorax = fit_thorax(
        [o.centre_mm for o in outlines], radii, ends, first.pixel_spacing_mm, stream(seed, name, "chest")
    )
    crowds = [_crowd(n, o, switched_off, seed) for n, o in zip(nodules, outlines, strict=True)]
    return Scene(
        name, seed, thorax, draw_tissue(stream(seed, name, "tissue"), first.contrast_used),
        draw_scanner(stream(seed, name, "scanner")),
        branches(thorax, low, high, seed, name, np.concatenate(crowds)), nodules, outlines,
        tuple(without), tuple(switched_off),
    )  # fmt: skip


def _crowd(nodule: Nodule, outline: Outline, switched_off: Collection[str], seed: int) -> NDArray[np.float64]:
    """Ends of vessels around a subtle nodule: the subtler, the more."""
    look = express(nodule, (), switched_off)
    away = stream(seed, nodule.nodule_id, "crowd").normal(size=(16, 3))
    away *= (outline.radius_mm + 5) / np.linalg.norm(away, axis=1, keepdims=True)
    return outline.centre_mm + away[: round(4 * (5 - look.subtlety))]


def render(scene: Scene, grid: Grid) -> tuple[NDArray[np.float32], dict[str, Drawn]]:
    """HU (z, y, x) on ``grid`` and what was drawn of each nodule."""
    drawn: dict[str, Drawn] = {}
    off = frozenset((*scene.without, *scene.switched_off))
    for nodule, outline in zip(scene.nodules, scene.outlines, strict=True):
        look = express(nodule, scene.without, scene.switched_off)
        one = draw_nodule(grid, outline, look, scene.tissue.lung, scene.seed, nodule.nodule_id, off)
        if one is not None:
            drawn[nodule.nodule_id] = one
    array = np.empty(grid.shape, np.float32)
    whole = slice(0, grid.rows), slice(0, grid.columns)
    for start in range(0, len(grid.z_mm), SLAB):  # slabs bound the memory of a long series
        part = grid.part(slice(start, min(start + SLAB, len(grid.z_mm))), *whole)
        for k, image in enumerate(_render_slab(scene, part, drawn, start), start=start):
            array[k] = blur(image.hu, grid, scene.scanner)
            array[k] += noise(grid, scene.scanner, grid.first_slice + k, image.noise_share, scene.seed, scene.name)
    return np.clip(np.round(array, out=array), -1024, 3071, out=array), drawn


def _render_slab(scene: Scene, part: Grid, drawn: Mapping[str, Drawn], start: int) -> Iterator[ChestSlice]:
    """Slices of ``part``, whose first one is slice ``start`` of the volume, with vessels, bronchi and nodules."""
    blood, lumen = (tube_share(part, tubes) for tubes in (scene.branches.blood, scene.branches.bronchi))
    walls = tube_share(part, scene.branches.bronchi.wider(BRONCHUS_WALL_MM))
    for k, chest in enumerate(render_chest(part, scene.thorax, scene.tissue, scene.seed, scene.name)):
        hu, through = chest.hu, blood[k] * np.float32(chest.lung)
        hu += walls[k] * (WALL - hu) * chest.lung
        for one in drawn.values():
            slices, rows, columns = one.box
            if slices.start <= start + k < slices.stop:
                lung = np.broadcast_to(np.float32(chest.lung), hu.shape)[rows, columns]
                _add_nodule(one, start + k - slices.start, lung, hu[rows, columns], through[rows, columns])
        hu += through * (scene.tissue.blood - hu)
        hu += lumen[k] * chest.lung * (LUMEN - hu)
        yield chest


def _add_nodule(one: Drawn, n: int, lung: Floats, hu: Floats, through: Floats) -> None:
    """Put slice ``n`` of a nodule into ``hu`` and out of the way of vessels, as far as there is lung.

    What an outline has in the chest wall cannot be seen there, and is no cause.
    """
    hu += lung * (one.hu[n] - one.opacity[n] * hu)
    through *= 1 - lung * np.minimum(one.solid[n], 1)
    for mask in one.causes.values():
        mask[n] &= lung > 0.5


def as_volume(nodule: Nodule, grid: Grid, array: NDArray[np.float32]) -> CTVolume:
    """The rendered slices as the reader of real series gives them."""
    return axial_volume(
        array,
        grid.z_mm,
        grid.spacing_mm,
        (grid.x0_mm, grid.y0_mm),
        grid.thickness_mm,
        series_uid=nodule.series_uid,
        patient_id=nodule.patient_id,
        study_uid=nodule.study_uid,
        slice_thickness_mm=nodule.slice_thickness_mm,
        simulated=True,
    )
