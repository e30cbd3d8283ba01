"""One nodule's maps by one method, and their file: raw, signed, with the planes they lie on.

A mean over models also knows how far these draw it alike (``Repeatability``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.bounded import read_npz
from lidc_xai.errors import DataError
from lidc_xai.files import atomic_path
from lidc_xai.imaging.planes import VIEWS


@dataclass(frozen=True)
class Repeatability:
    """How far the models behind a mean map draw it alike (docs/trust.md).

    models: what names each of them. standard_error: of the mean over models, shape and unit of ``relevance``. stable:
    the same shape, patches whose sign is expected to stay (5 % false discoveries); None where that cannot be told, and
    ``note`` says why. Output -> ``agreement`` (mean rank correlation between two of the models), ``expected`` (between
    this mean and that of as many other models; 0 where single ones do not agree) and ``stable_share`` (share of Σ|mean|
    on stable patches); None where undefined.

    >>> third = build_model("vit_nodule_p8", ("malignancy",), size=32, seed=2)
    >>> second = build_model("vit_nodule_p8", ("malignancy",), size=32, seed=1)
    >>> (maps,) = explain_nodules([second, third], [crop])
    >>> maps["cdam"].repeatability.note
    'stable patches need three models or more, here are 2'
    """

    models: tuple[str, ...]
    standard_error: NDArray[np.float32]
    stable: NDArray[np.bool_] | None
    agreement: dict[str, float | None]
    expected: dict[str, float | None]
    stable_share: dict[str, float | None]
    note: str = ""

    def described(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON can hold it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _ARRAYS}

    def of(self, output: str) -> dict[str, Any]:
        """The figures of one output, as JSON can hold them."""
        figures = {name: getattr(self, name)[output] for name in ("agreement", "expected", "stable_share")}
        return {"models": len(self.models), **figures, "note": self.note}


_ARRAYS = ("standard_error", "stable")


@dataclass(frozen=True)
class NoduleMaps:
    """One method's maps of one nodule.

    relevance: (V,T,gh,gw) float32, raw signed scores on the token grid of each view ((V,T,H,W) for pixel methods).
    values: (V,T) the explained scores. token_mm: (row, column) extent of one cell of the map in mm. repeatability: of a
    mean over several models; None for a map by one model, whose repeatability is unknown.

    >>> (maps,) = explain_nodules(model, [crop])
    >>> maps["cdam"].views, maps["cdam"].token_mm
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
    repeatability: Repeatability | None = None

    def layers(self) -> dict[str, NoduleMaps]:
        """What a viewer can show of it, by the end of its file's name: "" the map itself; of a mean over models also
        "_standard_error" and, where it is known, "_stable" (1 on patches whose sign is stable, else 0).

        >>> (maps,) = explain_nodules(model, [crop])
        >>> list(maps["cdam"].layers())
        ['']
        """
        layers = {"": self}
        if self.repeatability is not None:
            layers["_standard_error"] = replace(self, relevance=self.repeatability.standard_error)
            if self.repeatability.stable is not None:
                layers["_stable"] = replace(self, relevance=self.repeatability.stable.astype(np.float32))
        return layers

    def save(self, folder: Path | str) -> Path:
        """Write ``folder/<nodule_id>/<method>.npz`` (arrays and their description as JSON text; no pickle)."""
        path = Path(folder) / self.nodule_id / f"{self.method}.npz"
        meta: dict[str, Any] = {
            "nodule_id": self.nodule_id,
            "method": self.method,
            "views": self.views,
            "indices": self.indices,
            "output_names": self.output_names,
            "token_mm": self.token_mm,
            "engine": self.engine,
            "options": self.options,
        }
        arrays = {"relevance": self.relevance, "values": self.values}
        if self.repeatability is not None:
            meta["repeatability"] = self.repeatability.described()
            held = {name: getattr(self.repeatability, name) for name in _ARRAYS}
            arrays |= {name: array for name, array in held.items() if array is not None}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays, meta=np.array(json.dumps(meta)))  # type: ignore[arg-type]
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
        if "repeatability" in meta:
            meta["repeatability"] = _repeatability(path, meta["repeatability"])
        maps = NoduleMaps(relevance=arrays["relevance"], values=arrays["values"], **meta)
        _check(maps, nodule_id, method)
        return maps
    except FileNotFoundError:
        raise DataError(f"{path}: no such map; run lidc-xai explain --method {method} first") from None
    except (DataError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: is not a map of lidc-xai explain ({reason}); delete it and explain again") from None


def _check(maps: NoduleMaps, nodule_id: str, method: str) -> None:
    """``ValueError`` where what every reader takes for granted does not hold: names, planes, shapes, numbers."""
    if (maps.nodule_id, maps.method) != (nodule_id, method):
        raise ValueError(f"it is of {maps.nodule_id!r} by {maps.method!r}")
    planes, outputs = len(maps.views), len(maps.output_names)
    if not planes or not set(maps.views) <= set(VIEWS) or not all(type(index) is int for index in maps.indices):
        raise ValueError(f"views {maps.views} and indices {maps.indices} are no planes")
    if len(maps.indices) != planes or min(maps.indices) < 0:
        raise ValueError(f"{planes} views have {len(maps.indices)} indices, or some below 0")
    if not outputs or not all(isinstance(name, str) for name in maps.output_names):
        raise ValueError("its outputs have no names")
    _check_array("relevance", maps.relevance, (planes, outputs, *maps.relevance.shape[2:]), dimensions=4)
    _check_array("values", maps.values, (planes, outputs), dimensions=2)
    if len(maps.token_mm) != 2 or not all(isinstance(mm, float) and 0 < mm < math.inf for mm in maps.token_mm):
        raise ValueError(f"token_mm {maps.token_mm} is no size of a cell")
    if not isinstance(maps.engine, str) or not isinstance(maps.options, dict):
        raise ValueError("engine or options are of another kind")
    if maps.repeatability is not None:
        _check_repeatability(maps.repeatability, maps)


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dimensions: int, kind: str = "f") -> None:
    if array.dtype.kind != kind or array.ndim != dimensions or array.shape != shape or not array.size:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are no numbers")


def _check_repeatability(held: Repeatability, maps: NoduleMaps) -> None:
    _check_array("standard_error", held.standard_error, maps.relevance.shape, dimensions=4)
    if held.stable is not None:
        _check_array("stable", held.stable, maps.relevance.shape, dimensions=4, kind="b")
    for name in ("agreement", "expected", "stable_share"):
        figures = getattr(held, name)
        if set(figures) != set(maps.output_names) or not all(
            value is None or isinstance(value, int | float) for value in figures.values()
        ):
            raise ValueError(f"{name} has no figure for every output")
    if not isinstance(held.note, str) or not all(isinstance(name, str) for name in held.models):
        raise ValueError("note or models are of another kind")


def _repeatability(path: Path, described: dict[str, Any]) -> Repeatability:
    """A note says that no patch could be told stable: then there is no such array."""
    names = _ARRAYS[:1] if described["note"] else _ARRAYS
    arrays = {**dict.fromkeys(_ARRAYS), **read_npz(path, names)}
    return Repeatability(**{**described, "models": tuple(described["models"]), **arrays})
