"""The vessels of both lungs, dense where they are looked at, and the bronchi beside the larger arteries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.simulate.anatomy.tissues import Thorax, lung_distance
from lidc_xai.simulate.anatomy.tubes import Tubes, grow, join
from lidc_xai.simulate.grid import stream

ENDS_PER_ML = 1.5
"""Ends of each tree (arteries, veins) in a millilitre of lung."""
FAR = 40
"""Outside the box that is looked at one end stands for so many: the trunks keep their size."""
ROOTS = ((36.0, -4.0, 0.0), (31.0, 8.0, -14.0))
"""Hilum of the arteries and of the veins: mm sideways and back from the middle of the chest, up from the hilum."""


@dataclass(frozen=True, eq=False)
class Branches:
    """``blood``: arteries and veins. ``bronchi``: lumen of the airways beside the larger arteries."""

    blood: Tubes
    bronchi: Tubes


def branches(
    thorax: Thorax, low: NDArray[np.float64], high: NDArray[np.float64], seed: int, name: str,
    crowds: NDArray[np.float64],
) -> Branches:  # fmt: skip
    """Vessels of the whole lung, every one that ends in the box ``low`` to ``high`` (x, y, z in mm) and a few others.

    ``crowds``: (n, 3) further ends, where something should be harder to see.
    """
    rng = stream(seed, name, "vessels")
    blood, bronchi = [], []
    for kind, (sideways, back, up) in enumerate(ROOTS):
        ends, weight = _ends(thorax, low, high, rng)
        if kind == 0 and len(crowds):
            ends, weight = np.concatenate([ends, crowds]), np.concatenate([weight, np.ones(len(crowds))])
        for side in (-1.0, 1.0):
            on_this_side = np.sign(ends[:, 0] - thorax.centre[0]) == side
            root = np.array([thorax.centre[0] + side * sideways, thorax.centre[1] + back, thorax.hilum_z + up])
            if on_this_side.any():
                blood.append(grow(ends[on_this_side], weight[on_this_side], root, rng))
                if kind == 0:
                    bronchi.append(_beside(blood[-1]))
    return Branches(join(blood), join(bronchi))


def _ends(
    thorax: Thorax, low: NDArray[np.float64], high: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends (n, 3) in the lungs and for how many each stands (n,)."""
    middle = np.array([*thorax.centre, (thorax.top_mm + thorax.bottom_mm) / 2])
    half = np.array([thorax.half[0], thorax.half[1], thorax.length_mm / 2])
    near = rng.uniform(low, high, (_count(high - low, 1), 3))
    far = rng.uniform(middle - half, middle + half, (_count(2 * half, FAR), 3))
    far = far[((far < low) | (far > high)).any(axis=1)]
    ends = np.concatenate([near, far])
    weight = np.concatenate([np.ones(len(near)), np.full(len(far), float(FAR))])
    inside = lung_distance(thorax, ends) < -2.0
    return ends[inside], weight[inside]


def _count(size_mm: NDArray[np.float64], each_stands_for: int) -> int:
    return int(np.prod(size_mm) / 1000 * ENDS_PER_ML / each_stands_for)


def _beside(arteries: Tubes) -> Tubes:
    """Airways that run beside arteries of 2.3 to 5 mm radius, a little thinner than they."""
    large = arteries.chosen((arteries.r0 > 2.3) & (arteries.r0 < 5))
    along = large.end - large.start
    sideways = np.cross(along, [0.35, 0.2, 1.0])
    sideways /= np.maximum(np.linalg.norm(sideways, axis=1, keepdims=True), 1e-9)
    shift = sideways * (1.85 * large.r0 + 0.8)[:, None]
    return Tubes(large.start + shift, large.end + shift, 0.8 * large.r0, 0.8 * large.r1)
