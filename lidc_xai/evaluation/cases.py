"""What the benchmark runs on: images with their targets and masks, whoever brings them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lidc_xai.errors import DataError
from lidc_xai.evaluation.geometry import Spacing


@dataclass(frozen=True, eq=False)
class Case:
    """One nodule (V planes) or one image (V = 1), and what is known about it.

    ``images``: (V,C,H,W), normalised. ``targets``: (V,) classes, or (V,2) right and wrong ones; None: every output of a
    named model, the two most probable classes of a classifier. ``masks``: (V,h,w) bool, the nodule's consensus;
    ``spacing_mm``: of the masks' pixels. ``case_id``, ``cluster`` (patient) and ``group`` (size) label the results.
    ``planes``: names of the planes. ``readers``: (V,R,h,w). ``parenchyma``: (V,h,w), for lung replacement.
    ``altered``: name → (V,C,H,W), the same as another scan would have shown it (metric ``scan``).
    ``causes``: biomarker → (V,h,w), and ``without``: biomarker → (V,C,H,W), the same images simulated without it.

    >>> Case(images, targets=labels, case_id="two planes").plane_names
    ('0', '1')
    """

    images: Tensor
    targets: Tensor | None = None
    masks: Tensor | None = None
    case_id: str = ""
    cluster: str = ""
    group: str = ""
    spacing_mm: Spacing = 1.0
    planes: tuple[str, ...] = ()
    readers: Tensor | None = None
    parenchyma: Tensor | None = None
    causes: Mapping[str, Tensor] = field(default_factory=dict)
    without: Mapping[str, Tensor] = field(default_factory=dict)
    altered: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.images.ndim != 4:
            raise DataError(f"case {self.case_id!r}: images are (V, C, H, W), got {tuple(self.images.shape)}")
        parts = {"targets": self.targets, "masks": self.masks, "readers": self.readers, "parenchyma": self.parenchyma}
        for name, part in (parts | dict(self.causes) | dict(self.without) | dict(self.altered)).items():
            if part is not None and len(part) != count:
                raise DataError(f"case {self.case_id!r}: {name} are for {len(part)} planes, images for {count}")

    @property
    def plane_names(self) -> tuple[str, ...]:
        return self.planes or tuple(str(number) for number in range(len(self.images)))


@dataclass(frozen=True)
class LazyCase:
    """A case that is made when it is its turn, and not at all where its results are there already.

    >>> LazyCase("a", lambda: Case(images)).load().images.shape
    torch.Size([2, 3, 32, 32])
    """

    case_id: str
    load: Callable[[], Case]


Sample: TypeAlias = Case | LazyCase | tuple[Tensor, Tensor | None, Tensor | None]
"""A case, or a batch (images (B,C,H,W), targets, masks) of which every image is a case of its own."""


def cases_of(samples: Iterable[Sample]) -> Iterator[LazyCase]:
    """Every sample as a case with an id; images of plain batches are numbered."""
    number = 0
    for sample in samples:
        if isinstance(sample, LazyCase):
            yield sample
        elif isinstance(sample, Case):
            yield _ready(sample if sample.case_id else replace(sample, case_id=f"{number:06d}"))
            number += 1
        else:
            for case in _of_batch(sample, number):
                yield _ready(case)
                number += 1


def _of_batch(batch: Any, number: int) -> Iterator[Case]:
    try:
        images, targets, masks = batch
    except (TypeError, ValueError):
        raise DataError(f"a sample is a Case or (images, targets, masks), got {type(batch).__name__}") from None
    images = images if images.ndim == 4 else images[None]
    targets = None if targets is None else torch.as_tensor(targets).reshape(len(images), -1)
    masks = None if masks is None else torch.as_tensor(masks).reshape(len(images), *torch.as_tensor(masks).shape[-2:])
    for b in range(len(images)):
        yield Case(
            images=images[b : b + 1],
            targets=None if targets is None else targets[b : b + 1],
            masks=None if masks is None else masks[b : b + 1],
            case_id=f"{number + b:06d}",
        )


def _ready(case: Case) -> LazyCase:
    return LazyCase(case.case_id, lambda: case)
