"""Rated nodules that a model sees as like a given one.

A nodule's features are what a model's head reads, averaged over the views that it reads, each feature standardised
over the reference store; nearness is the cosine of the angle between them, of several models the mean over those that
never saw the nodule's patient. Neighbours are always of other patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import pandas as pd

from lidc_xai.bounded import read_npz
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path
from lidc_xai.models.digest import weights_digest
from lidc_xai.nodules.ensemble import models_for
from lidc_xai.progress import track
from lidc_xai.ratings import BIOMARKERS, CALCIFICATION_ABSENT, SCALES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel

COMPARED = ("malignancy", *(name for name in BIOMARKERS if name != "calcification"))
"""Ratings with an order; of calcification the share of readers who saw any is compared."""
_DIFFERS = 1.0
"""Standard deviations of the cohort's ratings from which on a property is said to differ."""


class SimilarNodule(TypedDict):
    """A neighbour: ``similarity`` (cosine, −1 to 1), the readers' means, and in which properties it differs how far
    (neighbour minus nodule, in the property's own unit) from what the model predicts for the nodule.
    """

    nodule_id: str
    patient_id: str
    similarity: float
    ratings: dict[str, float]
    calcified: float | None
    label: float | None
    differs: dict[str, float]


def nodule_features(
    model: NoduleModel,
    store: CropStore,
    nodule_ids: Sequence[str],
    device: str = "cpu",
    cache: Path | None = None,
    batch_size: int = 16,
) -> NDArray[np.float32]:
    """(N, width): what the model's head reads of each nodule, the mean over its views.

    ``cache``: a folder where they are kept by the model's weights and the store, and from which they are taken.
    """
    kept, path = {}, None
    if cache is not None:
        key = f"{weights_digest(model)} {store.fingerprint.get('sha256')} {store.path.name}"
        path = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        kept = _kept(path)
    missing = [name for name in dict.fromkeys(nodule_ids) if name not in kept]
    if missing:
        kept |= _read_features(model, store, missing, device, batch_size)
        if path is not None:
            with atomic_path(path) as temporary:
                np.savez(temporary, ids=np.array(list(kept)), features=np.stack(list(kept.values())))
    return np.stack([kept[name] for name in nodule_ids])


def _kept(path: Path) -> dict[str, NDArray[np.float32]]:
    """Features of an earlier call; none where the file is absent or damaged."""
    try:
        held = read_npz(path, ("ids", "features"))
        return dict(zip(held["ids"].tolist(), held["features"], strict=True))
    except (FileNotFoundError, DataError, ValueError):
        return {}


def _read_features(
    model: NoduleModel, store: CropStore, names: Sequence[str], device: str, batch_size: int
) -> dict[str, NDArray[np.float32]]:
    import torch

    from lidc_xai.nodules.maps import nodule_images

    model = model.to(device).eval()
    features: dict[str, NDArray[np.float32]] = {}
    batch: list[tuple[str, Any]] = []
    for name in track(names, "features", len(names)):
        batch.append((name, nodule_images(model, store.load(name))))
        if len(batch) < batch_size and name != names[-1]:
            continue
        with torch.inference_mode():
            read = model.features(torch.cat([images for _, images in batch]).to(device)).float().cpu()
        parts = read.split([len(images) for _, images in batch])
        features |= {one: part.mean(0).numpy() for (one, _), part in zip(batch, parts, strict=True)}
        batch = []
    return features


