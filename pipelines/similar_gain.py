"""Are a model's similar nodules closer in ratings than those of the same size? By folds that never saw the patient.

    python pipelines/similar_gain.py --store runs/png --run runs/real --out runs/similar

Queries are the nodules of the run's predictions; the pool is every rated nodule of the store of another patient.
Writes similar_gain.csv and prints it as Markdown: per rating the distance (standard deviations) to the five nearest by
the model's features and to the five of the nearest diameter, and the paired difference, with intervals by patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import Field

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.imaging import CropStore
from lidc_xai.nodules import similar_nodules, similarity_gain
from lidc_xai.nodules._predict import load_models
from lidc_xai.run import Run
from lidc_xai.training.loop.run_files import read_predictions


class Options(Config):
    """A cross-validated run and its store."""

    run: Path = Field(description="A folder that cross-validate wrote.")
    store: Path = Field(description="The store of that run.")
    count: int = Field(5, ge=1, description="Neighbours of each nodule.")
    limit: int | None = Field(None, ge=1, description="Only the first so many nodules.")


def similar_gain(options: Options, run: Run) -> None:
    """Find the neighbours, measure, write."""
    out, store = need_out(options), CropStore(options.store)
    ids = list(read_predictions(options.run, ("nodule_id",))["nodule_id"])[: options.limit]
    near = similar_nodules(load_models(options.run), store, ids, count=options.count, cache=out / "features")
    gain = similarity_gain(store, near, options.seed)
    rows = [
        {"rating": name, **{f"{figure} {end}": getattr(found[figure], end) for figure in _FIGURES for end in _ENDS}}
        for name, found in {"mean of all": gain, **gain["by_rating"]}.items()
    ]
    write_csv(out / "similar_gain.csv", pd.DataFrame(rows))
    print(f"{gain['nodules']} nodules of {gain['difference'].clusters} patients")
    print("| rating | model's five | five of the same size | difference |\n|---|---|---|---|")
    for row in rows:
        cells = [f"{row[f'{one} mean']:.3f} [{row[f'{one} low']:.3f}, {row[f'{one} high']:.3f}]" for one in _FIGURES]
        print(f"| {row['rating']} | {' | '.join(cells)} |")


_FIGURES = ("by_model", "by_size", "difference")
_ENDS = ("mean", "low", "high")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("similar_gain", Options, similar_gain, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
