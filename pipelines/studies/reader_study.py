"""A reader study: blinded, shuffled cases with and without maps, a sheet for ratings, and its scoring.

Every case appears once with and once without, in two sessions: a case shown with its map in one session is shown
without it in the other, in another order. Given predictions, the model's rating stands beside the map, and for a share
of cases, on all of which it sides with LIDC's label, it is deliberately wrong (the other side of 0.5, the map with its
sign turned): whether readers follow it there is automation bias. Where it errs by itself is kept apart. Names carry
nothing: cases are numbered by a seeded shuffle, and the key that tells which is which is a file of its own, for whoever
scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from lidc_xai.csv_files import rows_text, write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import write_json, write_text
from lidc_xai.progress import track
from lidc_xai.ratings import CALCIFICATION_ABSENT, READER_RATINGS, SCALES
from lidc_xai.reporting.nodule.drawing import crop_pictures, evaluated_indices, map_panels
from lidc_xai.reporting.nodule.facts import colour_limits
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.study import wanted_ids
from lidc_xai.training.bootstrap import patient_weights

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.nodules.maps import NoduleMaps

CONDITIONS = ("without", "with")
RATED = tuple(name for name in READER_RATINGS if name != "internal_structure")
ASKED = ("confidence", "trust", "seconds")
"""Beside the ratings: how sure (0 to 100), how far the AI was trusted (0 to 100, empty without it), and the time."""
_SHEET = ("session", "case", *RATED, *ASKED, "comment")
_KEY = "key-for-scoring-only.csv"


def export_reader_study(
    store: CropStore,
    out: Path | str,
    maps: Mapping[str, NoduleMaps],
    nodule_ids: Sequence[str] | None = None,
    outputs: Sequence[str] = ("malignancy", "spiculation", "margin"),
    seed: int = 0,
    *,
    predictions: pd.DataFrame | None = None,
    wrong_share: float = 0.0,
) -> list[Path]:
    """Write ``out/session-1`` and ``session-2`` (a page per case, an index, ``ratings.csv`` to fill in) and the key.

    ``maps``: nodule id -> its maps; ``outputs``: those whose maps are shown. ``predictions``: of ``predict``; then the
    model's probability stands beside the map, deliberately wrong on a share ``wrong_share`` of cases. No page names a
    patient, a nodule, a reader, a reader's rating, or whether what it shows is right. Raises UsageError for a nodule
    without maps or prediction, an output that they lack, a share without predictions or outside 0 to 1, and one that
    is larger than the share of cases on which the model sides with the label.
    """
    ids, out = wanted_ids(store, nodule_ids), Path(out)
    missing = [name for name in ids if name not in maps]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(ids)} nodules have no map, the first is {missing[0]}; run explain first"
        )
    lacking = [name for name in outputs if ids and name not in maps[ids[0]].output_names]
    if lacking:
        raise UsageError(f"output {lacking[0]!r} has no map; choose from {', '.join(maps[ids[0]].output_names)}")
    chances = _chances(predictions, ids, wrong_share)
    rng = np.random.default_rng(seed)
    sides = _sides(store, ids, chances)
    right, asked = [place for place, name in enumerate(ids) if sides.get(name) == "right"], wrong_share * len(ids)
    if round(asked) > len(right):
        raise UsageError(
            f"wrong_share {wrong_share:g} of {len(ids)} cases asks for more than the {len(right)} whose label the "
            "model sides with: only there is its opposite wrong"
        )
    wrong = set(rng.permutation(right)[: round(asked)].tolist())
    first_with = set(rng.permutation(len(ids))[: len(ids) // 2].tolist())
    key: list[dict[str, Any]] = []
    paths: list[Path] = []
    for session in (1, 2):
        order = rng.permutation(len(ids)).tolist()
        cases = []
        for number, place in enumerate(track(order, f"session {session}", len(order)), start=1):
            shown = CONDITIONS[(place in first_with) == (session == 1)]
            name = f"case-{number:03d}"
            nodule_id, given = ids[place], _Given(maps[ids[place]], chances.get(ids[place]))
            given = given.turned() if place in wrong else given
            key.append(
                {"session": session, "case": name, "condition": shown, "nodule_id": nodule_id,
                 "ai": "" if shown != "with" else "wrong" if place in wrong else sides.get(nodule_id, ""),
                 "shown": given.probability if shown == "with" else None}
            )  # fmt: skip
            following = f"case-{number + 1:03d}" if number < len(order) else ""
            page = _case_page(store, nodule_id, given, outputs, name, session, shown == "with", following)
            paths.append(out / f"session-{session}" / f"{name}.html")
            write_text(paths[-1], page)
            cases.append(name)
        paths += _session_files(out / f"session-{session}", session, cases)
    write_csv(out / _KEY, pd.DataFrame(key))
    return [*paths, out / _KEY]


@dataclass(frozen=True)
class _Given:
    """What a case shows of the AI."""

    maps: NoduleMaps
    probability: float | None

    def turned(self) -> _Given:
        """The other side of 0.5, and the map that would argue for it."""
        maps = replace(self.maps, relevance=-self.maps.relevance)
        return _Given(maps, None if self.probability is None else 1 - self.probability)


def _chances(predictions: pd.DataFrame | None, ids: Sequence[str], wrong_share: float) -> dict[str, float]:
    if not 0 <= wrong_share <= 1:
        raise UsageError(f"wrong_share is {wrong_share:g}; wanted a share from 0 to 1")
    if predictions is None:
        if wrong_share:
            raise UsageError(
                "an arm with a wrong AI needs predictions: what is shown is the model's rating turned round"
            )
        return {}
    chances = dict(zip(predictions["nodule_id"], predictions["malignancy_probability"].astype(float), strict=True))
    missing = [name for name in ids if name not in chances]
    if missing:
        raise UsageError(f"{len(missing)} of {len(ids)} nodules have no prediction, the first is {missing[0]}")
    return {name: chances[name] for name in ids}


def _sides(store: CropStore, ids: Sequence[str], chances: Mapping[str, float]) -> dict[str, str]:
    """Whether the model itself is right about a case: "right", "own error", or "no label" to tell it by."""
    labels = store.manifest.set_index("nodule_id")["label"].astype("Float64")
    return {
        name: "no label" if pd.isna(labels[name])
        else "right" if (chances[name] > 0.5) == (labels[name] > 0.5) else "own error"
        for name in ids if name in chances
    }  # fmt: skip


def _case_page(
    store: CropStore,
    nodule_id: str,
    given: _Given,
    outputs: Sequence[str],
    name: str,
    session: int,
    shown: bool,
    following: str,
) -> str:
    maps = given.maps
    crop = store.load(nodule_id)
    crop.reader_masks = crop.consensus = None  # an outline would tell what readers thought belongs to it
    pictures = crop_pictures(crop, evaluated_indices(maps))
    panels = map_panels(maps, pictures, colour_limits(maps, {})) if shown else {}
    return render(
        "reader_case.html.j2",
        name=name,
        session=session,
        following=following,
        pictures=pictures,
        probability=given.probability if shown else None,
        panels={output: panels[output] for output in outputs if output in panels},
        rated=[SCALES[rating] for rating in RATED],
        simulated=bool(store.row(nodule_id)["simulated"]),
        edited=bool(store.row(nodule_id)["edited"]),
        interactive=False,
    )


def _session_files(folder: Path, session: int, cases: Sequence[str]) -> list[Path]:
    rows = [[session, name, *[""] * (len(_SHEET) - 2)] for name in cases]
    write_text(folder / "ratings.csv", rows_text([_SHEET, *rows]))
    page = render(
        "reader_index.html.j2", session=session, cases=cases, rated=[SCALES[r] for r in RATED], interactive=False
    )
    write_text(folder / "index.html", page)
    return [folder / "ratings.csv", folder / "index.html"]


def score_reader_study(
    folder: Path | str, ratings: Mapping[str, Sequence[Path | str]], store: CropStore, out: Path | str | None = None
) -> dict[str, Any]:
    """Score filled sheets: ``ratings`` maps a reader's name to the paths of the ``ratings.csv`` of both sessions.

    Returns, per rating, for cases without and with maps: the mean absolute difference from LIDC's readers' mean (of
    calcification: of "any" from the share of readers who saw any) and, for malignancy, AUC against LIDC's label; and
    the change from without to with on the same cases (95 % interval over readers and patients), together with mean
    seconds, confidence and trust; ``follows``: how far malignancy ratings move towards what the AI showed, where it
    was right and where it was deliberately wrong (automation bias). Written to ``out/scores.json`` where asked.
    Raises DataError for a sheet that is no such sheet, UsageError where nothing is filled in.
    """
    key = _read(Path(folder) / _KEY, ("session", "case", "condition", "nodule_id", "ai", "shown"))
    filled = pd.concat(
        [_read(Path(path), _SHEET).assign(reader=reader) for reader, paths in ratings.items() for path in paths],
        ignore_index=True,
    )
    table = filled.merge(key, on=["session", "case"], how="inner")
    if table.empty or not table[list(RATED)].notna().any().any():
        raise UsageError("no rating is filled in; fill the sheets (ratings.csv) of the sessions first")
    codes = {"calcification": _any_calcification(store.votes["calcification"])}
    votes = store.votes.assign(**codes).groupby("nodule_id")[list(RATED)].mean()
    table["calcification"] = _any_calcification(table["calcification"])
    patients = store.manifest.set_index("nodule_id")["patient_id"]
    scores: dict[str, Any] = {"readers": sorted(ratings), "cases": int(key["nodule_id"].nunique()), "ratings": {}}
    for rating in RATED:
        error = (table[rating] - table["nodule_id"].map(votes[rating])).abs()
        wide = table.assign(error=error).pivot_table(index=["reader", "nodule_id"], columns="condition", values="error")
        wide = wide.reindex(columns=list(CONDITIONS))
        both = wide.dropna()
        change = over_readers(both["with"] - both["without"], patients)
        scores["ratings"][rating] = {
            **{f"error_{name}": _mean(wide[name]) for name in CONDITIONS},
            "change": change[0],
            "low": change[1],
            "high": change[2],
            "pairs": len(both),
        }
    scores["malignancy_auc"] = {name: _auc(table[table["condition"] == name], store) for name in CONDITIONS}
    scores["follows"] = _follows(table, patients)
    for column in ASKED:
        scores[column] = {name: _mean(table.loc[table["condition"] == name, column]) for name in CONDITIONS}
    if out is not None:
        write_json(Path(out) / "scores.json", scores)
    return scores


def _any_calcification(codes: pd.Series) -> pd.Series:
    """1 where any is seen, 0 where none: the codes are names."""
    return (codes < CALCIFICATION_ABSENT).astype(float).where(codes.notna())


def _follows(table: pd.DataFrame, patients: pd.Series) -> dict[str, dict[str, float | int | None]]:
    """Steps of the malignancy scale by which a reader's rating moves towards the AI's side, against the same reader's
    rating without it: "right" AI, deliberately "wrong" AI, its "own error"; mean and 95 % interval over
    readers and patients.
    """
    if "ai" not in table:
        return {}
    alone = table[table["condition"] == "without"].set_index(["reader", "nodule_id"])["malignancy"]
    steps: dict[str, dict[str, float | int | None]] = {}
    for ai in ("right", "wrong", "own error"):
        shown = table[(table["ai"] == ai) & table["malignancy"].notna()].set_index(["reader", "nodule_id"])
        if shown.empty:
            continue
        towards = pd.Series(np.where(shown["shown"] > 0.5, 1.0, -1.0), index=shown.index)
        moved = (shown["malignancy"] - alone.reindex(shown.index)).mul(towards).dropna()
        if moved.empty:
            continue
        mean, low, high = over_readers(moved, patients)
        steps[ai] = {"steps": mean, "low": low, "high": high, "ratings": len(moved)}
    return steps


def over_readers(values: pd.Series, patients: pd.Series) -> tuple[float | None, float | None, float | None]:
    """Mean over readers and its 95 % interval for other readers and other patients (Obuchowski and Rockette's, with
    Hillis' degrees of freedom); of a single reader the interval is for other patients alone, read by that reader.

    values: by (reader, nodule id). With s² the variance between the R readers' means and C their covariance over draws
    of patients, the variance is s²/R + max(C, 0): a reader's own tendency and the cases that all share.
    """
    wide = values.unstack(0)
    means = wide.mean().to_numpy(np.float64)
    if not len(means):
        return None, None, None
    draws = patient_weights(patients[wide.index].tolist())
    given = wide.notna().to_numpy(np.float64)
    counts = draws @ given
    drawn = np.divide(
        draws @ wide.fillna(0.0).to_numpy(np.float64), counts, where=counts > 0, out=np.full_like(counts, np.nan)
    )
    drawn = drawn[np.isfinite(drawn).all(1)]
    if len(drawn) < 2 or patients[wide.index].nunique() < 2:
        return float(means.mean()), None, None
    if len(means) == 1:
        low, high = np.quantile(drawn[:, 0], [0.025, 0.975])
        return float(means[0]), float(low), float(high)
    together = np.cov(drawn, rowvar=False)
    shared = max((together.sum() - np.trace(together)) / (len(means) * (len(means) - 1)), 0.0)
    own = means.var(ddof=1) / len(means)
    freedom = (len(means) - 1) * ((own + shared) / own) ** 2 if own > 0 else np.inf
    half = float(t.ppf(0.975, freedom) * np.sqrt(own + shared))
    return float(means.mean()), float(means.mean()) - half, float(means.mean()) + half


def cases_needed(
    effect: float, sd: float, readers: int, *, reader_sd: float = 0.0, power: float = 0.8, level: float = 0.05
) -> int:
    """Cases that every reader reads under both conditions, to find a mean change of ``effect`` steps.

    Paired, two-sided, normal: effect = (z_{1−level/2} + z_power) · √(sd²/(cases · readers) + reader_sd²/readers), with
    ``sd`` of the change over cases within a reader and ``reader_sd`` of its mean between readers. Raises UsageError
    where so few readers differ so much that no number of cases is enough.
    """
    if min(effect, sd, readers) <= 0:
        raise UsageError(f"effect, sd and readers must be above 0, got {effect:g}, {sd:g}, {readers}")
    wanted = (effect / (norm.ppf(1 - level / 2) + norm.ppf(power))) ** 2
    left = wanted - reader_sd**2 / readers
    if left <= 0:
        raise UsageError(f"{readers} readers who differ by {reader_sd:g} cannot show {effect:g}; ask more readers")
    return math.ceil(sd**2 / (readers * left))


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it is not a file of this reader study")
    for name in columns:
        if name in RATED or name in ASKED:
            values = pd.to_numeric(table[name], errors="coerce")
            wrong = table[name].notna() & values.isna()
            low, high = (SCALES[name].low, SCALES[name].high) if name in RATED else (0, float("inf"))
            wrong |= values.notna() & ~values.between(low, high)
            if wrong.any():
                first = table.loc[wrong].iloc[0]
                raise DataError(f"{path}: {first['case']}, {name}: {first[name]} is not between {low:g} and {high:g}")
            table[name] = values
    return table


def _auc(table: pd.DataFrame, store: CropStore) -> float | None:
    """AUC of the readers' malignancy ratings against LIDC's label; ``None`` without both labels."""
    labels = store.manifest.set_index("nodule_id")["label"].astype("Float64")
    known = table.assign(label=table["nodule_id"].map(labels)).dropna(subset=["label", "malignancy"])
    high, low = (known.loc[known["label"] == label, "malignancy"].to_numpy(float) for label in (1, 0))
    if not len(high) or not len(low):
        return None
    gaps = high[:, None] - low[None]
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


def _mean(values: pd.Series) -> float | None:
    return _finite(float(values.mean())) if values.notna().any() else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
