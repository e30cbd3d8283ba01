"""X_val and X_multi of a study, from an ImageNet folder, as images with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lidc_xai.errors import DataError
from lidc_xai.skipped import Skipped
from studies.folder import ImageFolder, LabelledImage, read_image_folder
from studies.multi_object import MultiObject, random_numbers, read_multi, select_multi
from studies.real_labels import read_real_labels
from studies.study_arms import StudyImage

X_VAL, X_MULTI = "X_val", "X_multi"


@dataclass(frozen=True)
class StudySets:
    """``val``: random images; ``tune``: others, to choose parameters on; ``multi``: images with two objects, whose
    ``classes`` are the pair. ``skipped``: what is not there."""

    val: tuple[StudyImage, ...]
    tune: tuple[StudyImage, ...]
    multi: tuple[StudyImage, ...]
    skipped: tuple[Skipped, ...]
    folder: ImageFolder

    def of_class(self, label: int, but: Sequence[StudyImage] = ()) -> list[Path]:
        """Images of the folder that are labelled ``label``, without those of ``but``."""
        left_out = {image.path for image in but}
        return [one.path for one in self.folder.images if one.label == label and one.path not in left_out]


def study_sets(
    folder: Path,
    *,
    ground_truth: Path | None = None,
    real: Path | None = None,
    listed: Path | None = None,
    val: int = 1000,
    tune: int = 200,
    multi: int = 1000,
    seed: int = 0,
) -> StudySets:
    """The sets from ImageNet's validation folder. ``listed``: a list of X_multi (else it is selected from the ReaL
    labels, ``real`` or those that come with timm). Images that the folder has not are counted in ``skipped``."""
    images = read_image_folder(folder, ground_truth=ground_truth)
    at_hand = images.by_number()
    drawn = random_numbers(list(at_hand), val + tune, seed, images.total)
    # the smaller draw is part of the larger one, so that X_val does not depend on ``tune``
    chosen = random_numbers(list(at_hand), val, seed, images.total)
    others = sorted(set(drawn) - set(chosen))
    if listed is not None:
        several: Sequence[MultiObject] = read_multi(listed)[:multi]
    else:
        labels = read_real_labels(real, images=images.total, classes=len(images.classes))
        several = select_multi(
            labels, images.classes.synsets, count=multi, seed=seed, available=list(at_hand)
        ).chosen  # fmt: skip
    skipped = list(images.skipped)
    absent = [one.number for one in several if one.number not in at_hand]
    if absent:
        reason = f"{len(absent)} of {len(several)} images of {listed} are not in {folder}"
        skipped.append(Skipped(f"image {absent[0]}", X_MULTI, reason))
    pairs = [_pair(at_hand[one.number], one) for one in several if one.number in at_hand]
    if len(chosen) < val:
        skipped.append(Skipped("X_val", X_VAL, f"{len(chosen)} of {val} images are in {folder}"))
    if len(pairs) < multi:
        skipped.append(Skipped("X_multi", X_MULTI, f"{len(pairs)} of {multi} images are in {folder}"))
    if not chosen:
        raise DataError(f"{folder}: holds no image of the validation set")
    return StudySets(_singles(images, chosen), _singles(images, others), tuple(pairs), tuple(skipped), images)


def _singles(images: ImageFolder, numbers: Sequence[int]) -> tuple[StudyImage, ...]:
    at_hand = images.by_number()
    return tuple(
        StudyImage(one.path.name, one.path, one.label, (one.label,)) for one in (at_hand[k] for k in numbers)
    )  # fmt: skip


def _pair(image: LabelledImage, one: MultiObject) -> StudyImage:
    return StudyImage(image.path.name, image.path, one.pair[0], one.pair)
