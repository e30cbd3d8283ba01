"""Linear heads on a frozen backbone, seconds each: what a training without any learned block repeats.

    python pipelines/frozen_heads.py --run runs/lora-seed0/fold-0 --weights dinov2_vits14.safetensors \\
        --store runs/store --count 6 --out runs/frozen
    python pipelines/frozen_heads.py ... --shuffle --out runs/dealt

Every model has the published backbone and the preprocessing, outputs and training patients of ``--run``; its head is
ridge regression (malignancy: logistic regression) on the features of the middle slices, on patients drawn with
replacement, another draw for every model. ``--shuffle``: ratings are dealt out anew among the nodules, another deal for
every model. Writes out/head-<n>.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.data.dataset import targets_of
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, build_model, load_model, save_model
from lidc_xai.nodules import nodule_images
from lidc_xai.progress import track
from lidc_xai.run import Run


class Options(Config):
    """Which models to fit."""

    run: Path = Field(description="A trained model: preprocessing, outputs, training patients, fold.")
    weights: Path = Field(description="The backbone's published weights.")
    store: Path = Field(description="The store of that run.")
    count: int = Field(6, ge=1, description="Models to fit.")
    limit: int = Field(600, ge=20, description="Training nodules, chosen at random.")
    shuffle: bool = Field(False, description="Deal the ratings out anew.")


def fit_heads(options: Options, run: Run) -> None:
    """Read the features once, fit, save."""
    out, store, pattern = need_out(options), CropStore(options.store), load_model(options.run)
    known = store.manifest[store.manifest["patient_id"].isin(pattern.training_info["train_patients"])]
    known = known[known["n_readers"] >= 3].sample(frac=1, random_state=options.seed).head(options.limit)
    frozen = build_model(
        pattern.recipe["backbone"], pattern.output_names, options.weights, size=pattern.preprocess.size,
        preprocess=pattern.preprocess,
    )  # fmt: skip
    features = read_features(frozen, store, known["nodule_id"].tolist())
    targets = targets_of(known, pattern.output_names).numpy()
    patients = known["patient_id"].to_numpy()
    for number in range(options.count):
        rng = np.random.default_rng([options.seed, number])
        ratings = targets[rng.permutation(len(targets))] if options.shuffle else targets
        drawn = rng.choice(np.unique(patients), len(np.unique(patients)))
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        set_head(frozen, features[rows], ratings[rows])
        frozen.training_info = {
            "fold": pattern.training_info.get("fold"), "draw": number, "shuffled": options.shuffle,
            "train_patients": list(pattern.training_info["train_patients"]),
            "validation_patients": list(pattern.training_info.get("validation_patients", [])),
        }  # fmt: skip
        print(save_model(frozen, out / f"head-{number}"))


def read_features(model: NoduleModel, store: CropStore, ids: Sequence[str]) -> NDArray[np.float64]:
    """(nodules, width): what the head reads of the middle slice, mean over the views."""
    features = []
    with torch.inference_mode():
        for name in track(ids, "features", len(ids)):
            features.append(model.features(nodule_images(model, store.load(name))).mean(0).double().numpy())
    return np.stack(features)


def set_head(model: NoduleModel, features: NDArray[np.float64], targets: NDArray[np.floating]) -> None:
    """Fit each output on the nodules that have it and write it into the linear head."""
    scaler = StandardScaler().fit(features)
    inputs = scaler.transform(features)
    (layer,) = (module for module in model.head.modules() if isinstance(module, torch.nn.Linear))
    for column, (name, kind) in enumerate(zip(model.output_names, model.output_kinds, strict=True)):
        values = pd.Series(targets[:, column]).to_numpy(dtype=np.float64)
        rated = np.isfinite(values) & ((values != 0.5) if kind == "binary" else True)
        x, y = inputs[rated], values[rated]
        if kind == "binary":
            fitted = LogisticRegression(C=0.01, max_iter=1000).fit(x, y > 0.5)
        else:
            model.target_scaling[name] = (float(y.mean()), float(y.std()))
            fitted = Ridge(alpha=float(len(x))).fit(x, (y - y.mean()) / y.std())
        slope = np.ravel(fitted.coef_) / scaler.scale_
        with torch.no_grad():
            layer.weight[column] = torch.from_numpy(slope)
            layer.bias[column] = float(np.ravel(fitted.intercept_)[0] - slope @ scaler.mean_)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("frozen_heads", Options, fit_heads, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
