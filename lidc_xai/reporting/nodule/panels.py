"""A nodule's maps as plain PNG sheets, one per view: outputs below each other, methods side by side.

For a quick look or a slide; the report is what a radiologist should read. Coronal and sagittal planes are turned so
that superior is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lidc_xai.imagenet.panel import draw_panel
from lidc_xai.imaging.planes import crop_plane
from lidc_xai.ratings import SCALES
from lidc_xai.reporting.pictures import windowed

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps

_PIXELS = 256


def draw_nodule_panels(
    maps: Mapping[str, NoduleMaps], crop: NoduleCrop, folder: Path | str, mark: str = ""
) -> list[Path]:
    """Write ``folder/<nodule_id>/<view>.png`` for every view of ``maps`` (method -> maps of this nodule).

    ``mark``: SIMULATED or EDITED, where the CT is not as it was scanned.
    """
    first = next(iter(maps.values()))
    rows = [f"{name}\n(orange: {SCALES[name].towards(1)})" for name in first.output_names]
    paths = []
    for v, (view, index) in enumerate(zip(first.views, first.indices, strict=True)):
        turned = slice(None) if view == "axial" else slice(None, None, -1)
        image = windowed(crop_plane(crop, view, index).image, "lung")[turned]
        times = max(1, round(_PIXELS / max(image.shape)))
        pixels = np.repeat(image.repeat(times, 0).repeat(times, 1)[..., None], 3, axis=-1)
        path = Path(folder) / crop.nodule_id / f"{view}.png"
        shown = {name: item.relevance[v][:, turned] for name, item in maps.items()}
        stable = {
            name: item.repeatability.stable[v][:, turned]
            for name, item in maps.items()
            if item.repeatability is not None and item.repeatability.stable is not None
        }
        title = f"{crop.nodule_id}, {view} slice {index}, lung window. Research use only."
        title += "\nGrey: patches whose sign other trainings may turn." if stable else ""
        draw_panel(path, pixels, shown, rows, title, f"{mark.lower()} CT" if mark else None, "CT", stable)
        paths.append(path)
    return paths
