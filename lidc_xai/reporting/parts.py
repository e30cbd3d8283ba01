"""What reports are made from beside the store, for a study and for each of its nodules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lidc_xai.nodules.agreement import overlap_figures
from lidc_xai.nodules.maps import RANDOM_WEIGHTS
from lidc_xai.nodules.record import FEWEST, Association, associations, recorded_associations
from lidc_xai.nodules.strength import Anchors
from lidc_xai.ratings import OUTPUTS
from lidc_xai.reporting.nodule.fact_types import Origin
from lidc_xai.reporting.pdf import check_paper

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps

MapsByMethod = Mapping[str, "Mapping[str, NoduleMaps] | Sequence[NoduleMaps]"]
OWN_SOURCES = ("points", "mask")
CLASS_BLIND = ("attention", "attention_rollout", "random")
"""Methods whose map is the same for every output."""


def origin_of(store: CropStore) -> Origin:
    """Whether a store holds nodules of LIDC-IDRI, or points or masks on somebody's own CT."""
    rule = store.fingerprint.get("rule")
    return "own" if isinstance(rule, Mapping) and rule.get("source") in OWN_SOURCES else "lidc"


def is_control(method: str) -> bool:
    """Methods shown as controls, after those that explain: attention, random numbers, the same net untrained."""
    return method in CLASS_BLIND or method == RANDOM_WEIGHTS or method.endswith(f"@{RANDOM_WEIGHTS}")


@dataclass(kw_only=True)
class PageParts:
    """What a study's page and each of its nodules' are made from alike; see ``ReportParts``."""

    anchors: Anchors = field(default_factory=dict)
    model_info: Mapping[str, Any] | None = None
    run_info: Mapping[str, Any] | None = None
    light: bool = False
    paper: str = "A4"
    summary: bool = False
    keep_ids: bool = False


@dataclass(kw_only=True)
class NoduleParts(PageParts):
    """What one nodule's page is made from, beside the store's tables; see ``ReportParts``."""

    crop: NoduleCrop
    prediction: Mapping[str, Any] | None = None
    origin: Origin = "lidc"
    percentiles: dict[str, float] = field(default_factory=dict)
    maps: dict[str, NoduleMaps] = field(default_factory=dict)
    dense: dict[str, NoduleMaps] = field(default_factory=dict)
    overlap: list[dict[str, Any]] = field(default_factory=list)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    similar: Sequence[Mapping[str, Any]] = ()
    turning: Mapping[str, Any] = field(default_factory=dict)
    associations: Mapping[str, Association] = field(default_factory=dict)
    context: NoduleCrop | None = None


@dataclass
class ReportParts(PageParts):
    """What a study's pages are made from, beside the store. All of it is optional.

    predictions: table of ``predict`` or of a cross-validation.
    maps: method -> maps by nodule id, or a list of them; a mean over models brings its ``repeatability``.
    dense: the same of every slice, for the viewer; figures and words are of ``maps``.
    curves: nodule id -> output -> ``percent``, ``mif``, ``lif`` (and ``removed``, the loss when all is replaced), as
        ``evaluation.fidelity`` gives them.
    anchors: method -> output -> ``nodules.strength.Anchor``, so that a weak map looks weak; else a nodule's own scale.
    similar: nodule id -> rated nodules like it, as ``nodules.similar_nodules`` gives them.
    turning: nodule id -> ``lines`` and ``pictures``, as ``reporting.edited.drawn_turn`` gives them.
    context: gives a wider crop (≥ 64 mm) of a nodule, or ``None``.
    light: leave the context's voxels out of the page (the still pictures stay), for studies of hundreds.
    paper: of the PDF, A4 or Letter. summary: the PDF is one page, the head of the HTML page.
    keep_ids: print the identifiers of somebody's own CT; by default none of them is on a page.
    """

    predictions: pd.DataFrame | None = None
    maps: MapsByMethod = field(default_factory=dict)
    dense: MapsByMethod = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    similar: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    turning: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    context: Callable[[str], NoduleCrop | None] | None = None

    def __post_init__(self) -> None:
        check_paper(self.paper)

    def of(self, store: CropStore, nodule_id: str) -> NoduleParts:
        """The parts of one nodule; its context is cut and its maps are compared with the outlines here."""
        crop, maps = store.load(nodule_id), self.maps_of(nodule_id)
        return NoduleParts(
            crop=crop,
            prediction=self.prediction(nodule_id),
            origin=origin_of(store),
            percentiles=percentiles(self.predictions, nodule_id),
            maps=maps,
            dense=self.maps_of(nodule_id, self.dense),
            overlap=overlap_figures(crop, maps, CLASS_BLIND),
            curves=self.curves.get(nodule_id, {}),
            similar=self.similar.get(nodule_id, ()),
            turning=self.turning.get(nodule_id, {}),
            associations=self._associations,
            context=None if self.context is None else self.context(nodule_id),
            **{item.name: getattr(self, item.name) for item in fields(PageParts)},
        )

    @cached_property
    def _associations(self) -> dict[str, Association]:
        """Of the table where it is a cohort's, else as the model's record holds them."""
        return associations(self.predictions) or recorded_associations(self.model_info)

    def maps_of(self, nodule_id: str, of: MapsByMethod | None = None) -> dict[str, NoduleMaps]:
        """Method -> a nodule's maps, controls last; ``of``: other maps than ``maps``."""
        given = self.maps if of is None else of
        by_method = {method: map_of(given[method], nodule_id) for method in sorted(given, key=is_control)}
        return {method: item for method, item in by_method.items() if item is not None}

    def prediction(self, nodule_id: str) -> Mapping[str, Any] | None:
        """A nodule's row of the predictions; ``None`` where there is none."""
        if self.predictions is None or "nodule_id" not in self.predictions:
            return None
        rows = self.predictions[self.predictions["nodule_id"] == nodule_id]
        return None if rows.empty else {str(key): value for key, value in rows.iloc[0].items()}


def map_of(given: Mapping[str, NoduleMaps] | Sequence[NoduleMaps], nodule_id: str) -> NoduleMaps | None:
    """One method's maps of a nodule; ``None`` where there are none."""
    if isinstance(given, Mapping):
        return given.get(nodule_id)
    return next((entry for entry in given if entry.nodule_id == nodule_id), None)


def percentiles(predictions: pd.DataFrame | None, nodule_id: str) -> dict[str, float]:
    """Per output, the share (in %) of all predicted nodules whose prediction is no higher; empty below 20 nodules."""
    if predictions is None or len(predictions) < FEWEST or "nodule_id" not in predictions:
        return {}
    here = (predictions["nodule_id"] == nodule_id).to_numpy()
    shares = {}
    for output in OUTPUTS:
        column = {"malignancy": "malignancy_probability", "calcification": "p_calcified"}.get(output, output)
        if column not in predictions or not here.any():
            continue
        values = predictions[column].to_numpy(dtype=np.float64)
        value = values[here][0]
        if np.isfinite(value):
            shares[output] = float(100 * np.mean(values[np.isfinite(values)] <= value))
    return shares
