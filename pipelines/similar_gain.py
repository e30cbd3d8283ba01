"""Are a model's similar nodules closer in ratings than those of the same size? By folds that never saw the patient.

    python pipelines/similar_gain.py --store runs/png --run runs/real --out runs/similar

Queries are the nodules of the run's predictions; the pool is every rated nodule of the store of another patient.
Writes similar_gain.csv and prints it as Markdown: per rating the distance (standard deviations) to the five nearest by
the model's features and to the five of the nearest diameter, and the paired difference, with intervals by patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.evaluation.statistics import Interval, bootstrap_mean
from lidc_xai.imaging import CropStore
from lidc_xai.nodules import SimilarNodule, similar_nodules
from lidc_xai.nodules._predict import load_models
from lidc_xai.nodules.similar import mean_ratings
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_predictions


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


class Gain(TypedDict):
    """Distance in ratings (standard deviations) of a nodule to its neighbours: the model's, those of the same size, and
    the paired difference (model minus size; below 0: the model's are closer), each with a 95 % interval over patients.
    """

    by_model: Interval
    by_size: Interval
    difference: Interval


class SimilarityGain(Gain):
    """The mean distance over ratings, and ``by_rating`` the distance in each of them."""

    by_rating: dict[str, Gain]
    nodules: int


def similarity_gain(store: CropStore, similar: dict[str, list[SimilarNodule]], seed: int = 0) -> SimilarityGain:
    """Whether a model's neighbours are closer in ratings than as many nodules of the nearest diameter.

    Diameter itself is left out of the distance. Nodules that the model learned from flatter it: give those it never
    saw. Raises ``DataError`` where no nodule of ``similar`` is rated.
    """
    ratings = mean_ratings(store)
    scaled = (ratings - ratings.mean()) / ratings.std(ddof=0).replace(0, 1)
    scaled = scaled.drop(columns="diameter")
    patients = store.manifest.set_index("nodule_id")["patient_id"].astype(str)
    ids = [name for name in similar if name in ratings.index]
    if not ids:
        raise DataError(f"{store.path}: none of the nodules is rated, so nothing can be compared")
    by_model, by_size = np.empty((len(ids), scaled.shape[1])), np.empty((len(ids), scaled.shape[1]))
    for row, name in enumerate(ids):
        others = ratings.index[patients[ratings.index].to_numpy() != patients[name]]
        gap = (ratings.loc[others, "diameter"] - ratings.loc[name, "diameter"]).abs()
        matched = gap.sort_values(kind="stable").index[: len(similar[name])]
        by_model[row] = _distances(scaled, name, [one["nodule_id"] for one in similar[name]])
        by_size[row] = _distances(scaled, name, list(matched))
    clusters = patients[ids].tolist()
    over_all = _gain(np.nanmean(by_model, axis=1), np.nanmean(by_size, axis=1), clusters, seed)
    by_rating = {
        str(rating): _gain(by_model[:, column], by_size[:, column], clusters, seed)
        for column, rating in enumerate(scaled)
    }
    return {**over_all, "by_rating": by_rating, "nodules": len(ids)}


def _gain(by_model: NDArray, by_size: NDArray, clusters: list[str], seed: int) -> Gain:
    return {
        "by_model": bootstrap_mean(by_model, clusters, seed=seed),
        "by_size": bootstrap_mean(by_size, clusters, seed=seed),
        "difference": bootstrap_mean(by_model - by_size, clusters, seed=seed),
    }


def _distances(scaled: pd.DataFrame, name: str, others: list[str]) -> NDArray[np.float64]:
    """Mean distance to the others in each rating; NaN where it is not known."""
    apart = np.abs(scaled.loc[others].to_numpy() - scaled.loc[name].to_numpy())
    known = np.isfinite(apart)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, apart, 0.0).sum(0) / known.sum(0), dtype=np.float64)


_FIGURES = ("by_model", "by_size", "difference")
_ENDS = ("mean", "low", "high")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("similar_gain", Options, similar_gain, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
