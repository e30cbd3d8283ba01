"""The structures of a label volume (NIfTI, NRRD, MetaImage), 3D Slicer's layered .seg.nrrd and its names included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError
from lidc_xai.imaging.ct.formats.header import Segment, VolumeHeader, check_affine
from lidc_xai.imaging.ct.formats.volume_file import read_header, read_volume

_MOST_LABELS = 1000


def read_label_volume(path: Path) -> tuple[Iterator[tuple[str, str, NDArray[np.bool_]]], VolumeHeader]:
    """Name, label and mask (z, y, x) of every structure, one after the other, and the header with affine and issues.

    Structures are 3D Slicer's segments where the file names them, and every other value above 0 is ``label<value>``.
    DataError for a file that is not one volume of whole numbers, or has more than 1000 different ones.
    """
    header = read_header(path)
    if len(header.sizes) != (3 if header.list_axis is None else 4):
        raise DataError(f"{path}: is not one 3D volume of labels (size {header.sizes})")
    check_affine(header.affine, path)
    values, header = read_volume(path)
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise DataError(f"{path}: has values that are no whole numbers; a label volume is expected")
    if header.list_axis is None:
        layers = values[np.newaxis]
    elif header.segments:  # the last axis of the file comes first here
        layers = np.moveaxis(values, values.ndim - 1 - header.list_axis, 0)
    else:
        raise DataError(f"{path}: is not one 3D volume of labels (size {header.sizes}, and no segments are named)")
    return _structures(path, layers, header.segments), header


def _structures(
    path: Path, layers: NDArray[np.generic], segments: list[Segment]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    named = {(one.layer, one.label) for one in segments}
    unnamed = []
    for layer, values in enumerate(layers):
        present = [int(value) for value in np.unique(values) if value > 0]
        if len(present) > _MOST_LABELS:
            raise DataError(f"{path}: has {len(present)} different values; this is an image, not labels")
        suffix = f"-layer{layer}" if len(layers) > 1 else ""
        unnamed += [(f"label{value}{suffix}", layer, value) for value in present if (layer, value) not in named]
    for number, one in enumerate(segments, start=1):
        if 0 <= one.layer < len(layers):
            yield f"segment{number}-{one.name}", one.name, layers[one.layer] == one.label
    for name, layer, value in unnamed:
        yield name, name, layers[layer] == value
