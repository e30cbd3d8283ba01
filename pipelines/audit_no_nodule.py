"""Crops that are no nodule: how often do the probability, the words and the maps look strong all the same?

    python pipelines/audit_no_nodule.py --slices slices.zip --hu png_hu.csv --model RUN --out runs/no-nodule

From the pictures around nodules of known HU, boxes elsewhere are cut: empty lung, a vessel, the pleura, and a place
drawn with no regard to what lies there ("apart"); none has a reader's contour in its box. ``--model``: as in
audit_edits.py; each box is read by models that never saw its patient. A map is strong where its largest score is above
the upper quartile of the nodules' own maps, weak below the lower one. no_nodule.csv: shares by kind with intervals by
patient; crops.csv: a row per crop. The share of clear verdicts on lung, vessels and pleura is written into the models'
records, from which pages of crops without readers' contours say it. Crops that an earlier call into OUT has
read are not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from audit.measure import RANDOM, Reader
from audit.places import APART, KINDS, places
from audit_edits import loaded
from pydantic import Field

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.commands.common import need_out, need_path, pick_device, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.imaging import NoduleCrop, crop_nodule
from lidc_xai.imaging.png.edition import png_crop, png_volume
from lidc_xai.imaging.png.learned import hu_of_pictures
from lidc_xai.imaging.png.lines import HuLines
from lidc_xai.imaging.png.match import match_nodule
from lidc_xai.imaging.png.source import open_edition
from lidc_xai.nodules import predict
from lidc_xai.nodules.ensemble import models_for
from lidc_xai.nodules.record import NO_NODULE, SURE, NoNodule
from lidc_xai.nodules.strength import Anchor, save_field
from lidc_xai.progress import track
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped

NODULE = "nodule"
FEWEST_SLICES = 3


class NoNoduleConfig(Config):
    """Fields of the script."""

    slices: Path | None = Field(None, description="The PNG edition, a zip or a folder.")
    hu: Path | None = Field(None, description="Its calibration, png_hu.csv.")
    model: str | None = Field(None, description="A model, a run, or several joined by +.")
    weights: Path | None = Field(None, description="Published weights, where the models are adapters.")
    nodules: int = Field(60, ge=20, description="Nodules around which places are looked for, drawn by the seed.")
    methods: list[str] = Field(["cdam", "attn_lrp", "gradcam", "attention"], description="Maps.")
    output: str = Field("malignancy", description="The output whose maps are looked at.")
    turns: int | None = Field(None, description="1 or 8 turns of every plane; as the models average by default.")


def measure(config: NoNoduleConfig, run: Run) -> None:
    """Cut, read, tabulate."""
    if not config.model:
        raise UsageError("--model is missing")
    models = [model for one in config.model.split("+") for model in loaded(one, config.weights)]
    reader = Reader(config.model, models, words(config.methods), config.turns, pick_device(config.device))
    if config.output not in reader.output_names:
        raise UsageError(f"--output {config.output}: the model has {', '.join(reader.output_names)}")
    out = need_out(config)
    known = measured_before(out / "crops.csv", reader.methods)
    rows = [
        row
        for found in crops(config, reader, run)
        for row in known.get(found[2].nodule_id) or read(config, reader, *found)
    ]
    table = ranked(pd.DataFrame(rows))
    write_csv(out / "crops.csv", table)
    write_csv(out / "no_nodule.csv", summary(table))
    measured = no_nodule_record(table)
    for one in config.model.split("+"):
        save_field(Path(one), NO_NODULE, asdict(measured))
    print(out / "no_nodule.csv")


def measured_before(path: Path, methods: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Crop -> its rows in the table of an earlier call into the same folder, where they hold every method."""
    if not path.exists():
        return {}
    table = pd.read_csv(path, keep_default_na=False, dtype={"patient_id": str})
    wanted = [*methods, RANDOM]
    of_crops = table[table["method"].isin(wanted)].groupby("crop", sort=False)
    return {str(crop): rows.to_dict("records") for crop, rows in of_crops if len(rows) == len(wanted)}


