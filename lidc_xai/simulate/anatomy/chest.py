"""The chest in HU, slice by slice, before nodules, blur and noise.

Signed distances are computed on every fourth pixel and interpolated; a tissue's edge is as wide as a pixel and, where
the surface is oblique, as the part of it that one slice's thickness sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from lidc_xai.simulate.anatomy.tissues import Thorax, Tissues
from lidc_xai.simulate.grid import Floats, Grid, stream

STRIDE = 4
AIR, LUMEN, FAT, MUSCLE, WALL, LIVER, TABLE = -1000.0, -985.0, -105.0, 57.0, 30.0, 62.0, -120.0
CORTEX, MARROW = 1050.0, 170.0
TABLE_MM = 3.0
FIELDS = ("body", "muscles", "cage", "organs", "bones", "airways", "diaphragm", "lungs", "table")


@dataclass(frozen=True)
class Tissue:
    """Densities that differ from patient to patient, in HU: lung, blood, heart, vessels of the lung."""

    lung: float
    blood: float


def draw_tissue(rng: np.random.Generator, contrast: bool | None) -> Tissue:
    """Densities of one patient; with contrast agent the blood is bright."""
    lung = float(np.clip(rng.normal(-882, 10), -905, -864))
    return Tissue(lung, float(rng.uniform(150, 300)) if contrast else float(rng.uniform(38, 50)))


@dataclass(frozen=True, eq=False)
class ChestSlice:
    """One slice: ``hu`` without vessels, ``lung``: share of parenchyma, ``noise_share``: relative SD of the noise."""

    hu: NDArray[np.float32]
    lung: NDArray[np.float32] | float
    noise_share: NDArray[np.float32]


def render_chest(grid: Grid, thorax: Thorax, tissue: Tissue, seed: int, name: str) -> Iterator[ChestSlice]:
    """The slices of ``grid``, in order."""
    fields = _coarse_fields(grid, thorax)
    up = _Upsampler(grid)
    fat_grain = _patchwork(grid, 5.0, seed, name, "fat")
    lung_grain = _patchwork(grid, 7.0, seed, name, "lung")
    back = ((grid.y_mm - thorax.centre[1]) / thorax.half[1]).clip(-1, 1)[:, None]
    for k in range(len(grid.z_mm)):
        share = {f: _share(fields[f][0][k], fields[f][1][k], up) for f in FIELDS if f != "table"}
        hu = _soft_tissue(share, up(fields["body"][0][k]), tissue, 9 * fat_grain(k))
        hu = _bones(hu, share["bones"], fields["bones"][0][k], up, 25 * fat_grain(k))
        hu = _mix(hu, WALL, _share(fields["airways"][0][k] - 2.0, fields["airways"][1][k], up))
        hu = _mix(hu, LUMEN, share["airways"])
        parenchyma = tissue.lung + 22 * back + 16 * lung_grain(k) + _grain(grid, k, seed, name)
        hu = _mix(hu, parenchyma, share["lungs"])
        table = np.abs(up(fields["table"][0][k])) - TABLE_MM / 2
        hu = _mix(hu, TABLE, np.clip(0.5 - table / grid.spacing_mm, 0, 1))
        inner = np.clip(-fields["body"][0][k] / 70, 0, 1)
        noise_share = np.where(fields["body"][0][k] > 0, 0.5, 0.62 + 0.38 * inner)
        yield ChestSlice(hu.astype(np.float32), share["lungs"], up(noise_share))


def _coarse_fields(grid: Grid, thorax: Thorax) -> dict[str, tuple[Floats, Floats]]:
    """Per field the distance in the middle of each slice and the width of its edge there: (z, rows/4, columns/4)."""
    x = (grid.x0_mm + STRIDE * grid.spacing_mm * np.arange(_coarse(grid.columns))).astype(np.float32)[None, None, :]
    y = (grid.y0_mm + STRIDE * grid.spacing_mm * np.arange(_coarse(grid.rows))).astype(np.float32)[None, :, None]
    z = grid.z_mm[:, None, None].astype(np.float32)
    half = np.float32(grid.thickness_mm / 2)
    above, below = Tissues(thorax, x, y, z + half), Tissues(thorax, x, y, z - half)
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    fields = {}
    for name in FIELDS:
        upper, lower = (np.broadcast_to(getattr(end, name), shape) for end in (above, below))
        width = np.hypot(grid.spacing_mm, np.minimum(np.abs(upper - lower), 12.0))
        fields[name] = ((upper + lower) / 2, width)
    return fields


def _coarse(n: int) -> int:
    return (n - 1) // STRIDE + 2


class _Upsampler:
    """Linear interpolation from every fourth pixel to all, as two matrix products."""

    def __init__(self, grid: Grid) -> None:
        self.rows, self.columns = _weights(grid.rows), _weights(grid.columns).T.copy()

    def __call__(self, coarse: Floats) -> NDArray[np.float32]:
        return self.rows @ coarse.astype(np.float32) @ self.columns


def _weights(n: int) -> NDArray[np.float32]:
    weights = np.zeros((n, _coarse(n)), np.float32)
    pixel = np.arange(n)
    t = (pixel % STRIDE) / STRIDE
    weights[pixel, pixel // STRIDE] = 1 - t
    weights[pixel, pixel // STRIDE + 1] += t
    return weights


def _share(distance: Floats, width: Floats, up: _Upsampler) -> NDArray[np.float32] | float:
    """Share of each pixel inside; a plain number where the whole slice is out or in."""
    ratio = distance / width
    if ratio.min() >= 0.5:
        return 0.0
    if ratio.max() <= -0.5:
        return 1.0
    return np.clip(0.5 - up(ratio), 0, 1)


def _mix(under: Floats, over: Floats | float, share: Floats | float) -> Floats:
    if isinstance(share, float) and share == 0.0:
        return under
    return under + share * (over - under)


def _soft_tissue(share: dict, body: Floats, tissue: Tissue, grain: Floats) -> Floats:
    hu = _mix(np.full(body.shape, AIR, np.float32), FAT + grain, share["body"])
    skin = np.clip(1.3 - np.abs(body + 1.2), 0, 1)
    hu = _mix(hu, WALL, skin)
    hu = _mix(hu, MUSCLE + 0.8 * grain, share["muscles"])
    hu = _mix(hu, FAT + 12 + 1.5 * grain, share["cage"])
    hu = _mix(hu, tissue.blood, share["organs"])
    below = np.minimum(share["diaphragm"], share["cage"])
    return _mix(hu, LIVER + 0.5 * grain, below)


def _bones(hu: Floats, share: Floats | float, distance: Floats, up: _Upsampler, grain: Floats) -> Floats:
    if isinstance(share, float) and share == 0.0:
        return hu
    depth = -up(distance)
    return _mix(hu, CORTEX + (MARROW + grain - CORTEX) * np.clip((depth - 1.4) / 1.2, 0, 1), share)


def _patchwork(grid: Grid, pitch_mm: float, seed: int, name: str, what: str) -> Callable[[int], NDArray[np.float32]]:
    """A smooth field of unit SD over the chest, as a function of the slice: the same in every window of a series."""
    rng = stream(seed, name, what)
    lattice = gaussian_filter(rng.normal(size=(24, 48, 48)).astype(np.float32), 0.7, mode="wrap")
    lattice /= lattice.std()
    x = (grid.x0_mm + STRIDE * grid.spacing_mm * np.arange(_coarse(grid.columns))) / pitch_mm
    y = (grid.y0_mm + STRIDE * grid.spacing_mm * np.arange(_coarse(grid.rows))) / pitch_mm
    up = _Upsampler(grid)

    def at(k: int) -> NDArray[np.float32]:
        height = np.full((len(y), len(x)), grid.z_mm[k] / pitch_mm)
        where = [height, *np.meshgrid(y, x, indexing="ij")]
        return up(map_coordinates(lattice, where, order=1, mode="grid-wrap", prefilter=False))

    return at


def _grain(grid: Grid, k: int, seed: int, name: str) -> NDArray[np.float32]:
    """Fine structure of the parenchyma below what vessels are drawn for; the scanner's blur takes most of it away."""
    rng = stream(seed, name, "grain", grid.first_slice + k + 100_000)
    white = rng.standard_normal((grid.rows, grid.columns), dtype=np.float32)
    return 42.0 * (0.7 / grid.spacing_mm) * white