def similar_nodules(
    model: NoduleModel | Sequence[NoduleModel],
    store: CropStore,
    nodule_ids: Sequence[str] | None = None,
    reference: CropStore | None = None,
    *,
    count: int = 5,
    predictions: pd.DataFrame | None = None,
    device: str = "cpu",
    cache: Path | None = None,
) -> dict[str, list[SimilarNodule]]:
    """Nodule id -> the ``count`` nearest rated nodules of other patients, nearest first.

    ``reference``: the store that they are taken from (the same by default); only nodules with votes count as rated.
    ``model``: one, or several: each nodule is compared by all that never saw its patient, by all where every one did.
    ``predictions``: of ``predict``; with them it is said in what a neighbour differs. ``cache``: see
    ``nodule_features``. Raises ``UsageError`` where the
    reference holds no rated nodule of another patient.

    >>> near = similar_nodules(model, store, store.nodule_ids[:1], count=2)[store.nodule_ids[0]]
    >>> len(near), near[0]["similarity"] >= near[1]["similarity"]
    (2, True)
    """
    from sklearn.metrics.pairwise import cosine_similarity
    from sklearn.preprocessing import StandardScaler

    ids, reference = list(store.nodule_ids if nodule_ids is None else nodule_ids), reference or store
    ratings = mean_ratings(reference)
    names = [name for name in reference.nodule_ids if name in ratings.index]
    if len(names) < 2 or count < 1:
        raise UsageError(f"{reference.path}: holds {len(names)} rated nodules; similar ones need at least 2, count 1")
    models = list(model) if isinstance(model, Sequence) else [model]
    used = {name: models_for(models, str(store.row(name)["patient_id"])) or range(len(models)) for name in ids}
    near, counts = np.zeros((len(ids), len(names))), np.zeros((len(ids), 1))
    for place, one in enumerate(models):
        rows = [row for row, name in enumerate(ids) if place in used[name]]
        if rows:
            pool = nodule_features(one, reference, names, device, cache).astype(np.float64)
            asked = nodule_features(one, store, [ids[row] for row in rows], device, cache).astype(np.float64)
            scaler = StandardScaler().fit(pool)
            near[rows] += cosine_similarity(scaler.transform(asked), scaler.transform(pool))
            counts[rows] += 1
    near /= counts
    patients = reference.manifest.set_index("nodule_id")["patient_id"].astype(str)
    others = patients[names].to_numpy()
    labels = reference.manifest.set_index("nodule_id")["label"].astype("float64").to_dict()
    said = {} if predictions is None else {str(row["nodule_id"]): row for row in predictions.to_dict("records")}
    nearest = {}
    for row, name in enumerate(ids):
        order = [k for k in np.argsort(-near[row], kind="stable") if others[k] != str(store.row(name)["patient_id"])]
        nearest[name] = [
            _entry(names[k], others[k], float(near[row, k]), ratings, labels, said.get(name, {})) for k in order[:count]
        ]
    return nearest


def mean_ratings(store: CropStore) -> pd.DataFrame:
    """Readers' means by nodule id: ``COMPARED`` (diameter in mm) and ``calcified``, the share who saw any."""
    votes = store.votes.rename(columns={"diameter_mm": "diameter"})
    calcified = (votes["calcification"] < CALCIFICATION_ABSENT).where(votes["calcification"].notna())
    table = votes.assign(calcified=calcified.astype(float)).groupby("nodule_id")[[*COMPARED, "calcified"]].mean()
    return table.dropna(subset=["malignancy"])


def _entry(
    name: str,
    patient: str,
    similarity: float,
    ratings: pd.DataFrame,
    labels: Mapping[Any, float],
    said: Mapping[Any, Any],
) -> SimilarNodule:
    rated, sd = ratings.loc[name], ratings.std(ddof=0)
    differs: dict[str, float] = {}
    for output in BIOMARKERS:
        column = "calcified" if output == "calcification" else output
        asked = "p_calcified" if output == "calcification" else output
        value = float(said.get(asked, np.nan))
        if np.isnan(value) or pd.isna(rated[column]):
            continue
        if abs(rated[column] - value) >= _DIFFERS * max(float(sd[column]), 1e-9):
            differs[output] = float(rated[column] - value)
    label = labels.get(name, np.nan)
    return {
        "nodule_id": name,
        "patient_id": patient,
        "similarity": similarity,
        "ratings": {output: float(cast(float, rated[output])) for output in COMPARED if pd.notna(rated[output])},
        "calcified": float(cast(float, rated["calcified"])) if pd.notna(rated["calcified"]) else None,
        "label": None if np.isnan(label) else label,
        "differs": differs,
    }


def differs_in_words(entry: SimilarNodule) -> str:
    """What is different about a neighbour: "larger by 6 mm, more spiculated"."""
    parts = []
    for name, by in entry["differs"].items():
        if name == "calcification":
            parts.append("calcified for more readers" if by > 0 else "calcified for fewer readers")
        else:
            amount = f" by {abs(by):.0f} mm" if name == "diameter" else ""
            parts.append(SCALES[name].compared(1 if by > 0 else -1) + amount)
    return ", ".join(parts)
