"""What a model has to beat, fitted on the same folds: simple numbers and a linear model, no network.

diameter_only: the readers' diameter. mask_oracle: log volume, mean and standard deviation of HU inside the readers'
consensus (an oracle: it sees the mask). ratings_without_diameter and reader_ratings: what the readers said about the
nodule. own_diameter: the diameter that the model itself predicts, from its predictions alone.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lidc_xai.progress import track
from lidc_xai.ratings import BIOMARKERS

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

_MASK_FEATURES = ("mask_log_volume", "mask_mean_hu", "mask_sd_hu")

BASELINES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "diameter_only": ("diameter",),
        "mask_oracle": _MASK_FEATURES,
        "ratings_without_diameter": tuple(name for name in BIOMARKERS if name != "diameter"),
        "reader_ratings": BIOMARKERS,
    }
)
"""Name of each baseline and the features that it reads."""

_FROM_PIXELS_OR_SIZE = ("diameter_only", "mask_oracle")
"""Baselines of the biomarkers too: the others are ratings themselves."""


def baseline_features(store: CropStore, nodule_ids: list[str]) -> pd.DataFrame:
    """Features of every baseline by nodule id; NaN where a nodule has no rating or no consensus mask."""
    table = store.manifest.set_index("nodule_id").loc[nodule_ids]
    features = table[list(BIOMARKERS)].astype("float64")
    rows = []
    for nodule_id in track(nodule_ids, "reading masks", len(nodule_ids)):
        crop = store.load(nodule_id)
        inside = crop.ct[crop.consensus] if crop.consensus is not None else np.empty(0)
        voxel = float(np.prod(crop.spacing_mm))
        rows.append(
            (np.log(len(inside) * voxel), inside.mean(dtype=np.float64), inside.std(dtype=np.float64))
            if len(inside)
            else (np.nan,) * 3
        )
    masks = pd.DataFrame(rows, index=features.index, columns=list(_MASK_FEATURES), dtype=np.float64)
    return features.join(masks)


def baseline_predictions(
    features: pd.DataFrame, targets: pd.DataFrame, train_ids: list[str], test_ids: list[str]
) -> pd.DataFrame:
    """Columns ``baseline.<name>.malignancy_probability`` and ``baseline.<name>.<biomarker>``, one row per test nodule.

    ``targets``: columns label (0, 1, NaN) and biomarkers, by nodule id. A biomarker is not predicted from itself. A
    nodule without the features gets NaN; so does every nodule where the training part cannot fit the baseline.
    """
    table = pd.DataFrame(index=pd.Index(test_ids, name="nodule_id"))
    for name, columns in BASELINES.items():
        known = features[list(columns)].dropna()
        learn = [key for key in train_ids if key in known.index]
        ask = [key for key in test_ids if key in known.index]
        for target in targets.columns:
            binary = target == "label"
            if not binary and (target in columns or name not in _FROM_PIXELS_OR_SIZE):
                continue
            column = f"baseline.{name}.{'malignancy_probability' if binary else target}"
            table[column] = np.nan
            y = targets.loc[learn, target].astype("float64")
            use = y.dropna().index
            if not ask or len(use) < 2 or (binary and y[use].nunique() < 2):
                continue
            estimator = _logistic() if binary else RidgeCV(np.logspace(-3, 3, 7))
            model = make_pipeline(StandardScaler(), estimator).fit(known.loc[use].to_numpy(), y[use].to_numpy())
            asked = known.loc[ask].to_numpy()
            table.loc[ask, column] = model.predict_proba(asked)[:, 1] if binary else model.predict(asked)
    return table


def _logistic() -> LogisticRegression:
    return LogisticRegression(C=1.0, max_iter=1000)


def diameter_line(diameter: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Intercept and slope (per mm) of the log odds of label 1 in ``diameter``, fitted as the baseline of the readers'.

    >>> intercept, slope = diameter_line(np.array([4.0, 6.0, 8.0, 20.0, 22.0, 24.0]), np.array([0, 0, 0, 1, 1, 1]))
    >>> round(-intercept / slope)
    14
    """
    scaler = StandardScaler().fit(diameter[:, None])
    fitted = _logistic().fit(scaler.transform(diameter[:, None]), label)
    slope = float(fitted.coef_[0, 0] / scaler.scale_[0])
    return float(fitted.intercept_[0] - slope * scaler.mean_[0]), slope


def own_diameter(table: pd.DataFrame) -> pd.Series:
    """What the model's own diameter alone gives: P(label 1) of each row of a cross-validation's predictions, from the
    other folds' rows. NaN without a predicted diameter, and where the other folds hold one label only.
    """
    diameter = table["diameter"].to_numpy(np.float64)
    label = pd.to_numeric(table["label"]).astype("Float64").to_numpy(np.float64, na_value=np.nan)
    fold = table["fold"].to_numpy()
    given = np.full(len(table), np.nan)
    for one in pd.unique(fold):
        here, learn = fold == one, (fold != one) & np.isfinite(diameter) & np.isfinite(label)
        if len(np.unique(label[learn])) < 2:
            continue
        intercept, slope = diameter_line(diameter[learn], label[learn])
        given[here] = 1 / (1 + np.exp(-(intercept + slope * diameter[here])))
    return pd.Series(given, index=table.index)
