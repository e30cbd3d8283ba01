"""A nodule's maps on any grid of voxels: back from the planes that were evaluated to the patient.

A voxel takes part in a plane where the plane cuts through it. There it has the score of the token it lies in (nearest
neighbour: nothing is invented between tokens); where several planes cut it, their mean. Voxels that no plane cuts, or
outside the crop, were never evaluated: NaN, not zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import UsageError

if TYPE_CHECKING:
    from lidc_xai.nodules.maps import NoduleMaps

_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Per view the index (0 = i, 1 = j, 2 = k) that is cut, and those of a plane's rows and columns."""


def map_on_grid(
    maps: NoduleMaps,
    output: str,
    crop_shape: tuple[int, int, int],
    crop_affine: NDArray,
    points_mm: NDArray,
    voxel_axes: NDArray,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scores of ``output`` at voxels, and how many evaluated planes cut each voxel.

    ``crop_shape`` (z, y, x) and ``crop_affine`` ((i, j, k, 1) -> LPS mm): the crop that was explained. ``points_mm``
    (..., 3): the voxels' centres in LPS mm; ``voxel_axes`` (3, 3): columns are the voxel's edges in mm. Returns float32
    (...) with NaN where nothing was evaluated, and uint8 (...).
    """
    if output not in maps.output_names:
        raise UsageError(f"output {output!r} is not in the maps of {maps.nodule_id}: {', '.join(maps.output_names)}")
    column = maps.output_names.index(output)
    inverse = np.linalg.inv(crop_affine)
    index = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    index = np.round(index, 6)  # a centre that lies on a plane or an edge stays there whatever the rounding of mm
    reach = np.maximum(np.abs(inverse[:3, :3] @ voxel_axes).sum(axis=1), 1.0) / 2
    total = np.zeros(index.shape[:-1])
    count = np.zeros(index.shape[:-1], dtype=np.uint8)
    sizes = crop_shape[::-1]
    for place, (view, at) in enumerate(zip(maps.views, maps.indices, strict=True)):
        cut, rows, columns = _AXES[view]
        scores = maps.relevance[place, column]
        row = np.floor((index[..., rows] + 0.5) / sizes[rows] * scores.shape[0]).astype(int)
        col = np.floor((index[..., columns] + 0.5) / sizes[columns] * scores.shape[1]).astype(int)
        distance = index[..., cut] - at
        there = (distance >= -reach[cut]) & (distance < reach[cut])
        there &= (row >= 0) & (row < scores.shape[0]) & (col >= 0) & (col < scores.shape[1])
        total[there] += scores[row[there], col[there]]
        count[there] += 1
    with np.errstate(invalid="ignore"):
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return values.astype(np.float32), count
