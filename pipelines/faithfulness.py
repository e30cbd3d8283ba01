"""Every estimator's faithfulness in one table: fidelity, SaCo and compactness, on nodules and on photographs.

    python pipelines/faithfulness.py --store runs/png --model lidc-small --limit 60 --out runs/faithfulness
    python pipelines/faithfulness.py --photographs photos --weights weights --limit 60 --out runs/faithfulness

An arm is a model with its images: each ``--model`` on ``limit`` nodules of ``--store`` (removed pixels become the mean
of the image, or lung), and DINOv2 ViT-S/14 with the head of the studies on MSRC's photographs of two classes, of which
one is asked for (removed: mean, or blur). An arm has a file for every method and fill in OUT/<arm>, which the same
command keeps after a kill; faithfulness.md joins the arms that lie in OUT.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from studies.photo_arms import PhotoArms
from studies.study_arms import VIT, what_to_bring
from torch import Tensor, nn

from lidc_xai.commands.common import need_out, pick_device
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import ModelError, UsageError
from lidc_xai.evaluation import compactness, fidelity, saco
from lidc_xai.evaluation.forward import Precision
from lidc_xai.evaluation.maps import resampled, spanning
from lidc_xai.evaluation.statistics import bootstrap_mean, paired_difference
from lidc_xai.explain import Probability, explain, list_methods
from lidc_xai.files import atomic_path, write_text
from lidc_xai.imaging import CropStore
from lidc_xai.models import load_model
from lidc_xai.nodules.cases import store_cases
from lidc_xai.nodules.record import known_patients
from lidc_xai.progress import say
from lidc_xai.run import Run

RIVAL = "cdam"
"""The map that the others are compared with on the same images: what a page shows first."""
VARIANTS: dict[str, dict[str, Any]] = {
    "attn_lrp, attention constant": {"method": "attn_lrp", "attention": "detach"},
    "attn_lrp, γ .05/.25": {"method": "attn_lrp", "gamma_linear": 0.05, "gamma_conv": 0.25},
    "attn_lrp, γ .05/.25, pixels": {"method": "attn_lrp", "gamma_linear": 0.05, "gamma_conv": 0.25, "at": "pixels"},
    "libragrad of fullgrad": {"method": "libragrad", "base": "fullgrad"},
    "libragrad of gradcam": {"method": "libragrad", "base": "gradcam"},
    "libragrad of cdam": {"method": "libragrad", "base": "cdam"},
}


class Study(Config):
    """Fields of the script."""

    store: Path | None = Field(None, description="Store of crops for the nodules' arms.")
    model: list[str] = Field(["lidc-small"], description="Models of nodules: shipped names or folders.")
    output: str = Field("malignancy", description="The nodule models' output that is explained.")
    photographs: Path | None = Field(None, description="Folder with msrc/.")
    weights: list[str] = Field([], description="A folder with DINOv2 ViT-S/14, or dinov2_vits14=FILE.")
    features: Path | None = Field(None, description="Where features of the photographs are kept (OUT/features).")
    size: int = Field(224, ge=28, multiple_of=14, description="Side of the photographs in pixels.")
    limit: int = Field(60, ge=2, description="Nodules, or photographs.")
    points: int = Field(11, ge=3, description="Points of the MIF and LIF curves.")
    samples: int = Field(50, ge=1, description="Samples or steps of the methods that repeat themselves.")
    precision: Precision = Field("float32", description="Of the passes with pixels removed; bfloat16: faster.")


@dataclass(frozen=True)
class Arm:
    """A model with its images (B,C,H,W), what is asked about them, and what beside the mean removed pixels become.

    ``probability``: what SaCo follows (None: the target's own probability).
    """

    name: str
    model: nn.Module
    images: Tensor
    target: Any
    ids: list[str]
    clusters: list[str]
    other: str
    fill: dict[str, Any]
    probability: Any = None


def measure(study: Study, run: Run) -> None:
    """The arms that were asked for, then the table of all that lie in OUT."""
    out, device = need_out(study), pick_device(study.device)
    if study.store is None and study.photographs is None:
        raise UsageError("give --store, --photographs, or both")
    store = None if study.store is None else CropStore(study.store)
    arms = [] if store is None else [nodules(study, store, name, device) for name in study.model]
    if study.photographs is not None:
        arms.append(photographs(study, study.photographs, out, device))
    for arm in arms:
        measure_arm(study, arm, out / arm.name)
    write_table(out)


def measure_arm(study: Study, arm: Arm, folder: Path) -> None:
    """A file for every method and fill: what lies there already, for the same images and options, is kept."""
    repeated = {"smoothgrad": "samples", "smooth_cdam": "samples"}
    repeated |= {"integrated_gradients": "steps", "integrated_cdam": "steps"}
    able = list_methods(arm.model)
    rows = {label: given for label, given in VARIANTS.items() if given["method"] in able}
    rows |= {name: {"method": name} | ({repeated[name]: study.samples} if name in repeated else {}) for name in able}
    asked = {"points": study.points, "seed": study.seed, "samples": study.samples, "images": arm.ids}
    asked |= {"precision": study.precision} if study.precision != "float32" else {}
    for fill, label in product(("mean", arm.other), rows):
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', label.lower())}-{fill}.parquet"
        made_with = json.dumps(asked | {"target": str(arm.target), "options": rows[label]}, sort_keys=True)
        if path.exists() and pd.read_parquet(path)["made_with"].iloc[0] == made_with:
            continue
        start = time.process_time()
        options = {name: value for name, value in rows[label].items() if name != "method"}
        try:
            explanation = explain(arm.model, arm.images, arm.target, rows[label]["method"], **options)
        except ModelError as error:
            say(f"{arm.name}: {label}: {error}")
            continue
        table = figures_of(study, arm, spanning(explanation)[:, 0], fill)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            table.assign(method=label, made_with=made_with).to_parquet(temporary, index=False)
        say(f"{arm.name}: {label}, {fill}: {time.process_time() - start:.0f} s")


def figures_of(study: Study, arm: Arm, maps: Tensor, fill: str) -> pd.DataFrame:
    """A row per image with every figure; removed pixels become ``fill``."""
    size = (arm.images.shape[-2], arm.images.shape[-1])
    pixels = maps if tuple(maps.shape[-2:]) == size else resampled(maps, size)
    how: dict[str, Any] = {
        "replacement": fill,
        "seed": study.seed,
        "precision": study.precision,
        "max_batch": 256 if arm.images.is_cuda else 64,
    }
    how |= arm.fill if fill == arm.other else {}
    curves = fidelity(arm.model, arm.images, pixels, arm.target, points=study.points, **how)
    return pd.DataFrame(
        {
            "case": arm.ids,
            "cluster": arm.clusters,
            "fill": fill,
            "fidelity": curves.area,
            "at_stake": curves.at_stake,
            "saco": saco(arm.model, arm.images, pixels, arm.probability or arm.target, **how).saco,
            "compactness": compactness(maps).value,
        }
    )


def nodules(study: Study, store: CropStore, name: str, device: str) -> Arm:
    """The middle axial planes of ``limit`` nodules, drawn by the seed; patients are the clusters. They are of
    patients that the model has not seen, as far as there are such."""
    model = load_model(name).to(device)
    unseen = store.manifest[~store.manifest["patient_id"].isin(known_patients(model.training_info))]
    if len(unseen) < study.limit:
        say(f"{name}: {len(unseen)} nodules of patients that it has not seen; the others stand in the table too")
    chosen = store.manifest if len(unseen) < study.limit else unseen
    ids = chosen["nodule_id"].sample(frac=1, random_state=study.seed).head(study.limit)
    cases = [lazy.load() for lazy in store_cases(model, store, sorted(ids), ("axial",))]
    cases = [case for case in cases if case.masks is not None]
    fill = {"masks": torch.cat([case.masks for case in cases if case.masks is not None])}
    fill["parenchyma"] = torch.cat([case.parenchyma for case in cases if case.parenchyma is not None])
    fill = {part: masks.to(device) for part, masks in fill.items()}
    images, names = torch.cat([case.images for case in cases]).to(device), [case.case_id for case in cases]
    clusters = [case.cluster for case in cases]
    path = Path(name)
    called = path.name if path.name != "model" else " ".join(path.parts[-3:-1])  # RUN/fold-0/model
    return Arm(f"nodules, {called}", model, images, study.output, names, clusters, "lung", fill)


def photographs(study: Study, folder: Path, out: Path, device: str) -> Arm:
    """DINOv2 with the studies' head of 21 classes; of the two classes of a photograph the first is asked for."""
    arms = PhotoArms(
        folder, study.weights, study.features or out / "features", size=study.size, seed=study.seed, device=device
    )
    if not arms.has(VIT):
        raise UsageError(f"--photographs: {what_to_bring(VIT)}")
    arm = arms.masked(VIT)
    chosen = arm.images[: study.limit]
    images = torch.cat([arm.read(image).tensor for image in chosen]).to(device)
    asked, names = torch.tensor([image.classes[0] for image in chosen]), [image.name for image in chosen]
    sigmoid = Probability(asked, activation="sigmoid")
    return Arm(f"photographs, {arm.model}", arm.classifier.model, images, asked, names, names, "blur", {}, sigmoid)


def write_table(out: Path) -> None:
    """faithfulness.csv (every figure) and faithfulness.md (an arm after the other, best fidelity first)."""
    parts, lines = [], []
    for folder in sorted({path.parent for path in out.glob("*/*.parquet")}):
        rows = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
        table = summary(rows)
        parts.append(table.assign(arm=folder.name))
        lines += markdown(folder.name, table, rows)
    write_csv(out / "faithfulness.csv", pd.concat(parts, ignore_index=True))
    write_text(out / "faithfulness.md", "\n".join(lines) + "\n")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval (whole patients drawn) of every figure, method and fill; of fidelity and SaCo also what
    they are above CDAM's on the same images (``less cdam``)."""
    lines = []
    for (fill, method), group in rows.groupby(["fill", "method"], sort=False):
        clusters = group["cluster"].tolist()
        for metric in ("fidelity", "saco", "compactness", "at_stake"):
            mean = bootstrap_mean(group[metric].to_numpy(dtype=float), clusters)
            figures = {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n}
            lines.append({"method": method, "fill": fill, "metric": metric} | figures)
        rival = rows[(rows["fill"] == fill) & (rows["method"] == RIVAL)].set_index("case")
        for metric in ("fidelity", "saco") if len(rival) and method != RIVAL else ():
            beside = rival[metric].reindex(group["case"])
            more = paired_difference(group[metric].to_numpy(dtype=float), beside.to_numpy(dtype=float), clusters)
            figures = {"mean": more.difference, "low": more.low, "high": more.high, "n": more.n}
            lines.append({"method": method, "fill": fill, "metric": f"{metric} less {RIVAL}"} | figures)
    return pd.DataFrame(lines)


def markdown(arm: str, table: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """One arm's lines: methods by their fidelity with the mean as fill."""
    other = next((fill for fill in rows["fill"].unique() if fill != "mean"), "other")
    fidelities = [f"LIF − MIF, {fill}{less}" for less in ("", f", less {RIVAL}'s") for fill in ("mean", other)]
    columns = dict(zip(fidelities, product(("fidelity", f"fidelity less {RIVAL}"), ("mean", other)), strict=True))
    for fill in ("mean", other):
        columns[f"SaCo, {fill}"] = ("saco", fill)
    columns["compactness"] = ("compactness", "mean")
    lines = [f"### {arm}: {rows['case'].nunique()} images of {rows['cluster'].nunique()} clusters", ""]
    lines += [f"| method | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    wide = table.set_index(["metric", "fill", "method"]).sort_index()
    for method in wide.loc[("fidelity", "mean")].sort_values("mean", ascending=False).index:
        cells = [cell(wide, (*place, method)) for place in columns.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def cell(wide: pd.DataFrame, place: tuple[str, str, str]) -> str:
    """Mean ± the larger half of the interval; a difference with its interval; a dash where nothing was measured."""
    row = wide.loc[place] if place in wide.index else None
    if row is None or not np.isfinite(row["mean"]):
        return "—"
    digits = 0 if place[0].startswith("fidelity") else 2
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    if place[0].endswith(f"less {RIVAL}"):
        return f"{mean:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f} ± {max(high - mean, mean - low):.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("faithfulness", Study, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
