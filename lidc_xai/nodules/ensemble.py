"""Several models on the same crops: planes are cut once, blocks with the same weights run once.

A crop's map by one model is the mean over the turns and slices that are asked for, each turned back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.errors import UsageError
from lidc_xai.imaging.planes import CUT_AXIS, crop_plane, planes_of, scanned_box
from lidc_xai.nodules.map_record import NoduleMaps

if TYPE_CHECKING:
    import torch

    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.models.nodule_model import NoduleModel

MOST_IMAGES = 32
"""Images of one crop that are explained in one pass."""
_PLAIN = (bool, int, float, str, type(None))


def nodule_images(
    model: NoduleModel, crop: NoduleCrop, views: Sequence[str] | None = None, turn: int = 0, slices: int = 1
) -> torch.Tensor:
    """Model input of a crop: its middle plane in each view (None: those that the model reads), (V,3,S,S).

    ``turn``: 1 to 7 for the same planes turned and mirrored, as ``models.turns.turned`` counts. ``slices``: odd, so
    many planes about the middle of every view, (V·slices,3,S,S).

    >>> nodule_images(model, crop).shape
    torch.Size([3, 3, 32, 32])
    """
    import torch

    from lidc_xai.models.inference import turned

    read = replace(model.preprocess, slices=slices)
    read.check(crop)
    planes = [torch.from_numpy(planes_of(crop, (view,), read.planes_read)) for view in views or read.views]
    return torch.cat([read.apply(turned(read.inputs(each), turn)) for each in planes])


def scanned_planes(model: NoduleModel, crop: NoduleCrop, views: Sequence[str]) -> list[tuple[str, int]]:
    """View and index of every plane that can be evaluated: slices that were scanned, with the neighbours that the model
    reads beside them.

    >>> len(scanned_planes(model, crop, ("axial",)))
    32
    """
    beside, box = model.preprocess.planes_per_input // 2, scanned_box(crop.ct)
    return [
        (view, index)
        for view in views
        for index in range(
            max(box[CUT_AXIS[view]].start, beside),
            min(box[CUT_AXIS[view]].stop, crop.ct.shape[CUT_AXIS[view]] - beside),
        )
    ]


def plane_images(
    model: NoduleModel, crop: NoduleCrop, planes: Sequence[tuple[str, int]], turn: int = 0
) -> torch.Tensor:
    """Model input of any planes of a crop, (planes,3,S,S); ``turn`` as for ``nodule_images``."""
    import torch

    from lidc_xai.models.inference import turned

    read = replace(model.preprocess, slices=1)
    read.check(crop)
    beside = read.planes_per_input // 2
    cut = [
        np.stack([crop_plane(crop, view, at).image for at in range(index - beside, index + beside + 1)])
        for view, index in planes
    ]
    inputs = read.inputs(torch.from_numpy(np.stack(cut).astype(np.float32, copy=False)))
    return read.apply(turned(inputs, turn))


class Ensemble:
    """Models that explain the same crops, on ``device`` and in evaluation mode.

    ``slices``: planes about the middle of each view whose maps are averaged. ``turns``: 8 averages over the turns and
    mirrors of the input, 1 does not; None: as each model averages its outputs. ``every_slice``: a map of every slice
    that was scanned, instead of the middle one.
    """

    def __init__(
        self,
        models: Sequence[NoduleModel],
        device: str = "cpu",
        slices: int = 1,
        turns: int | None = None,
        every_slice: bool = False,
    ) -> None:
        if slices < 1 or slices % 2 == 0 or turns not in (None, 1, 8):
            raise UsageError(f"slices is odd and turns 1 or 8, not {slices} and {turns}")
        if every_slice and slices > 1:
            raise UsageError("maps of every slice are of one slice each; leave slices at 1")
        self.models = [model.to(device).eval() for model in models]
        self.device, self.slices, self.turns, self.every_slice = device, slices, turns, every_slice
        self._common: dict[tuple[int, ...], list[int]] = {}

    def maps(
        self,
        crop: NoduleCrop,
        places: Sequence[int],
        methods: Sequence[str],
        views: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> list[dict[str, NoduleMaps]]:
        """Method -> maps of a crop by each of the models at ``places``, in the planes of ``views`` (None: a model's
        own).
        """
        maps: dict[int, dict[str, NoduleMaps]] = {}
        for group in self._alike(places):
            shown = tuple(views or self.models[group[0]].preprocess.views)
            by_model = self._group_maps(crop, group, methods, shown, options)
            maps |= dict(zip(group, by_model, strict=True))
        return [maps[place] for place in places]

    def _alike(self, places: Sequence[int]) -> list[tuple[int, ...]]:
        """Models that read the same images, together."""
        groups: dict[Any, list[int]] = {}
        for place in places:
            groups.setdefault(self.models[place].preprocess, []).append(place)
        return [tuple(group) for group in groups.values()]

    def _group_maps(
        self,
        crop: NoduleCrop,
        group: tuple[int, ...],
        methods: Sequence[str],
        views: tuple[str, ...],
        options: Mapping[str, Any],
    ) -> list[dict[str, NoduleMaps]]:
        import torch

        from lidc_xai.explain import explain_each
        from lidc_xai.explain.networks.common_trunk import common_blocks

        models = [self.models[place] for place in group]
        if group not in self._common:
            self._common[group] = common_blocks(models)
        turns = self.turns or models[0].preprocess.turns
        planes = [(view, crop_plane(crop, view).index) for view in views]
        if self.every_slice:
            planes = scanned_planes(models[0], crop, views)
            images = torch.cat([plane_images(models[0], crop, planes, turn) for turn in range(turns)])
        else:
            images = torch.cat([nodule_images(models[0], crop, views, turn, self.slices) for turn in range(turns)])
        chunks = [
            explain_each(models, chunk.to(self.device), method=methods, common=self._common[group], **options)
            for chunk in images.split(MOST_IMAGES)
        ]
        first = crop_plane(crop, views[0])
        extent = (first.image.shape[0] * first.spacing_mm[0], first.image.shape[1] * first.spacing_mm[1])
        by_model = []
        for number, model in enumerate(models):
            maps = {}
            for name in methods:
                parts = [chunk[number][name] for chunk in chunks]
                relevance = _mean_of(torch.cat([part.relevance for part in parts]), turns, len(planes), turn_back=True)
                maps[name] = NoduleMaps(
                    nodule_id=crop.nodule_id,
                    method=name,
                    views=tuple(view for view, _ in planes),
                    indices=tuple(index for _, index in planes),
                    output_names=tuple(model.output_names),
                    relevance=relevance,
                    values=_mean_of(torch.cat([part.values for part in parts]), turns, len(planes)),
                    token_mm=(extent[0] / relevance.shape[-2], extent[1] / relevance.shape[-1]),
                    engine=parts[0].engine,
                    options={k: v for k, v in parts[0].options.items() if isinstance(v, _PLAIN)} | self.averaged,
                )
            by_model.append(maps)
        return by_model

    @property
    def averaged(self) -> dict[str, int]:
        """What the maps are means over or of, where it was asked for."""
        asked = {"slices": self.slices if self.slices > 1 else 0, "turns": self.turns or 0}
        return {name: count for name, count in {**asked, "every_slice": int(self.every_slice)}.items() if count}


def _mean_of(values: torch.Tensor, turns: int, planes: int, turn_back: bool = False) -> np.ndarray:
    """(turns·planes·slices, ...) -> means over turns, each turned back where it is a map, and slices: (planes, ...)."""
    import torch

    from lidc_xai.models.inference import turned_back

    each = values.float().cpu().unflatten(0, (turns, planes, -1))
    if turn_back:
        each = torch.stack([turned_back(one, turn) for turn, one in enumerate(each)])
    return each.mean((0, 2)).numpy()


def models_for(models: Sequence[NoduleModel], patient_id: str) -> list[int]:
    """Which of several models never saw a patient; all of them where none records whom it learned from."""
    from lidc_xai.nodules.record import known_patients

    known = [known_patients(model.training_info) for model in models]
    if not any(known):
        return list(range(len(models)))
    return [place for place, patients in enumerate(known) if patients and patient_id not in patients]
