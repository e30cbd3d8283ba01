"""The vessels of both lungs, or of the part around a point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.simulate.grid import stream
from lidc_xai.imaging.simulate.thorax import Thorax
from lidc_xai.imaging.simulate.tree import Tubes, grow, join

ENDS_PER_ML = 0.55
"""Ends of each tree (arteries, veins) in a millilitre of lung."""


def vessels(
    thorax: Thorax, low: NDArray[np.float64], high: NDArray[np.float64], seed: int, name: str,
    crowds: NDArray[np.float64] | None = None,
) -> Tubes:  # fmt: skip
    """Arteries and veins whose ends lie in the box ``low`` to ``high`` (x, y, z in mm), from their own hilum.

    ``crowds``: (n, 3) further ends, where something should be harder to see.
    """
    rng = stream(seed, name, "vessels")
    volume_ml = float(np.prod(high - low)) / 1000
    trees = []
    for tree, (sx, dy, dz) in enumerate(((38.0, -4.0, 0.0), (33.0, 8.0, -14.0))):
        ends = rng.uniform(low, high, (max(int(volume_ml * ENDS_PER_ML), 8), 3))
        if crowds is not None and tree == 0:
            ends = np.concatenate([ends, crowds])
        ends = ends[thorax.lungs(*ends.T) < -2.0]
        for side in (-1.0, 1.0):
            own = ends[np.sign(ends[:, 0] - thorax.centre[0]) == side]
            root = np.array([thorax.centre[0] + side * sx, thorax.centre[1] + dy, thorax.hilum_z + dz])
            if len(own):
                trees.append(grow(own, root, rng))
    empty = np.zeros((0, 3))
    return join(trees) if trees else Tubes(empty, empty, np.zeros(0), np.zeros(0))
