"""Verdicts that are wrong or borderline: the smallest edit that turns them, and whether the maps point to it.

    python pipelines/audit_turns.py --store runs/png --run RUN --out runs/turns

``--run``: a cross-validated run with predictions.csv; every nodule is asked of the model that never saw its patient.
The map of the log-odds ("why not the other?") is read as it speaks for the verdict, whole and biomarker by biomarker
(audit/log_odds.py): it points to the edit where at least twice the edited share of the plane lies on the edited pixels.
turned.csv has a row per nodule, pointing.csv one per nodule and method, turns.csv the cohort with intervals by patient;
parts holds what each nodule gave: the same command goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from audit.log_odds import REST, fit_parts, largest, parts_of, share_inside
from audit.measure import Reader
from audit_edits import loaded
from pydantic import Field

from lidc_xai.commands.common import need_out, need_path, pick_device, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError
from lidc_xai.evaluation.geometry import centred_disc
from lidc_xai.evaluation.statistics import bootstrap_mean
from lidc_xai.files import read_json, write_json
from lidc_xai.imaging import CropStore, NoduleCrop
from lidc_xai.nodules.turning import Turn, smallest_turn, wants_turning
from lidc_xai.progress import say, track
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped
from lidc_xai.training.assessment import read_predictions_table

DISC = "centred disc"
POINTS = 2.0
"""A map points to an edit where the edit holds so many times its share of the plane."""


class Turns(Config):
    """Fields of the script."""

    store: Path | None = Field(None, description="The store of the run.")
    run: Path | None = Field(None, description="A cross-validated run with predictions.csv.")
    weights: Path | None = Field(None, description="Published weights, where the models are adapters.")
    nodules: int = Field(60, ge=2, description="Wrong or borderline nodules, drawn by the seed.")
    calibrated: bool = Field(True, description="Only nodules whose HU are known; off with --set.")
    methods: list[str] = Field(["cdam", "attn_lrp", "gradcam", "attention"], description="Maps.")
    turns: int | None = Field(None, description="1 or 8 turns of every plane; as the models average by default.")


def measure(config: Turns, run: Run) -> None:
    """Turn verdict after verdict, then the tables."""
    folder, store = need_path(config.run, "--run"), CropStore(need_path(config.store, "--store"))
    device = pick_device(config.device)
    reader = Reader(folder.name, loaded(str(folder), config.weights), words(config.methods), config.turns, device)
    predictions = read_predictions_table(folder / "predictions.csv")
    betas, explained = fit_parts(predictions, reader.scaling)
    out, asked = need_out(config), wrong_or_borderline(config, store, predictions)
    settings = config.model_dump(mode="json", include={"run", "seed", "methods", "turns"})
    turned, pointing = [], []
    for nodule_id in track(asked, "turns", len(asked)):
        part = out / "parts" / f"{nodule_id}.json"
        if not part.exists() or read_json(part)["settings"] != settings:
            found = one_nodule(config.seed, device, reader, store, nodule_id, betas)
            write_json(part, {"settings": settings} | found)
        found = read_json(part)
        if found["refused"]:
            run.skipped.append(Skipped(nodule_id, "edit", found["refused"]))
            continue
        about = {"nodule_id": nodule_id, "patient_id": str(store.row(nodule_id)["patient_id"])}
        turned.append(about | found["turned"])
        pointing += [about | {"edit": found["turned"]["edit"]} | one for one in found["pointing"]]
    if not turned:
        raise DataError(f"{folder}: none of {len(asked)} wrong or borderline nodules can be edited; see skipped.csv")
    run.results = {"logit_explained_by_biomarkers": explained} | {
        f"beta {name}": value for name, value in betas.items()
    }
    say(f"biomarkers explain {explained:.0%} of the logit's variance")
    write_csv(out / "turned.csv", pd.DataFrame(turned))
    write_csv(out / "pointing.csv", pd.DataFrame(pointing))
    write_csv(out / "turns.csv", cohort(pd.DataFrame(turned), pd.DataFrame(pointing)))
    print(out / "turns.csv")


def wrong_or_borderline(config: Turns, store: CropStore, predictions: pd.DataFrame) -> list[str]:
    """Ids of the store, in a seeded order."""
    table = store.manifest
    good = ~table["larger_than_box"] & (table["n_readers_masked"] > 0)
    labels = table[good & table["hu_calibrated"] if config.calibrated else good].set_index("nodule_id")["label"]
    rows = predictions[predictions["nodule_id"].isin(labels.index)].to_dict("records")
    ids = [row["nodule_id"] for row in rows if wants_turning(row, labels[row["nodule_id"]])]
    order = np.random.default_rng(config.seed).permutation(len(ids))
    return [ids[place] for place in order[: config.nodules]]


def one_nodule(
    seed: int, device: str, reader: Reader, store: CropStore, nodule_id: str, betas: dict[str, float]
) -> dict[str, Any]:
    """A nodule's part of the tables: ``turned`` (a row), ``pointing`` (a row per method), or why it was ``refused``."""
    models, crop = reader.of(str(store.row(nodule_id)["patient_id"])), store.load(nodule_id)
    try:
        turn = smallest_turn(models, crop, seed=seed, device=device)
    except DataError as error:
        return {"refused": str(error)}
    if turn is None:
        return {"refused": "", "turned": {"edit": "", "turned": False}, "pointing": []}
    row, points = looked_at(reader, models, crop, turn, betas)
    known = [{name: None if value != value else value for name, value in one.items()} for one in points]
    return {"refused": "", "turned": row, "pointing": known}


