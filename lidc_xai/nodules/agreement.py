"""Do the maps lie on the nodule? Figures for a nodule's page.

Overlap figures are those of ``evaluation.localisation`` in each evaluated plane, averaged over planes. They describe
agreement with the readers' outline; they do not prove that a map is faithful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.planes import crop_plane

if TYPE_CHECKING:
    from lidc_xai.evaluation.metrics._localisation import LocalisationResult
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps

FIGURES = ("positive_mass", "absolute_mass", "rank_accuracy", "iou", "auprc", "pointing_2mm")


def overlap_figures(
    crop: NoduleCrop, maps: Mapping[str, NoduleMaps], class_blind: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of ``method``, ``output`` (``None``: every output), ``FIGURES`` (``None`` where undefined) and ``area``, the
    share of a plane that the outline covers: what a map without a reason would have inside it.

    After the maps: a centred disc of the same area, and each reader against the consensus of the others. Empty without
    a consensus or maps.
    """
    if crop.consensus is None or not maps:
        return []
    from lidc_xai.evaluation.metrics._localisation import centred_disc_localisation, localisation, reader_agreement

    rows = []
    for method, item in maps.items():
        names = item.output_names[:1] if method in class_blind else item.output_names
        figures = [
            localisation(item.relevance[place, : len(names)], np.repeat(mask[None], len(names), axis=0), spacing)
            for place, (mask, spacing) in enumerate(evaluated_masks(crop, item))
        ]
        for column, output in enumerate(names):
            rows.append(
                {"method": method, "output": None if method in class_blind else output, **_mean(figures, column)}
            )
    first = next(iter(maps.values()))
    discs = [centred_disc_localisation(mask[None], spacing) for mask, spacing in evaluated_masks(crop, first)]
    rows.append({"method": "centred disc", "output": None, **_mean(discs, 0)})
    if crop.reader_masks is not None and len(crop.reader_masks) > 1:
        readers = [evaluated_masks(crop, first, reader) for reader in range(len(crop.reader_masks))]
        planes = [(np.stack([mask for mask, _ in group]), group[0][1]) for group in zip(*readers, strict=True)]
        agreement = [reader_agreement(masks[None], spacing) for masks, spacing in planes]
        rows.append({"method": "readers", "output": None, **_mean(agreement, 0)})
    area = float(np.mean([mask.mean() for mask, _ in evaluated_masks(crop, first)]))
    return [{**row, "area": area} for row in rows]


def evaluated_masks(
    crop: NoduleCrop, maps: NoduleMaps, of: str | int = "consensus"
) -> list[tuple[NDArray[np.bool_], tuple[float, float]]]:
    """Per evaluated plane the mask (h, w) in stored order and the plane's spacing; ``of`` as for ``crop_plane``."""
    planes = [crop_plane(crop, view, index, of) for view, index in zip(maps.views, maps.indices, strict=True)]
    return [(np.array(plane.image, dtype=bool), plane.spacing_mm) for plane in planes]


def _mean(terms: Sequence[LocalisationResult], column: int) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for figure in FIGURES:
        values = [float(getattr(one, figure)[column]) for one in terms]
        known = [value for value in values if np.isfinite(value)]
        means[figure] = float(np.mean(known)) if known else None
    return means
