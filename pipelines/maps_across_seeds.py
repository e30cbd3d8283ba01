"""Do retrained models show the same map? CDAM of out-of-fold nodules by models of several seeds, the key path's share,
and concept maps of the most spiculated nodules.

    python pipelines/maps_across_seeds.py --runs runs/png-seed0,runs/png-seed1,runs/png-seed2 --store runs/png \\
        --nodules 60 --out runs/png-maps

Each nodule is explained by the models of the fold that tested its patient. Writes maps.csv (per nodule and output) and
summary.csv, with intervals by patient:

- seeds: Spearman's correlation of the token scores of two seeds, mean over pairs, for the logit and, for malignancy,
  the probability (whose gradient only scales the logit's: the ranks must be the same);
- random: the same against the model with random weights;
- key share: Σ|key path| / (Σ|key path| + Σ|value path|);
- concept: the map of the similarity (dot product) to the mean feature of the 20 most spiculated training nodules,
  correlated with the CDAM of spiculation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.evaluation.metrics._parameter_randomisation import randomised
from lidc_xai.evaluation.statistics import bootstrap_mean, spearman
from lidc_xai.explain import ConceptSimilarity, Logit, Probability, concept_vector, explain
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, load_model
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.progress import track
from lidc_xai.run import Run
from lidc_xai.training.loop.run_files import read_predictions

CONCEPT, MOST = "spiculation", 20


class Options(Config):
    """Runs to compare."""

    runs: list[str] = Field(min_length=1, description="Cross-validated runs on the same splits, separated by commas.")
    store: Path = Field(description="The store of those runs.")
    nodules: int = Field(60, ge=1, description="Patients to sample, one nodule of each.")


def compare(options: Options, run: Run) -> None:
    """Measure, and write both tables."""
    out = need_out(options)
    table = pd.DataFrame(measured(options))
    summary = summarise(table)
    for name, frame in (("maps", table), ("summary", summary)):
        write_csv(out / f"{name}.csv", frame)
    print(summary.to_string(index=False))


def measured(options: Options) -> Iterator[dict[str, Any]]:
    """Rows nodule_id, patient_id, output, figure, value."""
    store, runs = CropStore(options.store), [Path(name) for name in words(options.runs)]
    table = read_predictions(runs[0]).sample(frac=1, random_state=options.seed).drop_duplicates("patient_id")
    for fold, of_fold in table.head(options.nodules).groupby("fold"):
        models = [load_model(run / f"fold-{fold}" / "model") for run in runs]
        untrained = randomised(models[0], options.seed)
        concept = spiculated(models[0], store)
        for row in track(of_fold.itertuples(), f"fold {fold}", len(of_fold)):
            images = nodule_images(models[0], store.load(row.nodule_id))
            for output, figure, value in figures(models, untrained, concept, images):
                yield {"nodule_id": row.nodule_id, "patient_id": row.patient_id, "output": output,
                       "figure": figure, "value": value}  # fmt: skip


def spiculated(model: NoduleModel, store: CropStore) -> Tensor:
    """(D,) mean feature of the most spiculated nodules that the model learned from."""
    known = store.manifest[store.manifest["patient_id"].isin(model.training_info["train_patients"])]
    most = known[known["n_readers"] >= 3].nlargest(MOST, CONCEPT)["nodule_id"]
    return concept_vector(model, torch.cat([nodule_images(model, store.load(name)) for name in most]))


def figures(
    models: Sequence[NoduleModel], untrained: NoduleModel, concept: Tensor, images: Tensor
) -> Iterator[tuple[str, str, float]]:
    """Output, figure and value of one nodule's planes (V, 3, S, S)."""
    names = models[0].output_names
    maps = [explain(model, images).relevance.flatten(2) for model in models]
    noise = explain(untrained, images).relevance.flatten(2)
    key, value = (explain(models[0], images, parts=part).relevance.flatten(2) for part in ("key", "value"))
    for t, name in enumerate(names):
        pairs = [agreement(a[:, t], b[:, t]) for a, b in combinations(maps, 2)]
        yield name, "seeds, logit", float(np.mean(pairs)) if pairs else np.nan
        yield name, "random weights", agreement(maps[0][:, t], noise[:, t])
        keys, values = float(key[:, t].abs().sum()), float(value[:, t].abs().sum())
        yield name, "key share", keys / (keys + values)
    if "malignancy" in names:
        one = Probability("malignancy")
        chances = [explain(model, images, one).relevance.flatten(2)[:, 0] for model in models]
        pairs = [agreement(a, b) for a, b in combinations(chances, 2)]
        yield "malignancy", "seeds, probability", float(np.mean(pairs)) if pairs else np.nan
    if CONCEPT in names:
        similar = explain(models[0], images, ConceptSimilarity(concept)).relevance.flatten(2)[:, 0]
        relevance = explain(models[0], images, Logit(CONCEPT)).relevance.flatten(2)[:, 0]
        yield CONCEPT, "concept map", agreement(similar, relevance)


def agreement(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of token scores (V, N), mean over planes."""
    return float(np.mean([float(spearman(x.numpy(), y.numpy())) for x, y in zip(a, b, strict=True)]))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval per figure and output, and per figure over all outputs."""
    rows = []
    for (figure, output), group in [
        *table.groupby(["figure", "output"], sort=False),
        *(((name, "all"), group) for name, group in table.groupby("figure", sort=False)),
    ]:
        interval = bootstrap_mean(group["value"], group["patient_id"].tolist())
        rows.append({"figure": figure, "output": output, "mean": interval.mean, "low": interval.low,
                     "high": interval.high, "n": interval.n})  # fmt: skip
    return pd.DataFrame(rows).round(4)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("maps_across_seeds", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
