"""The audit by edits: real nodules are changed in one property at a time, and models and maps are asked about it.

    python pipelines/audit_edits.py --config configs/audit_edits.yaml --store runs/png --model RUN,RUN+RUN2 \\
        --weights dinov2_vits14.safetensors --out runs/audit

``--model``: a row of the tables each, separated by commas: a model, a cross-validated run, or several joined by "+".
Every nodule is read by those of them that never saw its patient, and their outputs and maps are averaged: a run gives
one model a nodule, two runs of other seeds an ensemble of two. With ``allow_seen`` seen.csv says how many nodules were
read by models that had seen them; such rows are no out-of-fold figures. OUT/parts/<nodule>.* hold one nodule each and
are kept: the same command goes on after a kill, ``--minutes`` ends the measuring early, and ``--shard i/n`` measures
a share and makes no tables. The tables are made of what is there, with ``--set measure=false`` of nothing more:
dose_response.csv, selectivity.csv, sham.csv, own_measures.csv, maps.csv, turned.csv (wrong and borderline verdicts: the
smallest edit that turns each) and turns.csv, realism.csv and audit.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from audit.measure import Measured, Reader, measure_nodule, trunk_features
from audit.realism import realism
from audit.tables import dose_response, map_table, own_measures, selectivity, sham_noise
from audit.turned import smallest_turns, turns_table
from pydantic import Field

from lidc_xai.bounded import read_npz
from lidc_xai.commands.common import need_out, need_path, pick_device, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, read_json, write_json, write_text
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, build_model
from lidc_xai.models.saved import is_adapter, member_folders
from lidc_xai.nodules._predict import load_models
from lidc_xai.nodules.ensemble import models_for
from lidc_xai.progress import say, track
from lidc_xai.ratings import OUTPUTS
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped


class Audit(Config):
    """Fields of the script."""

    store: Path | None = Field(None, description="A store of real crops.")
    model: list[str] = Field([], description="Models and runs, separated by commas; + joins what is averaged.")
    weights: Path | None = Field(None, description="Published DINOv2 ViT-S/14: for adapters, and the realism test.")
    nodules: int = Field(100, ge=2, description="Nodules, drawn by the seed.")
    methods: list[str] = Field(["cdam", "attention", "gradcam", "attn_lrp"], description="Maps.")
    turns: int | None = Field(None, description="1 or 8 turns of every plane; as the models average by default.")
    calibrated: bool = Field(True, description="Only nodules whose HU are known; off with --set.")
    allow_seen: bool = Field(False, description="Also nodules of patients that a model has seen.")
    minutes: float = Field(0.0, ge=0, description="End measuring after so many minutes; 0: when all are done.")
    shard: str = Field("", description="i/n: measure every n-th nodule from the i-th, and make no tables.")
    measure: bool = Field(True, description="Off with --set: only the tables of what is there.")


def audit(config: Audit, run: Run) -> None:
    """Measure nodule by nodule, then write the tables."""
    index, count = _shard(config.shard) if config.shard else (0, 1)
    if config.turns not in (None, 1, 8):
        raise UsageError(f"--turns {config.turns}: wanted 1 or 8")
    store, device = CropStore(need_path(config.store, "--store")), pick_device(config.device)
    if config.shard:  # several write parts into one folder, each its own record beside them
        if config.out is None:
            raise UsageError("--out is missing: name the folder to write into")
        out, run.out = config.out, config.out / "shards" / str(index)
        run.out.mkdir(parents=True, exist_ok=True)
    else:
        out = need_out(config)
    readers = _readers(config, device)
    trunk = _trunk(config.weights).to(device) if config.weights else None
    if config.measure:
        ids = chosen_nodules(config, store, readers)[index::count]
        _measure(config, store, out / "parts", ids, readers, trunk)
    if not config.shard:
        write_tables(config, out, store, readers, trunk, run)


def _measure(
    config: Audit, store: CropStore, parts: Path, ids: Sequence[str], readers: Sequence[Reader],
    trunk: NoduleModel | None,
) -> None:  # fmt: skip
    """The nodules of which no part is there yet, until the minutes are over."""
    patients = patients_of(store)
    started = time.monotonic()
    for nodule_id in track(ids, "audit", len(ids)):
        if config.minutes and time.monotonic() - started > 60 * config.minutes:
            say("the minutes are over; the same command goes on")
            break
        path = parts / f"{nodule_id}-EDITED"
        if not path.with_suffix(".json").exists():
            try:
                found = measure_nodule(store.load(nodule_id), patients[nodule_id], readers, trunk, config.seed)
            except DataError as error:
                write_json(path.with_suffix(".json"), {"refused": [["all", str(error)]]})
            else:
                save(found, path, nodule_id)


def _readers(config: Audit, device: str) -> list[Reader]:
    """What --model names, each with its models."""
    names = words(config.model)
    if not names:
        raise UsageError("--model names no model")
    readers = []
    for name in names:
        models = [model for one in name.split("+") for model in loaded(one, config.weights)]
        if len({model.output_names for model in models}) > 1:
            raise UsageError(f"--model {name}: different outputs cannot be averaged; join models of the same outputs")
        short = "+".join(map(_short, name.split("+")))
        readers.append(Reader(short, models, words(config.methods), config.turns, device))
    return readers


def loaded(name: str, weights: Path | None) -> list[NoduleModel]:
    """The models of a folder, a run or a shipped name; ``weights`` where they are adapters."""
    needs = any(is_adapter(folder) for folder in member_folders(name))
    return load_models(name, weights if needs else None)


def patients_of(store: CropStore) -> dict[str, str]:
    """Nodule -> patient."""
    table = store.manifest
    return dict(zip(table["nodule_id"], table["patient_id"].astype(str), strict=True))


def chosen_nodules(config: Audit, store: CropStore, readers: Sequence[Reader]) -> list[str]:
    """Ids in a seeded order: with readers' outlines, known HU, and of patients that some model of every reader has not
    seen."""
    table = store.manifest
    good = ~table["larger_than_box"] & (table["n_readers_masked"] > 0)
    if not config.allow_seen:
        good &= table["patient_id"].astype(str).map(lambda one: all(models_for(each.models, one) for each in readers))
    if config.calibrated:
        good &= table["hu_calibrated"]
    ids = table["nodule_id"][good].sample(frac=1, random_state=config.seed).tolist()
    if len(ids) < 2:
        raise DataError(f"{store.path}: no nodule is left that the models have not seen; allow_seen shows them all")
    return ids[: config.nodules]


def save(found: Measured, path: Path, nodule_id: str) -> None:
    """One nodule's files; the JSON, written last, says that they are whole."""
    for kind, rows in (("outputs", found.outputs), ("maps", found.maps)):
        with atomic_path(path.with_suffix(f".{kind}.parquet")) as temporary:
            pd.DataFrame(rows).assign(nodule_id=nodule_id).to_parquet(temporary, index=False)
    with atomic_path(path.with_suffix(".features.npz")) as temporary, temporary.open("wb") as stream:
        names = np.array(list(found.features))
        np.savez(stream, names=names, values=np.array(list(found.features.values()), dtype=np.float32))
    write_json(path.with_suffix(".json"), {"refused": found.refused})


