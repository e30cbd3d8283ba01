"""Every estimator's faithfulness in one table: fidelity, SaCo and compactness, on nodules and on photographs.

    python pipelines/faithfulness.py --store runs/png --model lidc-small --limit 60 --out runs/faithfulness
    python pipelines/faithfulness.py --photos photos/msrc --weights dinov2_vits14.safetensors --limit 20 \\
        --out runs/faithfulness

An arm is a model with its images: each ``--model`` on ``limit`` nodules of ``--store`` (removed pixels become the mean
of the image, or lung), and DINOv2 ViT-S/14 with a linear head, fitted here on ``photos_to_learn`` other photographs to
name the largest thing in the picture (removed: mean, or blur). An arm has a file for every method and fill in
OUT/<arm>, which the same command keeps after a kill; faithfulness.md joins the arms that lie in OUT.
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
import timm
import torch
from PIL import Image
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.evaluation import compactness, fidelity, saco
from lidc_xai.evaluation.maps import resampled, spanning
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.explain import explain, list_methods
from lidc_xai.files import atomic_path, write_text
from lidc_xai.imaging import CropStore
from lidc_xai.models import load_model
from lidc_xai.models.weights import load_weights
from lidc_xai.nodules.cases import store_cases
from lidc_xai.nodules.known import known_patients
from lidc_xai.progress import say
from lidc_xai.run import Run

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
    photos: Path | None = Field(None, description="Folder of MSRC v2: images, masks, classes.json.")
    weights: Path | None = Field(None, description="DINOv2 ViT-S/14, for the photographs.")
    photo_size: int = Field(112, ge=28, description="Side of the photographs in pixels, a multiple of 14.")
    photos_to_learn: int = Field(300, ge=20, description="Photographs that the linear head is fitted on.")
    limit: int = Field(60, ge=2, description="Nodules, or photographs.")
    points: int = Field(11, ge=3, description="Points of the MIF and LIF curves.")
    samples: int = Field(50, ge=1, description="Samples or steps of the methods that repeat themselves.")


@dataclass(frozen=True)
class Arm:
    """A model with its images (B,C,H,W), what is asked about them, and what beside the mean removed pixels become."""

    name: str
    model: nn.Module
    images: Tensor
    target: Any
    ids: list[str]
    clusters: list[str]
    other: str
    fill: dict[str, Any]


def measure(study: Study, run: Run) -> None:
    """The arms that were asked for, then the table of all that lie in OUT."""
    out = need_out(study)
    if study.store is None and study.photos is None:
        raise UsageError("give --store, --photos, or both")
    arms = [nodules(study, CropStore(study.store), name) for name in study.model] if study.store is not None else []
    if study.photos is not None:
        if study.weights is None:
            raise UsageError("--photos needs --weights, DINOv2 ViT-S/14")
        arms.append(photographs(study, study.photos, study.weights))
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
    how: dict[str, Any] = {"replacement": fill, "seed": study.seed} | (arm.fill if fill == arm.other else {})
    curves = fidelity(arm.model, arm.images, pixels, arm.target, points=study.points, **how)
    return pd.DataFrame(
        {
            "case": arm.ids,
            "cluster": arm.clusters,
            "fill": fill,
            "fidelity": curves.area,
            "at_stake": curves.at_stake,
            "saco": saco(arm.model, arm.images, pixels, arm.target, **how).saco,
            "compactness": compactness(maps).value,
        }
    )


def nodules(study: Study, store: CropStore, name: str) -> Arm:
    """The middle axial planes of ``limit`` nodules, drawn by the seed; patients are the clusters. They are of
    patients that the model has not seen, as far as there are such."""
    model = load_model(name)
    unseen = store.manifest[~store.manifest["patient_id"].isin(known_patients(model.training_info))]
    if len(unseen) < study.limit:
        say(f"{name}: {len(unseen)} nodules of patients that it has not seen; the others stand in the table too")
    chosen = store.manifest if len(unseen) < study.limit else unseen
    ids = chosen["nodule_id"].sample(frac=1, random_state=study.seed).head(study.limit)
    cases = [lazy.load() for lazy in store_cases(model, store, sorted(ids), ("axial",))]
    cases = [case for case in cases if case.masks is not None]
    fill = {"masks": torch.cat([case.masks for case in cases if case.masks is not None])}
    fill["parenchyma"] = torch.cat([case.parenchyma for case in cases if case.parenchyma is not None])
    images, names = torch.cat([case.images for case in cases]), [case.case_id for case in cases]
    clusters = [case.cluster for case in cases]
    return Arm(f"nodules, {Path(name).name}", model, images, study.output, names, clusters, "lung", fill)


def photographs(study: Study, folder: Path, weights: Path) -> Arm:
    """DINOv2 with a fitted head, and photographs that it did not learn from."""
    if study.photo_size % 14:
        raise UsageError(f"photo_size is a multiple of 14, not {study.photo_size}")
    names = sorted(path.stem for path in (folder / "images").glob("*.jpg"))
    if len(names) < study.photos_to_learn + 2:
        raise DataError(f"{folder}: holds {len(names)} photographs; wanted more than {study.photos_to_learn}")
    classes = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    order = np.random.default_rng(study.seed).permutation(len(names))
    learn, rest = order[: study.photos_to_learn], order[study.photos_to_learn :][: study.limit]
    model = timm.create_model("vit_small_patch14_dinov2", img_size=study.photo_size, num_classes=0)
    load_weights(model, weights, "dinov2_vits14")
    model.eval()
    features, labels = [], []
    with torch.no_grad():
        for index in learn:
            features.append(model(photograph(folder, names[index], study.photo_size)[None])[0].numpy())
            labels.append(largest(folder, names[index]))
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(np.stack(features), labels)
    model.reset_classifier(len(classes) + 1)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(-20.0)  # what the head never saw is out of the question
        model.head.weight[fitted.classes_] = torch.from_numpy(fitted.coef_).float()
        model.head.bias[fitted.classes_] = torch.from_numpy(fitted.intercept_).float()
    images = torch.stack([photograph(folder, names[index], study.photo_size) for index in rest])
    truth = torch.tensor([largest(folder, names[index]) for index in rest])
    with torch.no_grad():
        right = float((model(images).argmax(1) == truth).float().mean())
    say(f"{len(rest)} photographs; the head names {right:.0%} of them rightly")
    ids = [names[index] for index in rest]
    return Arm("photographs, dinov2_vits14", model, images, truth, ids, ids, "blur", {})


def photograph(folder: Path, name: str, size: int) -> Tensor:
    """(3, size, size): the middle square, normalised as DINOv2 was trained."""
    image = Image.open(folder / "images" / f"{name}.jpg").convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def largest(folder: Path, name: str) -> int:
    """The class with most pixels in the middle square (0 where nothing is marked)."""
    path = next((folder / "masks").glob(f"{name}*"))
    mask = np.asarray(Image.open(path))
    side = min(mask.shape[:2])
    top, left = (mask.shape[0] - side) // 2, (mask.shape[1] - side) // 2
    counts = np.bincount(mask[top : top + side, left : left + side].ravel(), minlength=1)
    return int(counts[1:].argmax() + 1) if counts[1:].any() else 0


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
    """Mean and 95 % interval (whole patients drawn) of every figure, method and fill."""
    lines = []
    for (fill, method), group in rows.groupby(["fill", "method"], sort=False):
        for metric in ("fidelity", "saco", "compactness", "at_stake"):
            mean = bootstrap_mean(group[metric].to_numpy(dtype=float), group["cluster"].tolist())
            figures = {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n}
            lines.append({"method": method, "fill": fill, "metric": metric} | figures)
    return pd.DataFrame(lines)


def markdown(arm: str, table: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """One arm's lines: methods by their fidelity with the mean as fill."""
    wide = table.set_index(["metric", "fill", "method"]).sort_index()
    other = next((fill for fill in rows["fill"].unique() if fill != "mean"), "other")
    lines = [f"### {arm}: {rows['case'].nunique()} images of {rows['cluster'].nunique()} clusters", ""]
    lines.append(f"| method | LIF − MIF, mean | LIF − MIF, {other} | SaCo, mean | SaCo, {other} | compactness |")
    lines.append("|---|---|---|---|---|---|")
    columns = [(metric, fill) for metric in ("fidelity", "saco") for fill in ("mean", other)] + [
        ("compactness", "mean")
    ]
    for method in wide.loc[("fidelity", "mean")].sort_values("mean", ascending=False).index:
        cells = []
        for metric, fill in columns:
            row = wide.loc[(metric, fill, method)] if (metric, fill, method) in wide.index else None
            if row is None or not np.isfinite(row["mean"]):
                cells.append("—")
                continue
            digits = 0 if metric == "fidelity" else 2
            half = max(row["high"] - row["mean"], row["mean"] - row["low"])
            cells.append(f"{row['mean']:.{digits}f} ± {half:.{digits}f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("faithfulness", Study, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
