"""What slices with known lines teach about the others: the mixture's estimate, corrected by small boosted trees.

The mixture (:mod:`lidc_xai.imaging.png.hu`) errs in ways that a slice shows: how many pixels share its darkest value
(the scanner's floor of -1024 HU, or noise), how grainy it is, what lies between lung and muscle, what other slices of
the patient have as their floor. Two sets of trees give the HU that the estimate calls -860 and 45; a line goes through
both.
``pipelines/fit_png_hu.py`` fits them with patients apart, measures them and writes the table beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lidc_xai.errors import DataError
from lidc_xai.imaging.png.hu import LUNG_HU, SOFT_HU, Calibration, calibrate
from lidc_xai.imaging.png.lines import Lines

Floats = NDArray[np.float64]

TABLE = Path(__file__).with_name("hu_trees.json")
REFERENCE = np.array([LUNG_HU, SOFT_HU])
FLOOR_HU = -1024.0
LEAST_RISE = 300.0
_BELOW_HU = np.array([-1000, -920, -860, -800, -700, -500, -200, -120, -60, 0, 30, 60, 100, 200, 400], np.float64)
_BANDS = ((0, 40), (40, 90), (90, 150), (150, 256))
_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def hu_of_pictures(
    images: NDArray[np.uint8], lines: Lines, scan_intercepts: Sequence[float] = (), name: str = ""
) -> Calibration:
    """HU of a nodule's pictures (n, rows, columns): by their ``lines`` where they are known, else estimated.

    A picture without a line beside others that have one is linked to the nearest of these by their pixels.
    ``scan_intercepts``: of known lines of the patient's other nodules.
    Raises DataError for a line of a slice that the stack has not.
    """
    beyond = [number for number in lines if number >= len(images)]
    if beyond:
        raise DataError(f"{name}: the calibration has slice {beyond[0]}, the edition slices 0 to {len(images) - 1}")
    if len(lines) == len(images):
        return _given(lines)
    estimate = calibrate(images)
    if lines:
        return _anchored(estimate, lines)
    return corrected(images, estimate, scan_intercepts)


def _given(lines: Lines) -> Calibration:
    rows = [lines[number] for number in sorted(lines)]
    slope, intercept, rmse = (
        np.array([getattr(row, field) for row in rows]) for field in ("slope", "intercept", "rmse_hu")
    )
    error = float(np.sqrt(np.mean(rmse**2)))
    return Calibration(slope, intercept, intercept < -1500, error, error, calibrated=True)


def _anchored(estimate: Calibration, lines: Lines) -> Calibration:
    """The estimate, which scales all pictures alike, moved so that the nearest known line is met."""
    known = np.array(sorted(lines))
    slope, intercept = estimate.slope.copy(), estimate.intercept.copy()
    for number in range(len(slope)):
        near = int(known[np.abs(known - number).argmin()])
        scale = lines[near].slope / estimate.slope[near]
        shift = lines[near].intercept - scale * estimate.intercept[near]
        slope[number] = scale * estimate.slope[number]
        intercept[number] = scale * estimate.intercept[number] + shift
    error = float(np.sqrt(np.mean([line.rmse_hu**2 for line in lines.values()])))
    return replace(estimate, slope=slope, intercept=intercept, lung_sd=error, soft_sd=error, calibrated=True)


def corrected(images: NDArray[np.uint8], estimate: Calibration, scan_intercepts: Sequence[float]) -> Calibration:
    """``estimate`` after the trees; ``lung_sd`` and ``soft_sd`` are then errors as measured on other patients."""
    table = trees()
    features = picture_features(images, estimate, scan_intercepts)
    hu = REFERENCE + np.stack([table.lung.predict(features), table.soft.predict(features)], axis=1)
    grey = (REFERENCE - estimate.intercept[:, None]) / estimate.slope[:, None]
    hu[hu[:, 1] - hu[:, 0] < LEAST_RISE] = REFERENCE  # never seen; keeps lung below soft tissue all the same
    slope = (hu[:, 1] - hu[:, 0]) / (grey[:, 1] - grey[:, 0])
    lung, soft = table.errors[int(np.searchsorted(table.edges, estimate.lung_sd + estimate.soft_sd))]
    return replace(
        estimate, slope=slope, intercept=hu[:, 0] - slope * grey[:, 0], lung_sd=float(lung), soft_sd=float(soft)
    )


def picture_features(images: NDArray[np.uint8], estimate: Calibration, scan_intercepts: Sequence[float]) -> Floats:
    """(n, features) of what a picture, its stack and its scan tell."""
    stacked = [_of_one(image) for image in images]
    below = np.stack([
        _share_below(image, slope, intercept)
        for image, slope, intercept in zip(images, estimate.slope, estimate.intercept, strict=True)
    ])  # fmt: skip
    of_stack = np.concatenate([
        below.mean(axis=0), [estimate.intercept.min(), estimate.intercept.mean(), (images == 0).mean() * 1000],
        [np.log(estimate.lung_sd + 1), np.log(estimate.soft_sd + 1), np.log(len(images))],
    ])  # fmt: skip
    known = np.asarray(scan_intercepts, dtype=np.float64)
    of_scan = np.zeros(4)
    if len(known):
        of_scan = np.array([1, known.min(), (np.abs(known - FLOOR_HU) < 1.5).mean(), (known < -1500).mean()])
    of_picture = np.column_stack([estimate.slope, estimate.intercept, estimate.padded])
    shared = np.tile(np.concatenate([of_stack, of_scan]), (len(images), 1))
    return np.column_stack([np.stack(stacked), below, of_picture, shared])


def _of_one(image: NDArray[np.uint8]) -> Floats:
    """Counts at both ends, graininess by brightness, quantiles of grey."""
    counts = np.bincount(image.ravel(), minlength=256)
    grey = image.astype(np.float64)
    edges = np.abs(4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:])
    smooth = gaussian_filter(grey, 1.5)[1:-1, 1:-1]
    inside = [(smooth >= low) & (smooth < high) for low, high in _BANDS]
    grain = [float(np.median(edges[band])) if band.sum() > 30 else 0.0 for band in inside]
    ends = counts[[0, 1, 2, 3, 4, 5, 254, 255]] / image.size * 1000
    return np.concatenate([ends, grain, np.quantile(grey, _QUANTILES)])


def _share_below(image: NDArray[np.uint8], slope: float, intercept: float) -> Floats:
    """Share of the pixels whose estimated HU are below each of ``_BELOW_HU``."""
    cumulative = np.concatenate([[0.0], np.cumsum(np.bincount(image.ravel(), minlength=256)) / image.size])
    return np.interp((_BELOW_HU - intercept) / slope, np.arange(257) - 0.5, cumulative)


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """A sum of regression trees: per tree an array of nodes (feature, threshold, left, right, value); a leaf's left is
    -1."""

    baseline: float
    nodes: list[Floats]

    def predict(self, features: Floats) -> Floats:
        """(n, features) -> (n,)."""
        total = np.full(len(features), self.baseline)
        rows = np.arange(len(features))
        for tree in self.nodes:
            at = np.zeros(len(features), dtype=np.int64)
            while (inner := tree[at, 2] >= 0).any():
                feature, threshold, left, right = tree[at, :4].T
                goes = np.where(features[rows, feature.astype(int)] <= threshold, left, right)
                at = np.where(inner, goes, at).astype(np.int64)
            total += tree[at, 4]
        return total

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BoostedTrees:
        """As ``pipelines/fit_png_hu.py`` writes them."""
        return cls(float(values["baseline"]), [np.array(tree, dtype=np.float64) for tree in values["trees"]])


@dataclass(frozen=True, eq=False)
class Table:
    """Trees for both reference values; ``errors`` (bins, 2): root mean square at lung and soft tissue, of other
    patients, by the mixture's own SD (``edges``)."""

    lung: BoostedTrees
    soft: BoostedTrees
    edges: Floats
    errors: Floats


@lru_cache(maxsize=1)
def trees() -> Table:
    """The table that comes with the package."""
    values = json.loads(TABLE.read_text(encoding="utf-8"))
    lung, soft = (BoostedTrees.from_json(values[name]) for name in ("lung", "soft"))
    return Table(lung, soft, np.array(values["sd_edges"]), np.array(values["rms_errors"]))
