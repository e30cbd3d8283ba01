"""The data behind a nodule page's viewer: voxels, outlines on every slice, and the scores of every map.

The script draws what the still pictures show, from the same numbers and with the same palette, on any slice and
in any window. What it needs is one compressed block: a JSON header and raw arrays, gzip, base64. Layout before
compression: 4 bytes header length (little endian), the header as UTF-8, padding to 8 bytes, then the arrays, each
padded to 8 bytes. The header's ``arrays`` give ``dtype``, ``shape`` and ``offset`` (from the first array).
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.planes import CUT_AXIS, VIEWS, crop_plane
from lidc_xai.palette import UNSTABLE_GREY, palette
from lidc_xai.ratings import SCALES
from lidc_xai.reporting.nodule.facts import SHORT_UNITS, UNITS, method_title
from lidc_xai.reporting.nodule.geometry import DisplayPlane, turned_for_display
from lidc_xai.reporting.nodule.outlines import outline_path
from lidc_xai.reporting.pictures import pooled

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
    from lidc_xai.nodules.maps import NoduleMaps

_ALIGN = 8
_DTYPES = ("int16", "uint8", "float32")
_CONTEXT_STEP_HU = 4.0  # the context is only looked at: 4 HU are less than one grey level of the lung window


def viewer_payload(
    crop: NoduleCrop,
    maps: Mapping[str, NoduleMaps],
    limits: Mapping[str, Mapping[str, float]],
    context: NoduleCrop | None,
    home: Mapping[str, int],
    windows: Mapping[str, tuple[float, float]],
    dense: Mapping[str, NoduleMaps] = {},
) -> str:
    """Everything for the script, packed. ``limits``: method -> output -> the score of full colour; ``home``: view ->
    slice that is shown first; ``windows``: name -> HU; ``dense``: maps of every slice, shown in place of ``maps`` where
    their slice is.
    """
    arrays: dict[str, NDArray] = {"crop": differences(crop.ct)}
    volumes = {"crop": _volume(crop, 1.0, readers=True)}
    if context is not None:
        arrays["context"] = differences(context.ct, _CONTEXT_STEP_HU)
        volumes["context"] = _volume(context, _CONTEXT_STEP_HU, readers=False)
    methods = {}
    for name, item in maps.items():
        methods[name] = _method(name, item, limits[name])
        arrays |= _scores(name, item)
        every = dense.get(name)
        if every is not None and every.output_names == item.output_names:
            methods[name]["every"] = [[view, int(k)] for view, k in zip(every.views, every.indices, strict=True)]
            arrays |= _scores(name, every, "every-")
    header = {
        "volumes": volumes,
        "methods": methods,
        "outputs": [name for name in UNITS if any(name in item.output_names for item in maps.values())],
        "towards": {name: [SCALES[name].towards(-1), SCALES[name].towards(1)] for name in UNITS},
        "units": SHORT_UNITS,
        "windows": {name: list(limits_hu) for name, limits_hu in windows.items()},
        "home": dict(home),
        "palette": palette(),
        "grey": UNSTABLE_GREY,
    }
    return pack(header, arrays)


def _scores(name: str, maps: NoduleMaps, kind: str = "") -> dict[str, NDArray]:
    """A method's scores, and which of them are stable, by the names that the script knows."""
    arrays: dict[str, NDArray] = {f"{kind}map:{name}": pooled(maps.relevance)}
    if maps.repeatability is not None and maps.repeatability.stable is not None:
        arrays[f"{kind}stable:{name}"] = (pooled(maps.repeatability.stable) >= 0.5).astype(np.uint8)
    return arrays


def _method(name: str, maps: NoduleMaps, limits: Mapping[str, float]) -> dict[str, Any]:
    return {
        "title": method_title(name),
        "outputs": list(maps.output_names),
        "views": list(maps.views),
        "indices": [int(index) for index in maps.indices],
        "limits": [float(limits.get(output, 0.0)) for output in maps.output_names],
        "own": [float(np.abs(maps.relevance[:, column]).max()) for column in range(len(maps.output_names))],
    }


def _volume(crop: NoduleCrop, step: float, readers: bool) -> dict[str, Any]:
    return {
        "step": step,
        "affine": np.asarray(crop.affine, dtype=np.float64).round(5).tolist(),
        "views": {view: _view(crop, view, readers) for view in VIEWS},
    }


def _view(crop: NoduleCrop, view: str, readers: bool) -> dict[str, Any]:
    plane = turned_for_display(crop_plane(crop, view))
    height, width = plane.size_mm
    return {
        "flip": list(plane.flip),
        "letters": list(plane.letters),
        "size_mm": [height, width],
        "slices": _outlines(crop, plane, readers),
    }


def _outlines(crop: NoduleCrop, plane: DisplayPlane, readers: bool) -> dict[str, dict[str, Any]]:
    """Slice index -> ``consensus`` and ``readers`` paths, where anything is marked."""
    axis = CUT_AXIS[plane.view]
    masks = (
        [] if crop.reader_masks is None or not readers else [np.moveaxis(mask, axis, 0) for mask in crop.reader_masks]
    )
    consensus = None if crop.consensus is None else np.moveaxis(crop.consensus, axis, 0)
    outlines: dict[str, dict[str, Any]] = {}
    for index in range(crop.ct.shape[axis]):
        paths = [outline_path(plane.orient(mask[index]), plane.spacing_mm) for mask in masks]
        middle = "" if consensus is None else outline_path(plane.orient(consensus[index]), plane.spacing_mm)
        if middle or any(paths):
            outlines[str(index)] = {"consensus": middle, "readers": paths}
    return outlines


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> str:
    """Header (JSON-able) and arrays (int16, uint8 or float32) as base64 text, the same text for the same content."""
    table, blocks, offset = {}, [], 0
    for name, array in arrays.items():
        dtype = str(array.dtype)
        if dtype not in _DTYPES:
            raise TypeError(f"array {name!r} has dtype {dtype}; a page's script reads {', '.join(_DTYPES)}")
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        table[name] = {"dtype": dtype, "shape": list(array.shape), "offset": offset}
        blocks.append(data + bytes(-len(data) % _ALIGN))
        offset += len(blocks[-1])
    text = json.dumps({**header, "arrays": table}, separators=(",", ":"), allow_nan=False).encode("utf-8")
    body = len(text).to_bytes(4, "little") + text
    body += bytes(-len(body) % _ALIGN)
    return base64.b64encode(gzip.compress(body + b"".join(blocks), 6, mtime=0)).decode("ascii")


def unpack(text: str) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The inverse of ``pack``."""
    body = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    start = 4 + length + -(4 + length) % _ALIGN
    arrays = {}
    for name, entry in header.pop("arrays").items():
        count = int(np.prod(entry["shape"]))
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        arrays[name] = np.frombuffer(body, dtype, count, start + entry["offset"]).reshape(entry["shape"])
    return header, arrays


def differences(volume: NDArray, step: float = 1.0) -> NDArray[np.int16]:
    """HU (z, y, x) rounded to ``step`` and differenced along x: small numbers, which compress well.

    The script adds them up again: value[x] = step · (d[0] + … + d[x]).
    """
    levels = np.clip(np.round(np.asarray(volume, np.float32) / step), -32768 // 2, 32767 // 2).astype(np.int16)
    return np.diff(levels, axis=-1, prepend=np.int16(0)).astype(np.int16)
