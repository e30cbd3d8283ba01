"""Similar rated nodules as a page shows them: a small picture with outline, ratings, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lidc_xai.nodules.similar import SimilarNodule, differs_in_words
from lidc_xai.reporting.nodule.drawing import thumbnail

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore


def drawn_neighbours(
    similar: Mapping[str, Sequence[SimilarNodule]], reference: CropStore
) -> dict[str, list[dict[str, Any]]]:
    """Each neighbour with its picture (of the user's own store; each is drawn once) and its differences in words."""
    names = {one["nodule_id"] for row in similar.values() for one in row}
    pictures = {name: thumbnail(reference.load(name)) for name in sorted(names)}
    return {
        nodule_id: [
            {**one, "words": differs_in_words(one), "picture": _plain(pictures[one["nodule_id"]])} for one in row
        ]
        for nodule_id, row in similar.items()
    }


def _plain(picture: Any) -> dict[str, Any]:
    """What a page needs of a thumbnail, as JSON holds it."""
    return {"ct": picture.ct, "consensus": picture.consensus, "width": picture.width, "height": picture.height}
