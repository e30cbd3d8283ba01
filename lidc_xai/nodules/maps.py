"""Maps of a store's nodules: estimators of ``explain`` on the planes of ``imaging``, kept with their geometry.

A nodule's map is the set of planes that were evaluated (axial, coronal, sagittal middle slices by default), each a
token grid over the crop's plane. Raw and signed: scaling for the eye is the reporting's business. Several models give
their mean map and how far they draw it alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidc_xai.errors import UsageError
from lidc_xai.files import read_json, write_json
from lidc_xai.models.digest import check_different, weights_digest
from lidc_xai.nodules.ensemble import Ensemble, models_for, nodule_images
from lidc_xai.nodules.map_record import NoduleMaps, Repeatability, load_maps
from lidc_xai.nodules.mean_maps import Member, mean_maps, shared_outputs, shared_views
from lidc_xai.progress import track

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel
    from lidc_xai.nodules._predict import Crops, Models

__all__ = [
    "RANDOM_WEIGHTS", "NoduleMaps", "Repeatability", "explain_nodules", "explain_store", "load_maps", "maps_of_store",
    "nodule_images",
]  # fmt: skip

RANDOM_WEIGHTS = "random_weights"
"""Name of the control whose maps come from the same network before it learned anything."""


def explain_nodules(
    models: Models,
    crops_or_store: Crops,
    method: str | Sequence[str] = ("cdam",),
    views: Sequence[str] | None = None,
    device: str = "cpu",
    *,
    nodule_ids: Sequence[str] | None = None,
    slices: int = 1,
    turns: int | None = None,
    every_slice: bool = False,
    **options: Any,
) -> Iterator[dict[str, NoduleMaps]]:
    """Maps of every output for each crop in turn: method -> ``NoduleMaps``. All methods share one pass of the trunk.

    ``models``: a model, or several (models, folders, cross-validated runs): then each map is the mean over those that
    never saw the nodule's patient (over all where every model saw it, as ``predict`` does), on the outputs, planes and
    grid that they share, and brings its ``repeatability``. Stable patches are told from what the other patients' maps
    say of the noise, so that all crops are explained before the first result is there. ``crops_or_store``: crops, or a
    store, from which ``nodule_ids`` chooses.

    ``views``: None for those that the models read. ``slices``: planes about the middle of each view whose maps are
    averaged. ``turns``: 8 averages over the turns and mirrors of the input, each map turned back; None: as the model
    averages its outputs. ``every_slice``: a map of every slice that was scanned instead of the middle one, so that
    ``views`` and ``indices`` of a result name each plane. ``options``: of the methods.

    Raises ``UsageError`` for models that share no output or no plane, and for two copies of one model.

    >>> (maps,) = explain_nodules(model, [crop])
    >>> maps["cdam"].relevance.shape
    (3, 3, 4, 4)
    >>> seeds = [build_model("vit_nodule_p8", ("malignancy", "margin"), size=32, seed=seed) for seed in range(3)]
    >>> maps = next(explain_nodules(seeds, store, "cdam"))["cdam"]
    >>> maps.repeatability.standard_error.shape == maps.relevance.shape, sorted(maps.repeatability.agreement)
    (True, ['malignancy', 'margin'])
    """
    from lidc_xai.nodules._predict import crops_of, loaded_models

    each = loaded_models(models)
    methods = [method] if isinstance(method, str) else list(method)
    crops = crops_of(crops_or_store, nodule_ids)
    ensemble = Ensemble(each, device, slices, turns, every_slice)
    if len(each) == 1:
        return (ensemble.maps(crop, [0], methods, views, options)[0] for crop, _ in crops)
    return _explain_together(ensemble, crops, methods, views, options)


def _explain_together(
    ensemble: Ensemble,
    crops: Iterable[tuple[NoduleCrop, str]],
    methods: Sequence[str],
    views: Sequence[str] | None,
    options: dict[str, Any],
) -> Iterator[dict[str, NoduleMaps]]:
    digests = [weights_digest(model) for model in ensemble.models]
    check_different(digests)
    shared_outputs(ensemble.models)
    planes = shared_views(ensemble.models, views)
    members: list[dict[str, list[Member]]] = []
    patients: list[str] = []
    for crop, patient in crops:
        places = models_for(ensemble.models, patient) or list(range(len(ensemble.models)))
        by_model = ensemble.maps(crop, places, methods, planes, options)
        members.append(
            {
                name: [Member(digests[place], maps[name]) for place, maps in zip(places, by_model, strict=True)]
                for name in methods
            }
        )
        patients.append(patient)
    means = {name: mean_maps([nodule[name] for nodule in members], patients) for name in methods}
    for results in zip(*means.values(), strict=True):
        yield dict(zip(means, results, strict=True))


def explain_store(
    model: NoduleModel,
    store: CropStore,
    out: Path | str,
    nodule_ids: Sequence[str] | None = None,
    methods: Sequence[str] = ("cdam",),
    device: str = "cpu",
    digest: str | None = None,
    **options: Any,
) -> list[str]:
    """Explain nodules of a store into ``out/maps``; those whose maps lie there already are kept. Returns the ids.

    ``digest``: what names the model, where the caller knows it (None: ``weights_digest``, which reads every weight).
    Raises ``UsageError`` where ``out`` holds maps of another model or with other options.

    >>> explain_store(model, store, folder / "maps", store.nodule_ids[:1]) == store.nodule_ids[:1]
    True
    """
    wanted = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    ensemble, digests = Ensemble([model], device), [digest or weights_digest(model)]
    explain_members(ensemble, store, [Path(out)], digests, {name: [0] for name in wanted}, methods, options)
    return wanted


def explain_members(
    ensemble: Ensemble,
    store: CropStore,
    folders: Sequence[Path],
    digests: Sequence[str],
    places: dict[str, list[int]],
    methods: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Explain each nodule by the models at its ``places``, each into its own folder's ``maps``; what lies there is
    kept. Models that share planes or blocks compute them once.
    """
    for place in sorted({place for each in places.values() for place in each}):
        made_with = {"model": digests[place], "store": store.path.name, **options, **ensemble.averaged}
        check_same(folders[place] / "maps" / "explained.json", made_with)
    missing: dict[str, list[int]] = {}
    for nodule_id, each in places.items():
        files = {place: [folders[place] / "maps" / nodule_id / f"{name}.npz" for name in methods] for place in each}
        absent = [place for place in each if not all(path.exists() for path in files[place])]
        if absent:
            missing[nodule_id] = absent
    for nodule_id, absent in track(missing.items(), "explain", len(missing)):
        by_model = ensemble.maps(store.load(nodule_id), absent, methods, None, options)
        for place, maps in zip(absent, by_model, strict=True):
            for item in maps.values():
                item.save(folders[place] / "maps")


def maps_of_store(
    model: NoduleModel,
    store: CropStore,
    folder: Path | str,
    nodule_ids: Sequence[str],
    methods: Sequence[str],
    device: str = "cpu",
    **options: Any,
) -> dict[str, dict[str, NoduleMaps]]:
    """Method -> nodule id -> maps, read from ``folder/maps``; what is not there yet is computed into it.

    >>> maps = maps_of_store(model, store, folder / "of-store", store.nodule_ids[:1], ["cdam"])
    >>> maps["cdam"][store.nodule_ids[0]].output_names
    ('malignancy', 'spiculation', 'margin')
    """
    explain_store(model, store, folder, nodule_ids, methods, device, **options)
    return {name: {key: load_maps(Path(folder) / "maps", key, name) for key in nodule_ids} for name in methods}


def check_same(path: Path, made_with: dict[str, Any]) -> None:
    """Note what the maps beside ``path`` are made with; ``UsageError`` where that is something else than before."""
    text = json.dumps(made_with, default=str, sort_keys=True)
    if not path.exists():
        write_json(path, json.loads(text))
    elif read_json(path) != json.loads(text):
        raise UsageError(f"{path.parent}: holds maps of another model, store or options; choose another --out")
