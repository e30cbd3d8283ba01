"""Maps of a store's nodules: estimators of ``explain`` on the planes of ``imaging``, kept with their geometry.

A nodule's map is the set of planes that were evaluated (axial, coronal, sagittal middle slices by default), each a
token grid over the crop's plane. Raw and signed: scaling for the eye is the reporting's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, read_json, write_json
from lidc_xai.imaging.planes import crop_plane, planes_of
from lidc_xai.npz import read_npz
from lidc_xai.progress import track

if TYPE_CHECKING:
    import torch

    from lidc_xai.explain import Explanation
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel


RANDOM_WEIGHTS = "random_weights"
"""Name of the control whose maps come from the same network before it learned anything."""


@dataclass(frozen=True)
class NoduleMaps:
    """One method's maps of one nodule.

    relevance: (V,T,gh,gw) float32, raw signed scores on the token grid of each view ((V,T,H,W) for pixel methods).
    values: (V,T) the explained scores. token_mm: (row, column) extent of one cell of the map in mm.

    >>> (found,) = explain_nodules(model, [crop])
    >>> found["cdam"].views, found["cdam"].token_mm
    (('axial', 'coronal', 'sagittal'), (8.0, 8.0))
    """

    nodule_id: str
    method: str
    views: tuple[str, ...]
    indices: tuple[int, ...]
    output_names: tuple[str, ...]
    relevance: np.ndarray
    values: np.ndarray
    token_mm: tuple[float, float]
    engine: str
    options: dict[str, Any]

    def save(self, folder: Path | str) -> Path:
        """Write ``folder/<nodule_id>/<method>.npz`` (two arrays and their description as JSON text; no pickle)."""
        path = Path(folder) / self.nodule_id / f"{self.method}.npz"
        meta = {
            "nodule_id": self.nodule_id,
            "method": self.method,
            "views": self.views,
            "indices": self.indices,
            "output_names": self.output_names,
            "token_mm": self.token_mm,
            "engine": self.engine,
            "options": self.options,
        }
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, relevance=self.relevance, values=self.values, meta=np.array(json.dumps(meta)))
        return path


def load_maps(folder: Path | str, nodule_id: str, method: str) -> NoduleMaps:
    """Read what ``NoduleMaps.save`` wrote; ``DataError`` where the file is absent or not such a file.

    >>> maps = maps_of_store(model, store, folder / "kept", store.nodule_ids[:1], ["cdam"])
    >>> load_maps(folder / "kept" / "maps", store.nodule_ids[0], "cdam").method
    'cdam'
    """
    path = Path(folder) / nodule_id / f"{method}.npz"
    try:
        arrays = read_npz(path, ("meta", "relevance", "values"))
        meta = json.loads(str(arrays["meta"]))
        for name in ("views", "indices", "output_names", "token_mm"):
            meta[name] = tuple(meta[name])
        return NoduleMaps(relevance=arrays["relevance"], values=arrays["values"], **meta)
    except FileNotFoundError:
        raise DataError(f"{path}: no such map; run lidc-xai explain --method {method} first") from None
    except (DataError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: is not a map of lidc-xai explain ({reason}); delete it and explain again") from None


def nodule_images(
    model: NoduleModel, crop: NoduleCrop, views: Sequence[str] | None = None, turn: int = 0
) -> torch.Tensor:
    """Model input of a crop: its middle plane in each view (None: those that the model reads), (V,3,S,S).

    ``turn``: 1 to 7 for the same planes turned and mirrored, as ``models.turns.turned`` counts.

    >>> nodule_images(model, crop).shape
    torch.Size([3, 3, 32, 32])
    """
    import torch

    from lidc_xai.models.turns import turned

    read = replace(model.preprocess, slices=1)
    read.check(crop)
    planes = [torch.from_numpy(planes_of(crop, (view,), read.planes_read)) for view in views or read.views]
    return torch.cat([read.apply(turned(read.inputs(each), turn)) for each in planes])


def explain_nodules(
    model: NoduleModel,
    crops: Iterable[NoduleCrop],
    methods: Sequence[str] = ("cdam",),
    views: Sequence[str] | None = None,
    device: str = "cpu",
    **options: Any,
) -> Iterable[dict[str, NoduleMaps]]:
    """Maps of every output for each crop in turn: method -> ``NoduleMaps``. All methods share one pass of the trunk.

    ``views``: None for those that the model reads. Of a model that averages its outputs over the eight turns and
    mirrors, the map is the mean of the eight maps, each turned back.

    >>> (found,) = explain_nodules(model, [crop])
    >>> found["cdam"].relevance.shape
    (3, 3, 4, 4)
    """
    views = views or model.preprocess.views
    model = model.to(device).eval()
    for crop in crops:
        planes = [crop_plane(crop, view) for view in views]
        images = [nodule_images(model, crop, views, turn).to(device) for turn in range(model.preprocess.turns)]
        explained = _explained(model, images, methods, options)
        yield {
            name: NoduleMaps(
                nodule_id=crop.nodule_id,
                method=name,
                views=tuple(views),
                indices=tuple(plane.index for plane in planes),
                output_names=tuple(model.output_names),
                relevance=relevance.numpy(),
                values=values.numpy(),
                token_mm=_cell_mm(planes[0].image.shape, planes[0].spacing_mm, relevance.shape[-2:]),
                engine=explanation.engine,
                options={key: value for key, value in explanation.options.items() if _is_plain(value)},
            )
            for name, (relevance, values, explanation) in explained.items()
        }


def _explained(
    model: NoduleModel, turns: Sequence[torch.Tensor], methods: Sequence[str], options: dict[str, Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, Explanation]]:
    """Method -> relevance and values, means over the ``turns`` of the images, and one explanation."""
    import torch

    from lidc_xai.explain import explain
    from lidc_xai.models.turns import turned_back

    each = [explain(model, images, method=list(methods), **options) for images in turns]
    means = {}
    for name in each[0]:
        maps = [turned_back(one[name].relevance.float().cpu(), turn) for turn, one in enumerate(each)]
        values = [one[name].values.float().cpu() for one in each]
        means[name] = torch.stack(maps).mean(0), torch.stack(values).mean(0), each[0][name]
    return means


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
    folder = Path(out) / "maps"
    _check_same(
        folder / "explained.json", {"model": digest or weights_digest(model), "store": store.path.name, **options}
    )
    wanted = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    missing = [name for name in wanted if not all((folder / name / f"{method}.npz").exists() for method in methods)]
    crops = (store.load(name) for name in missing)
    for maps in track(explain_nodules(model, crops, methods, device=device, **options), "explain", len(missing)):
        for by_method in maps.values():
            by_method.save(folder)
    return wanted


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


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names and values of a model's weights, in hexadecimal."""
    from lidc_xai.models.digest import tensors_digest

    return tensors_digest(model.state_dict())


def _check_same(path: Path, made_with: dict[str, Any]) -> None:
    text = json.dumps(made_with, default=str, sort_keys=True)
    if not path.exists():
        write_json(path, json.loads(text))
    elif read_json(path) != json.loads(text):
        raise UsageError(f"{path.parent}: holds maps of another model, store or options; choose another --out")


def _cell_mm(shape: Sequence[int], spacing_mm: Sequence[float], grid: Sequence[int]) -> tuple[float, float]:
    return (shape[0] * spacing_mm[0] / grid[0], shape[1] * spacing_mm[1] / grid[1])


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