def crops(config: NoNoduleConfig, reader: Reader, run: Run) -> Iterator[tuple[str, str, NoduleCrop]]:
    """(patient, kind, crop): nodules of known HU, and the places around each."""
    edition = open_edition(need_path(config.slices, "--slices"))
    known: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        known.setdefault(nodule.patient_id, []).append(nodule)
    groups = {(patient, group) for patient, numbers in edition.patients.items() for group in numbers}
    lines = HuLines(need_path(config.hu, "--hu"), groups)
    usable = sorted(key for key in groups if lines.of(*key) and models_for(reader.models, key[0]))
    if not usable:
        raise DataError("no nodule of known HU is of a patient that a model has not seen")
    order = np.random.default_rng(config.seed).permutation(len(usable))[: config.nodules]
    for place in track(order, "no nodule", len(order)):
        patient, group = usable[place]
        try:
            png = edition.read(patient, group)
            match = match_nodule(png, known[patient])
            if len(png.images) < FEWEST_SLICES:
                raise DataError(f"{png.name}: {len(png.images)} slices; {FEWEST_SLICES} are needed to tell a vessel")
            calibration = hu_of_pictures(png.images, lines.of(patient, group), [], png.name)
            nodule = png_crop(png, match, calibration=calibration)
        except DataError as error:
            run.skipped.append(Skipped(f"{patient}/nodule-{group}", "crop", str(error)))
            continue
        yield patient, NODULE, nodule
        ct, spacing = png_volume(png, match, calibration), match.nodule.pixel_spacing_mm
        others = [
            (*((one.centroid[[1, 0]] - match.offset[[1, 0]]) * spacing), _radius_mm(one))
            for one in known[patient]
            if one.nodule_id != match.nodule.nodule_id and one.series_uid == match.nodule.series_uid
        ]
        found = places(calibration.to_hu(png.images), png.masks.any(0), spacing, 32.0, config.seed, others)
        for kind, (row, column) in found.items():
            at = ct.stored_index_to_mm(np.array([column, row, (len(png.images) - 1) / 2]))
            yield patient, kind, crop_nodule(ct, at, nodule_id=f"{nodule.nodule_id}-{kind}")


def _radius_mm(nodule: Nodule) -> float:
    return max(reading.diameter_mm for reading in nodule.readers) / 2


def read(config: NoNoduleConfig, reader: Reader, patient: str, kind: str, crop: NoduleCrop) -> list[dict[str, Any]]:
    """What a page would say of a crop: the prediction, and the largest score of each method's map."""
    models = reader.of(patient)
    said = predict(models, [crop], device=str(next(models[0].parameters()).device)).iloc[0]
    about = {"crop": crop.nodule_id, "patient_id": patient, "kind": kind, "in_doubt": bool(said["flag"])}
    shown = ("malignancy_probability", "malignancy_words", "subtlety", "diameter")
    about |= {name: said[name] for name in shown if name in said}
    column = torch.tensor([[reader.output_names.index(config.output)]])
    maps = reader.maps(models, [crop], column)
    return [about | {"method": method, "largest": float(one.abs().max())} for method, one in maps.items()]


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """``rank`` of every map against the quartiles of the nodules' maps of its method."""
    found = []
    for _, own in rows.groupby("method", sort=False):
        weak, strong, full = np.percentile(own.loc[own["kind"] == NODULE, "largest"], [25, 75, 95])
        anchor = Anchor(full, weak, strong, int((own["kind"] == NODULE).sum()))
        found.append(own.assign(rank=own["largest"].map(anchor.rank)))
    return pd.concat(found, ignore_index=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By kind: shares and means with 95 % intervals by patient. ``strong in all``: a clear verdict, a usual or strong
    map of the first method, and no doubt on the page."""
    table = []
    first = rows["method"].iloc[0]
    for kind in (NODULE, *KINDS, APART):
        of_kind = rows[rows["kind"] == kind]
        one = of_kind[of_kind["method"] == first]
        if one.empty:
            continue
        sure = (one["malignancy_probability"] - 0.5).abs() >= SURE
        figures = {
            "probability": one["malignancy_probability"], "high rating": one["malignancy_probability"] > 0.5,
            "clear verdict": sure, "in doubt": one["in_doubt"],
        }  # fmt: skip
        for name in ("subtlety", "diameter"):
            if name in one:
                figures[name] = one[name]
        for method, own in of_kind.groupby("method", sort=False):
            figures |= {f"{method} {rank}": own["rank"] == rank for rank in ("strong", "weak")}
        figures["strong in all"] = sure & (one["rank"] != "weak") & ~one["in_doubt"]
        for figure, values in figures.items():
            patients = of_kind.loc[values.index, "patient_id"].tolist()
            mean = bootstrap_mean(values.astype(float).tolist(), patients)
            ends = {name: round(getattr(mean, name), 3) for name in ("mean", "low", "high")}
            counts = {"crops": len(values), "patients": len(set(patients))}
            table.append({"kind": kind, "figure": figure} | counts | ends)
    return pd.DataFrame(table)


def no_nodule_record(rows: pd.DataFrame) -> NoNodule:
    """Over empty lung, vessels and pleura, the share with a clear verdict: what a model's pages say of themselves."""
    empty = rows[rows["kind"].isin(KINDS)].drop_duplicates("crop")
    clear = ((empty["malignancy_probability"] - 0.5).abs() >= SURE).astype(float).tolist()
    found = bootstrap_mean(clear, empty["patient_id"].tolist())
    ends = {"clear": found.mean, "low": found.low, "high": found.high}
    return NoNodule(len(empty), empty["patient_id"].nunique(), **{name: round(end, 3) for name, end in ends.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("audit_no_nodule", NoNoduleConfig, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
