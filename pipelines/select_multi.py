"""Choose X_multi: images of ImageNet's validation set whose ReaL labels name different objects.

Needs no images: the ReaL labels come with timm (or --real FILE) and WordNet's hypernyms with this package. Writes the
list (x_multi.csv: image number, labels, the pair that is farthest apart, its WordNet distance), how many were left at
each stage (x_multi.json), and both in words (README.md).

    python pipelines/select_multi.py --out runs/x-multi
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from studies.multi_object import COUNT, MAX_OVERLAP, MIN_DISTANCE, MultiSelection, select_multi, write_multi
from studies.real_labels import read_real_labels

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.files import write_json, write_text
from lidc_xai.imagenet import ClassNames
from lidc_xai.run import Run

ATTRIBUTION = (
    "ReaL labels: Beyer, Hénaff, Kolesnikov, Zhai, van den Oord, Are we done with ImageNet? (2020), google-research/"
    "reassessed-imagenet, Apache-2.0. Distances: WordNet 3.0, Princeton University."
)


class Options(Config):
    """How images are chosen."""

    real: Path | None = Field(None, description="real.json (none: the published file, which comes with timm).")
    count: int = Field(COUNT, ge=1, description="Images to choose.")
    min_distance: float = Field(MIN_DISTANCE, ge=0, description="WordNet distance of two objects.")
    max_overlap: float = Field(MAX_OVERLAP, ge=0, le=1, description="Share of images with both of a pair.")


def select(given: Options, run: Run) -> None:
    """Select and write."""
    out, names = need_out(given), ClassNames.of_imagenet(1000)
    assert names is not None
    options = given.model_dump(include={"count", "min_distance", "max_overlap", "seed"})
    selection = select_multi(read_real_labels(given.real), names.synsets, **options)
    write_multi(out / "x_multi.csv", selection)
    write_json(out / "x_multi.json", {"options": options, "counts": selection.counts})
    write_text(out / "README.md", in_words(selection, names, options))
    print(f"{len(selection.chosen)} of {selection.counts['images_with_different_objects']} images; see {out}")


def in_words(selection: MultiSelection, names: ClassNames, options: dict[str, object]) -> str:
    """The counts as a page."""
    counts = selection.counts
    by_labels = counts["images_by_labels"]
    assert isinstance(by_labels, dict)
    pairs = Counter(tuple(sorted(one.pair)) for one in selection.chosen)
    often = [f"{names.short(a)} and {names.short(b)} ({times})" for (a, b), times in pairs.most_common(8)]
    distances = sorted(one.distance for one in selection.chosen)
    lines = [
        "# X_multi: validation images with several objects",
        "",
        f"Chosen by {', '.join(f'{key} {value}' for key, value in options.items())}.",
        "",
        "| stage | count |",
        "|---|---|",
        f"| images with ReaL labels | {counts['images']} |",
        *(f"| of which with {number} label{'s' * (number != 1)} | {times} |" for number, times in by_labels.items()),
        f"| different pairs of labels in one image | {counts['pairs']} |",
        f"| … at least {options['min_distance']} apart | {counts['pairs_far_apart']} |",
        f"| … and an overlap of at most {options['max_overlap']} | {counts['pairs_of_different_objects']} |",
        f"| images with a pair that far apart | {counts['images_with_far_pair']} |",
        f"| images with different objects | {counts['images_with_different_objects']} |",
        f"| **chosen** | {counts['selected']} |",
        "",
        f"{len(pairs)} different pairs; median distance {distances[len(distances) // 2]:.2f}; most often: "
        f"{', '.join(often)}." if distances else "No image is left.",
        "",
        "x_multi.csv: `image` is the number in ILSVRC2012_val_00000001, `labels` and `pair` are class numbers from 0.",
        "",
        ATTRIBUTION,
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("select_multi", Options, select, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
