"""A sheet for every nodule: each edit by dose, to be looked at for halos, seams and noise that does not belong.

python pipelines/edit_sheet.py --store runs/png --out runs/edit-sheet
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from lidc_xai.commands.common import need_out, usable_nodules, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.imaging import CropStore, NoduleCrop
from lidc_xai.run import Run
from lidc_xai.simulate import EDITS, edit_nodule
from lidc_xai.skipped import Skipped

DOSES = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0)
EDITED_COLOUR, RIM_COLOUR = "#ff6a00", "#35d07f"


class Options(Config):
    """What is drawn."""

    store: Path = Field(description="A store of crops.")
    nodule: list[str] = Field([], description="Nodule ids; six drawn at random by default.")
    count: int = Field(6, ge=1, description="Nodules, where none are named.")
    outlines: bool = Field(True, description="Rim (green) and edited voxels (orange); off with --set.")


def draw(options: Options, run: Run) -> None:
    """OUT/<nodule>-EDITED.png: rows are edits, columns doses, the middle axial slice in the lung window."""
    out, store = need_out(options), CropStore(options.store)
    ids = usable_nodules(store, words(options.nodule), run)
    if not options.nodule:
        ids = sorted(np.random.default_rng(options.seed).choice(ids, min(options.count, len(ids)), replace=False))
    for nodule_id in ids:
        try:
            edit_nodule(store.load(nodule_id), "subtlety", 1.0, options.seed)
        except DataError as error:
            run.skipped.append(Skipped(nodule_id, "edit", str(error)))
            continue
        print(sheet(store.load(nodule_id), out / f"{nodule_id}-EDITED.png", options.seed, options.outlines))


def sheet(crop: NoduleCrop, path: Path, seed: int, outlines: bool) -> Path:
    """Draw every edit of one crop."""
    figure, axes = plt.subplots(len(EDITS), len(DOSES), figsize=(2 * len(DOSES), 2.15 * len(EDITS)))
    for row, name in enumerate(EDITS):
        for axis, dose in zip(axes[row], DOSES, strict=True):
            axis.axis("off")
            if dose < EDITS[name].lowest or (name == "remove" and dose not in (0, 1)):
                continue
            axis.set_title(f"{name} {dose:+g}" if dose else name, fontsize=8)
            try:
                _draw(axis, *edit_nodule(crop, name, dose, seed), outlines)
            except DataError as error:
                axis.text(0.5, 0.5, fill(str(error).split(": ", 1)[-1], 24), fontsize=6, ha="center", va="center")
    figure.suptitle(f"EDITED CT: {crop.nodule_id}, columns by dose", fontsize=10)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, wspace=0.03, hspace=0.15)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _draw(axis: Axes, crop: NoduleCrop, changed: np.ndarray, outlines: bool) -> None:
    middle = crop.ct.shape[0] // 2
    axis.imshow(crop.ct[middle], cmap="gray", vmin=-1350, vmax=400, interpolation="nearest")
    if outlines and changed[middle].any():
        axis.contour(changed[middle], [0.5], colors=EDITED_COLOUR, linewidths=0.6)
    if outlines and crop.consensus is not None and crop.consensus[middle].any():
        axis.contour(crop.consensus[middle], [0.5], colors=RIM_COLOUR, linewidths=0.6)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("edit_sheet", Options, draw, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
