"""Can a classifier on the frozen trunk's features tell edited crops from untouched ones?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audit.measure import PLAIN, SHAM
from lidc_xai.simulate import EDITS

FEWEST = 100
DRAWS = 10
"""Draws of the real nodules and of the folds: by one alone a figure moves by some .02."""
LIMIT = 0.65
RATING_APART, DIAMETER_APART_MM = 0.5, 2.0
Features = Callable[[str], NDArray[np.float32]]
Sides = tuple[NDArray, NDArray, list[str], list[str]]


def told_apart(
    edited: NDArray, real: NDArray, edited_patients: list[str], real_patients: list[str], seed: int
) -> tuple[float, list[float]]:
    """AUC of a logistic regression, patients apart in five folds, and its bootstrap by patient."""
    x, y = np.concatenate([edited, real]), np.repeat([1, 0], [len(edited), len(real)])
    patients = np.array([*edited_patients, *real_patients])
    scores = np.full(len(y), np.nan)
    # Folds of unlike shares would pull a classifier that knows nothing below one half.
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(x, y, patients):
        logistic = LogisticRegression(C=0.01, max_iter=500, class_weight="balanced")
        fitted = make_pipeline(StandardScaler(), logistic).fit(x[train], y[train])
        scores[test] = fitted.decision_function(x[test])
    rng, names, drawn = np.random.default_rng(seed), np.unique(patients), []
    places = {name: np.flatnonzero(patients == name) for name in names}
    for _ in range(500 // DRAWS):
        rows = np.concatenate([places[name] for name in rng.choice(names, len(names))])
        if 0 < y[rows].sum() < len(rows):
            drawn.append(float(roc_auc_score(y[rows], scores[rows])))
    return float(roc_auc_score(y, scores)), drawn


def figure(draw: Callable[[int], Sides], seed: int) -> dict[str, object]:
    """The mean AUC over ``DRAWS`` draws of both sides and of the folds, and an interval that holds what they and the
    patients vary by. ``draw``: seed -> edited and real features, the patients of each."""
    each = [draw(seed + place) for place in range(DRAWS)]
    n = min(len(side) for sides in each for side in sides[:2])
    if n < 20:
        return {"n": n, "verdict": f"{n} a side: not measured"}
    found = [told_apart(*sides, seed + place) for place, sides in enumerate(each)]
    auc = float(np.mean([one for one, _ in found]))
    low, high = np.quantile([value for _, drawn in found for value in drawn], [0.025, 0.975])
    few = f"{n} a side, {FEWEST} wanted: no verdict"
    verdict = few if n < FEWEST else "told apart" if auc > LIMIT else "not told apart"
    numbers = {"auc": auc, "low": float(low), "high": float(high)}
    return {"n": n} | {name: round(value, 3) for name, value in numbers.items()} | {"verdict": verdict}


def realism(
    rows: pd.DataFrame, kept: dict[str, dict[str, NDArray]], manifest: pd.DataFrame, plain_features: Features,
    doses: tuple[float, ...], seed: int,
) -> pd.DataFrame:  # fmt: skip
    """(a) sham against untouched; (b) edited against unedited nodules of other patients with the rating that the edit
    gave (readers' mean and the model's measured change) within 0.5 and the diameter within 2 mm, the nearest; (c) at
    dose 0 the same nodules untouched against those of their own rating: what any two draws of nodules differ by. Real
    nodules are of the edited ones' kind of HU (known or estimated: a trunk sees that) and none of them.

    ``rows``: outputs of one model in their units. ``kept``: nodule -> "edit dose" -> features. ``plain_features``:
    nodule id -> features of an untouched nodule of the store.
    """
    about = manifest.set_index("nodule_id")
    both = [name for name, found in kept.items() if f"{SHAM} 1" in found]
    patients = [str(about.loc[name, "patient_id"]) for name in both]
    shams, plain = (np.stack([kept[name][key] for name in both]) for key in (f"{SHAM} 1", f"{PLAIN} 0"))
    found: list[dict[str, object]] = [
        {"edit": SHAM, "dose": 1.0} | figure(lambda _: (shams, plain, patients, patients), seed)
    ]
    for name in EDITS:
        if name not in rows:
            continue
        for dose in (0.0, *doses):

            def draw(seed: int, name: str = name, dose: float = dose) -> Sides:
                edited, real = _matched(rows, kept, about, name, dose, seed)
                x = np.array([kept[one][_key(name, dose)] for one in edited])
                y = np.array([plain_features(one) for one in real])
                of = [[str(about.loc[one, "patient_id"]) for one in side] for side in (edited, real)]
                return x, y, of[0], of[1]

            found.append({"edit": name, "dose": dose} | figure(draw, seed))
    return pd.DataFrame(found)


def _key(name: str, dose: float) -> str:
    return f"{name} {dose:g}" if dose else f"{PLAIN} 0"


def _matched(
    rows: pd.DataFrame, kept: dict[str, dict[str, NDArray]], about: pd.DataFrame, name: str, dose: float, seed: int
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Edited nodules, and for each a real one of another patient, drawn once."""
    rng = np.random.default_rng(seed)
    free = about[about[name].notna() & about["diameter"].notna() & ~about.index.isin(list(kept))]
    free = free[free["hu_calibrated"].isin(about.loc[list(kept), "hu_calibrated"]) & ~free["larger_than_box"]]
    free = free[free["n_readers_masked"] > 0].sample(frac=1, random_state=seed)
    used: set[str] = set()
    edited, real = [], []
    plain = rows[rows["edit"] == PLAIN].set_index("nodule_id")
    at = (rows["edit"] == name) & np.isclose(rows["dose"], dose)
    after = rows[at].set_index("nodule_id") if dose else plain
    for nodule_id in rng.permutation(sorted(set(after.index) & set(kept))):
        if _key(name, dose) not in kept[nodule_id]:
            continue
        own = about.loc[nodule_id]
        wider = float(after.loc[nodule_id, "size"] - plain.loc[nodule_id, "size"]) if name == "diameter" else 0.0
        moved = wider if name == "diameter" else float(after.loc[nodule_id, name] - plain.loc[nodule_id, name])
        apart = DIAMETER_APART_MM if name == "diameter" else RATING_APART
        rating, wide = free[name] - own[name] - moved, free["diameter"] - own["diameter"] - wider
        far = (rating / RATING_APART) ** 2 + (wide / DIAMETER_APART_MM) ** 2  # the nearest: most nodules are small
        like = (rating.abs() <= apart) & (wide.abs() <= DIAMETER_APART_MM) & (free["patient_id"] != own["patient_id"])
        far = far[like & ~free.index.isin(used)]
        if len(far):
            used.add(str(far.idxmin()))
            edited.append(nodule_id)
            real.append(str(far.idxmin()))
    return edited, real
