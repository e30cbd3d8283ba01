"""Learn HU of the PNG edition's other slices from those whose lines are known, and measure it with patients apart.

    python pipelines/fit_png_hu.py --slices LIDC-IDRI-slices.zip \\
        --hu png_hu.csv --out runs/png_hu

Prints and writes (errors.json) the error before and after, out of fold by patient: per slice the median difference
between estimated and true HU over lung (-960 to -700) and over soft tissue (-150 to 250). ``--ship`` also writes the
trees of all patients to the package (lidc_xai/imaging/png/hu_trees.json).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from lidc_xai.annotations import load_nodules
from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.files import sha256_of, write_json, write_text
from lidc_xai.imaging.png.hu import calibrate
from lidc_xai.imaging.png.learned import REFERENCE, TABLE, BoostedTrees, picture_features
from lidc_xai.imaging.png.lines import HuLines
from lidc_xai.imaging.png.source import open_edition
from lidc_xai.run import Run

RANGES = {"lung": (-960, -700), "soft tissue": (-150, 250)}
FEWEST_PIXELS = 25
LARGEST_HU = 300.0
TREES = {"max_iter": 40, "learning_rate": 0.15, "max_leaf_nodes": 8, "min_samples_leaf": 30, "l2_regularization": 1.0}
BINS = 4


class Options(Config):
    """The edition, what is known of it, and whether the package takes what is learned."""

    slices: Path = Field(description="The PNG edition.")
    hu: Path = Field(description="Known lines.")
    jobs: int = Field(1, description="Processes.")
    ship: bool = Field(False, description=f"Also write {TABLE.name} of the package.")


def learn_hu(options: Options, run: Run) -> None:
    """Read, cross-fit, report, and where asked write the table."""
    out = need_out(options)
    data = _slices(options.slices, options.hu, options.jobs)
    after = np.full_like(data["before"], np.nan)
    for learn, test in GroupKFold(5, shuffle=True, random_state=0).split(data["x"], groups=data["patient"]):
        models = _fit(data, learn)
        moved = np.stack([model.predict(data["x"][test]) for model in models], axis=1)
        after[test] = _errors(data, test, REFERENCE + moved)
    largest = data["largest"]
    report = {
        "slices": len(after), "nodules": int(largest.sum()), "patients": len(set(data["patient"])),
        "lines_sha256": sha256_of(options.hu),
        "all slices": {"before": _figures(data["before"]), "after": _figures(after)},
        "largest slice of a nodule": {
            "before": _figures(data["before"][largest]), "after": _figures(after[largest]),
        },
    }  # fmt: skip
    write_json(out / "errors.json", report)
    print(json.dumps(report, indent=1))
    if options.ship:
        edges = np.quantile(data["sd"], np.arange(1, BINS) / BINS)
        inside = np.searchsorted(edges, data["sd"])
        rms = [np.sqrt(np.nanmean(np.clip(after[inside == k], -LARGEST_HU, LARGEST_HU) ** 2, 0)) for k in range(BINS)]
        _ship(_fit(data, np.arange(len(after))), data["x"], edges, np.array(rms), report)


def _slices(source: Path, lines: Path, jobs: int) -> dict[str, Any]:
    """One row per slice with a known line: features, the correction wanted, and what an error is measured on."""
    edition = open_edition(source)
    groups = {(patient, group) for patient, numbers in edition.patients.items() for group in numbers}
    known = HuLines(lines, groups | {(n.patient_id, n.cluster_index) for n in load_nodules()})
    wanted = [key for key in sorted(groups) if known.of(*key)]
    rows = Parallel(n_jobs=jobs)(delayed(_of_nodule)(source, known, *key) for key in wanted)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _of_nodule(source: Path, known: HuLines, patient: str, group: int) -> dict[str, np.ndarray]:
    edition = open_edition(source)
    png, lines = edition.read(patient, group), known.of(patient, group)
    others = [g for g in edition.patients[patient] if g != group]
    intercepts = [line.intercept for other in others for line in known.of(patient, other).values()]
    estimate = calibrate(png.images)
    places = np.array(sorted(lines))
    true = np.array([(lines[k].slope, lines[k].intercept) for k in places])
    here = np.column_stack([estimate.slope, estimate.intercept])[places]
    grey = np.array([_anchors(png.images[k], *line) for k, line in zip(places, true, strict=True)])
    at = (REFERENCE - here[:, 1:]) / here[:, :1]
    area = png.masks.any(axis=0).sum(axis=(1, 2))[places]
    return {
        "x": picture_features(png.images, estimate, intercepts)[places],
        "wanted": true[:, :1] * at + true[:, 1:] - REFERENCE,
        "at": at, "true": true, "grey": grey,
        "before": (here[:, :1] - true[:, :1]) * grey + here[:, 1:] - true[:, 1:],
        "patient": np.full(len(places), patient),
        "largest": np.arange(len(places)) == area.argmax(),
        "sd": np.full(len(places), estimate.lung_sd + estimate.soft_sd),
    }  # fmt: skip


def _anchors(image: np.ndarray, slope: float, intercept: float) -> list[float]:
    """Median grey of the slice's lung and of its soft tissue, NaN where there is hardly any."""
    hu = slope * image.astype(float) + intercept
    inside = [(hu > low) & (hu < high) for low, high in RANGES.values()]
    return [float(np.median(image[part])) if part.sum() > FEWEST_PIXELS else np.nan for part in inside]


