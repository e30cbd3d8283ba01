"""ReaL labels: every class that annotators saw in each ImageNet validation image (Beyer et al. 2020, Apache-2.0).

A JSON list with one list of class numbers per image, in the order of the images' numbers; a list may be empty. timm
carries the published file, so that nothing has to be fetched.
"""

from __future__ import annotations

import json
from pathlib import Path

from lidc_xai.errors import DataError, UsageError

VALIDATION_IMAGES = 50_000
Labels = tuple[tuple[int, ...], ...]


def read_real_labels(path: Path | str | None = None, *, images: int = VALIDATION_IMAGES, classes: int = 1000) -> Labels:
    """One tuple of classes per image; ``path`` None: the published file, which comes with timm.

    ``UsageError`` for a missing file; ``DataError`` where it is no such list, has another number of images than
    ``images``, or names a class that is none of ``classes``.
    """
    file = _published() if path is None else Path(path)
    if not file.is_file():
        raise UsageError(f"{file}: no such file of ReaL labels (real.json)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON of ReaL labels ({error})") from None
    if not isinstance(content, list):
        raise DataError(f"{file}: wanted one list of classes per image, got a {type(content).__name__}")
    if len(content) != images:
        raise DataError(f"{file}: has labels of {len(content)} images, the set has {images}; give the file of this set")
    for number, labels in enumerate(content, start=1):
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
            raise DataError(f"{file}: image {number} has {str(labels)[:60]}; wanted class numbers 0 to {classes - 1}")
    return tuple(tuple(labels) for labels in content)


def _published() -> Path:
    import timm.data

    return Path(timm.data.__file__).with_name("_info") / "imagenet_real_labels.json"