def write_tables(
    config: Audit, out: Path, store: CropStore, readers: Sequence[Reader], trunk: NoduleModel | None, run: Run
) -> None:
    """All tables from the parts that lie in OUT."""
    patients = patients_of(store)
    for path in sorted((out / "parts").glob("*.json")):
        nodule_id = path.stem.removesuffix("-EDITED")
        run.skipped += [Skipped(nodule_id, f"edit {what}", why) for what, why in read_json(path)["refused"]]

    def read(kind: str) -> pd.DataFrame:
        paths = sorted((out / "parts").glob(f"*.{kind}.parquet"))
        if not paths:
            raise DataError(f"{out}: no nodule could be measured; see skipped.csv")
        rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        return rows.assign(patient_id=rows["nodule_id"].map(patients))

    rows, maps = read("outputs"), read("maps")
    once = rows.drop_duplicates("nodule_id")["patient_id"]
    seen = [
        {
            "model": reader.name,
            "nodules": len(once),
            "models_a_nodule": round(float(rows[rows["model"] == reader.name]["members"].mean()), 2),
            "of_patients_it_has_seen": sum(not models_for(reader.models, patient) for patient in once),
        }
        for reader in readers
    ]
    tables = {
        "seen": pd.DataFrame(seen),
        "own_measures": own_measures(rows),
        "dose_response": dose_response(rows),
        "selectivity": selectivity(rows, OUTPUTS),
        "sham": sham_noise(rows, OUTPUTS).round(3),
        "maps": map_table(maps),
    }
    turns = smallest_turns(with_probability(rows, readers), store.manifest.set_index("nodule_id")["label"].to_dict())
    write_csv(out / "turned.csv", turns)
    tables["turns"] = turns_table(turns)
    if trunk is not None:
        kept = {}
        for path in sorted((out / "parts").glob("*.features.npz")):
            one = read_npz(path, ("names", "values"))
            kept[path.name.removesuffix("-EDITED.features.npz")] = dict(
                zip(one["names"].tolist(), one["values"], strict=True)
            )
        if not kept:
            raise DataError(f"{out}: its parts were measured without --weights: no realism; leave --weights out")
        own = rows[rows["model"] == readers[0].name]
        tables["realism"] = realism(own, kept, store.manifest, _features_of(store, trunk), (0.5, 1.0), config.seed)
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    write_text(out / "audit.md", "\n\n".join(f"### {name}\n\n{_markdown(table)}" for name, table in tables.items()))
    print(out / "audit.md")


def with_probability(rows: pd.DataFrame, readers: Sequence[Reader]) -> pd.DataFrame:
    """The rows of the readers with ``probability``: the logit as the models that read the patient calibrate it."""
    parts = []
    for reader in readers:
        own = rows[rows["model"] == reader.name]
        lines = {
            patient: np.mean([model.calibration["malignancy"] for model in reader.of(patient)], axis=0)
            for patient in own["patient_id"].unique()
        }
        slope, intercept = np.array([lines[patient] for patient in own["patient_id"]]).reshape(-1, 2).T
        parts.append(own.assign(probability=1 / (1 + np.exp(-(slope * own["malignancy"] + intercept)))))
    return pd.concat(parts, ignore_index=True)


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * table.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def _features_of(store: CropStore, trunk: NoduleModel) -> Any:
    kept: dict[str, np.ndarray] = {}

    def features(nodule_id: str) -> np.ndarray:
        if nodule_id not in kept:
            kept[nodule_id] = trunk_features(trunk, [store.load(nodule_id)])[0]
        return kept[nodule_id]

    return features


def _trunk(weights: Path) -> NoduleModel:
    """DINOv2 as it was published: it has learned nothing from nodules."""
    return build_model("dinov2_vits14", ["malignancy"], need_path(weights, "--weights"), size=112, seed=0)


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise UsageError(f"--shard {text}: wanted i/n with 0 <= i < n")
    return index, count


def _short(name: str) -> str:
    """A model folder's name in the tables: run and fold."""
    parts = [part for part in Path(name).parts if part != "model"]
    return "/".join(parts[-2:]) if len(parts) > 1 else name


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("audit_edits", Audit, audit, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
