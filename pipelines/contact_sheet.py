"""Twenty-four random crops of a store with the readers' outlines, to be looked at.

python pipelines/contact_sheet.py --store runs/png --out runs/png-sheet
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.imaging import CropStore, NoduleCrop
from lidc_xai.run import Run

READER_COLOURS = ("#ffb000", "#fe6100", "#dc267f", "#785ef0")
CONSENSUS_COLOUR = "#35d07f"
CAUSE_COLOURS = {"calcification": "#ff3030", "spiculation": "#00e0ff"}


class Options(Config):
    """What is drawn."""

    store: Path = Field(description="A store of crops.")
    count: int = Field(24, ge=1, description="Crops to draw.")
    causes: bool = Field(False, description="Outline known causes (simulated stores) instead of readers.")


def draw(options: Options, run: Run) -> None:
    """Draw the middle axial slice of crops drawn at random into OUT/contact_sheet.png."""
    out = need_out(options)
    store = CropStore(options.store)
    count = min(options.count, len(store))
    chosen = sorted(np.random.default_rng(options.seed).choice(store.nodule_ids, count, replace=False).tolist())
    columns = min(6, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.25 * rows), squeeze=False)
    for axis in axes.ravel()[count:]:
        axis.axis("off")
    for axis, nodule_id in zip(axes.ravel(), chosen, strict=False):
        row = store.row(nodule_id)
        _draw(axis, store.load(nodule_id), store.causes(nodule_id) if options.causes else {})
        flags = [name for name in ("padded", "larger_than_box", "simulated") if row[name]]
        title = f"{nodule_id.removeprefix('LIDC-IDRI-')}  {row['diameter']:.0f} mm"
        axis.set_title("\n".join([title, " ".join(flags).upper()]), fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "contact_sheet.png", dpi=90)
    print(out / "contact_sheet.png")


def _draw(axis: Axes, crop: NoduleCrop, causes: dict[str, np.ndarray]) -> None:
    middle = crop.ct.shape[0] // 2
    axis.imshow(crop.ct[middle], cmap="gray", vmin=-1350, vmax=150, interpolation="nearest")
    axis.axis("off")
    for name, mask in causes.items():
        if name in CAUSE_COLOURS and mask[middle].any():
            axis.contour(mask[middle], [0.5], colors=CAUSE_COLOURS[name], linewidths=1.0)
    if causes:
        return
    for number, mask in enumerate([] if crop.reader_masks is None else crop.reader_masks):
        if mask[middle].any():
            axis.contour(mask[middle], [0.5], colors=READER_COLOURS[number % 4], linewidths=0.8)
    if crop.consensus is not None and crop.consensus[middle].any():
        axis.contour(crop.consensus[middle], [0.5], colors=CONSENSUS_COLOUR, linewidths=1.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("contact_sheet", Options, draw, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