def looked_at(
    reader: Reader, models: Sequence[Any], crop: NoduleCrop, turn: Turn, betas: dict[str, float]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the edit did to the log-odds, by biomarker; and where the maps speak for the verdict."""
    before, after = reader.outputs(models, [crop, turn.crop])
    sds = {name: 1.0 if name not in reader.scaling else reader.scaling[name][1] for name in reader.output_names}
    change = {
        name: (after[k] - before[k]) / sds[name] for k, name in enumerate(reader.output_names)
    }  # fmt: skip
    parts = parts_of(change, betas)
    row = {
        "edit": turn.edit, "turned": True, "dose": turn.dose, "before": turn.before, "after": turn.after,
        "logit_change": change["malignancy"], "largest_part": largest(parts, [*betas, REST]),
        "largest_biomarker": largest(parts, list(betas)),
    }  # fmt: skip
    row |= {f"by {name}": value for name, value in parts.items()}
    changed = turn.changed[len(turn.changed) // 2]
    if not changed.any():
        return row, []
    area = float(changed.mean())
    disc = np.asarray(centred_disc(changed.shape, int(changed.sum())), dtype=float)
    found = [{"method": DISC, "whole": share_inside(disc, changed), "own_part": np.nan, "area": area}]
    sign = 1.0 if turn.before > 0.5 else -1.0
    columns = torch.arange(len(reader.output_names))[None]
    for method, maps in reader.maps(models, [crop], columns).items():
        by_name = dict(zip(reader.output_names, maps[0].double().numpy(), strict=True))
        of_parts = parts_of(by_name, betas)
        own = share_inside(sign * of_parts[turn.edit], changed) if turn.edit in of_parts else np.nan
        whole = share_inside(sign * by_name["malignancy"] if method != "attention" else by_name["malignancy"], changed)
        found.append({"method": method, "whole": whole, "own_part": own, "area": area})
    return row, found


def cohort(turned: pd.DataFrame, pointing: pd.DataFrame) -> pd.DataFrame:
    """Figure, of what, nodules, mean and 95 % interval by patient."""
    table = [_figure("turned by an edit", "all", turned["turned"], turned)]
    done = turned[turned["turned"]]
    for edit, own in done.groupby("edit"):
        table.append(_figure("turned first by", str(edit), turned["edit"] == edit, turned))
        table.append(_figure("dose, absolute", str(edit), own["dose"].abs(), own))
        same = own["largest_biomarker"] == edit
        table.append(_figure("the edited biomarker's part of the log-odds moves most", str(edit), same, own))
    if len(done):
        same = done["largest_biomarker"] == done["edit"]
        table.append(_figure("the edited biomarker's part of the log-odds moves most", "all", same, done))
        rest = done["largest_part"] == REST
        table.append(_figure("what no biomarker explains moves most", "all", rest, done))
    for method, own in pointing.groupby("method", sort=False) if len(pointing) else ():
        for part in ("whole", "own_part"):
            known = own[own[part].notna()]
            if len(known):
                hit = known[part] >= POINTS * known["area"]
                table.append(_figure(f"points to the edit: {part.replace('_', ' ')}", str(method), hit, known))
                table.append(_figure(f"share on the edit: {part.replace('_', ' ')}", str(method), known[part], known))
        if method == DISC:
            table.append(_figure("edited share of the plane", "all", own["area"], own))
    return pd.DataFrame(table)


def _figure(name: str, of: str, values: pd.Series, rows: pd.DataFrame) -> dict[str, Any]:
    mean = bootstrap_mean(values.astype(float).tolist(), rows["patient_id"].astype(str).tolist())
    ends = {key: round(getattr(mean, key), 3) for key in ("mean", "low", "high")}
    return {"figure": name, "of": of, "nodules": len(values)} | ends


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("audit_turns", Turns, measure, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