def _fit(data: dict[str, Any], rows: np.ndarray) -> list[HistGradientBoostingRegressor]:
    wanted = np.clip(data["wanted"][rows], -LARGEST_HU, LARGEST_HU)
    return [
        HistGradientBoostingRegressor(loss="absolute_error", random_state=0, early_stopping=False, **TREES).fit(
            data["x"][rows], wanted[:, column]
        )
        for column in range(2)
    ]


def _errors(data: dict[str, Any], rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n, 2) HU at the slices' own lung and soft tissue, for HU ``reference`` (n, 2) at the estimate's anchors."""
    at, true, grey = (data[name][rows] for name in ("at", "true", "grey"))
    slope = (reference[:, 1] - reference[:, 0]) / (at[:, 1] - at[:, 0])
    hu = reference[:, :1] + slope[:, None] * (grey - at[:, :1])
    return hu - (true[:, :1] * grey + true[:, 1:])


def _figures(errors: np.ndarray) -> dict[str, dict[str, float]]:
    by_range = {}
    for name, column in zip(RANGES, np.abs(errors).T, strict=True):
        there = column[np.isfinite(column)]
        figures = {"median": np.median(there), "p90": np.quantile(there, 0.9), "mean": there.mean()}
        by_range[name] = {"n": len(there), **{key: round(float(value), 1) for key, value in figures.items()}}
    return by_range


def _ship(models: list[Any], x: np.ndarray, edges: np.ndarray, rms: np.ndarray, report: dict[str, Any]) -> None:
    tables = [_as_json(model) for model in models]
    for model, table in zip(models, tables, strict=True):
        difference = np.abs(BoostedTrees.from_json(table).predict(x) - model.predict(x))
        assert np.quantile(difference, 0.99) < 0.1, f"the table gives other values than the trees ({difference.max()})"
    source = {name: report[name] for name in ("slices", "nodules", "patients", "lines_sha256")}
    values = {
        "learned_from": source, "sd_edges": edges.round(2).tolist(), "rms_errors": rms.round(1).tolist(),
        "lung": tables[0], "soft": tables[1],
    }  # fmt: skip
    write_text(TABLE, json.dumps(values, separators=(",", ":")) + "\n")


def _as_json(model: Any) -> dict[str, Any]:
    trees = []
    for (predictor,) in model._predictors:
        trees.append([
            [-1, 0, -1, -1, round(float(n["value"]), 3)] if n["is_leaf"]
            else [int(n["feature_idx"]), float(n["num_threshold"]), int(n["left"]), int(n["right"]), 0]
            for n in predictor.nodes
        ])  # fmt: skip
    return {"baseline": round(float(np.ravel(model._baseline_prediction)[0]), 3), "trees": trees}


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("fit_png_hu", Options, learn_hu, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
